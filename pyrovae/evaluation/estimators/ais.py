r"""Annealed importance sampling, and bidirectional Monte Carlo, which bounds log p(x) from below and above.

The intermediate densities between the guide and the posterior are

.. math:: f_t(z) = q(z \mid x)^{1 - \beta_t}\, p(x, z)^{\beta_t}, \qquad 0 = \beta_0 < \dots < \beta_T = 1.

A chain starts at :math:`z_0 \sim q(z \mid x)`. At each t it makes a transition :math:`z_{t-1} \to z_t` that leaves
:math:`f_t` invariant. Each chain has a weight w. The mean of the weights of C chains is an unbiased estimate of p(x),
however slowly the transitions mix:

.. math::
    \log w = \sum_{t=1}^T (\beta_t - \beta_{t-1}) \log \frac{p(x, z_{t-1})}{q(z_{t-1} \mid x)}, \qquad
    \mathrm{E}[w] = p(x), \quad \mathrm{E} \log \tfrac1C \sum_c w_c \le \log p(x).

The reversed chain from an exact draw :math:`z_T \sim p(z \mid x)` has :math:`\mathrm{E}[1 / w] = 1 / p(x)`. Hence
:math:`\mathrm{E}[-\log \frac1C \sum_c 1 / w_c] \ge \log p(x)` is an upper bound. An exact draw is known for data that
were simulated from the model, :math:`z \sim p(z), x \sim p(x \mid z)`.

The weights are unbiased only if the transitions do not depend on the chains themselves. Separate pilot chains therefore
tune the step sizes for every t and datum, and are then discarded. All later chains use these fixed step sizes.
"""

import warnings
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor

from pyrovae._waist.sites import Program
from pyrovae._warnings import find_stack_level
from pyrovae.arguments import check_whole
from pyrovae.evaluation import bounds
from pyrovae.evaluation.batches import Batch
from pyrovae.evaluation.estimators import hmc
from pyrovae.evaluation.estimators.estimates import summary
from pyrovae.evaluation.options import Options
from pyrovae.evaluation.pairs import takes_vae
from pyrovae.evaluation.problem import Problem
from pyrovae.evaluation.report import report
from pyrovae.evaluation.simulation import simulate
from pyrovae.evaluation.unconstrained.edges import warn_of_rounding
from pyrovae.evaluation.unconstrained.space import Space
from pyrovae.evaluation.unconstrained.target import Target, check_gradients
from pyrovae.isolation import isolated

if TYPE_CHECKING:
    import xarray as xr

PILOT_CHAINS = 8
ACCEPTANCE = 0.65  # target of the tuning; near the optimum of HMC in many dimensions


@takes_vae
def ais(
    model: Program,
    guide: Program,
    x: Any,
    num_chains: int = 32,
    *,
    num_temperatures: int = 200,
    num_leapfrog: int = 5,
    **options: Unpack[Options],
) -> "xr.Dataset":
    r"""Estimate log p(x) of each datum by annealed importance sampling from guide to posterior, with HMC transitions.

    Annealing suits data for which the guide is a poor proposal. For such data, importance sampling needs very many
    draws from the guide, but annealing needs only more temperatures. To start from the prior, as Wu et al. do, use the
    prior as the guide: ``guide = poutine.block(model, hide_fn=lambda site: site["is_observed"])``.

    Args:
        model: Pyro program of p(x, z) with continuous latent sites.
        guide: Pyro program of q(z | x).
        x: Data, shape ``(N, *event)``, or a tuple of tensors that share the first dimension.
        num_chains: Chains per datum, C.
        num_temperatures: Number of steps, T, in which the inverse temperature rises from 0 (guide) to 1 (posterior).
        num_leapfrog: Leapfrog steps per transition.
        **options: Keyword arguments of :class:`Options`.

    Returns:
        Dataset with dimension ``datum`` and the attributes of :func:`evaluate`:

        * ``log_likelihood``: estimate of log p(x), nats, a lower bound in expectation;
        * ``mcse``: Monte Carlo standard error of the estimate by the delta method, nats;
        * ``ess``: effective sample size of the chains, 1 to C;
        * ``pareto_k``: k-hat of the chains' weights;
        * ``acceptance``: mean probability of accepting a transition.

    Raises:
        TypeError: For the reasons listed at :func:`evaluate`.
        ValueError: For the reasons listed at :func:`evaluate`; if a number is out of range; if the posterior is not a
            density of real vectors, for example because a latent site is discrete, masked or an angle; or if the
            density of model or guide changes from run to run.
        FloatingPointError: If the log-weights of all data are NaN or infinite.

    Warns:
        UserWarning: If rounding moves many draws to the edge of a support, or if the gradient of log p(x, z) is NaN or
            infinite for some data, whose chains do not move.

    Source:
        *Annealed Importance Sampling* (Neal, 2001); *On the Quantitative Analysis of Decoder-Based Generative Models*
        (Wu, Burda, Salakhutdinov and Grosse, 2017).

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyrovae as pv
        >>> def model(x):  # p(x) = N(0, 2)
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):  # far from the posterior of large x
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
        >>> x = torch.tensor([0.0, 6.0])
        >>> results = pv.evaluation.ais(model, guide, x, num_chains=100, num_temperatures=10, num_leapfrog=2, seed=0)
        >>> exact = dist.Normal(0.0, 2**0.5).log_prob(x).numpy()
        >>> bool((abs(results.log_likelihood - exact) < 4 * results.mcse).all()), bool((results.acceptance > 0.3).all())
        (True, True)
    """
    check_whole(num_chains=num_chains, num_temperatures=num_temperatures, num_leapfrog=num_leapfrog)
    _check_numbers(num_chains=num_chains, num_temperatures=num_temperatures, num_leapfrog=num_leapfrog)
    problem = Problem(model, guide, x, **options)
    spaces: list[Space] = []

    def columns(batch: Batch) -> dict[str, Tensor]:
        path = Path(Target(spaces[0], batch), num_temperatures, num_leapfrog)
        log_weights = path.upwards(num_chains)[:, : batch.kept]
        return {**bounds.of_valid(log_weights, summary), "acceptance": path.acceptance[: batch.kept]}

    return report(
        problem,
        columns,
        estimator="annealed importance sampling",
        width=lambda: _prepare(problem, spaces, num_chains),
        num_chains=num_chains,
        num_temperatures=num_temperatures,
        num_leapfrog=num_leapfrog,
    )


@takes_vae
def bdmc(
    model: Program,
    guide: Program,
    x: Any,
    num_chains: int = 32,
    *,
    num_temperatures: int = 200,
    num_leapfrog: int = 5,
    **options: Unpack[Options],
) -> "xr.Dataset":
    r"""Bound log p(x) of simulated data from below and above by bidirectional Monte Carlo.

    The data are simulated from the model, because an exact draw from their posterior is then known. A narrow gap
    between the bounds shows that the number of temperatures suffices for :func:`ais`. The conclusion carries over to
    real data to the extent that they resemble the simulated data.

    Args:
        model: Pyro program of p(x, z) with continuous latent sites.
        guide: Pyro program of q(z | x).
        x: Template of the data: the simulated data have the same number and shape. If ``x`` is a tuple, tensors
            that the model does not observe, such as labels or masks, are passed on unchanged.
        num_chains: Chains per datum and direction, C.
        num_temperatures: Number of steps, T, in which the inverse temperature rises from 0 (guide) to 1 (posterior).
        num_leapfrog: Leapfrog steps per transition.
        **options: Keyword arguments of :class:`Options`.

    Returns:
        Dataset with dimension ``datum``:

        * ``lower``, ``upper``: stochastic bounds on log p(x), nats, which hold in expectation;
        * ``lower_mcse``, ``upper_mcse``: Monte Carlo standard errors of the bounds, nats. ``upper_mcse`` does not
          include the variance that arises because all chains of the upper bound start at the same draw;
        * ``acceptance``: mean probability of accepting a transition;
        * ``simulated_0``, ``simulated_1``, ...: the simulated data, one variable for each tensor among the arguments of
          the model.

    Raises:
        TypeError: For the reasons listed at :func:`ais`.
        ValueError: For the reasons listed at :func:`ais`, or if the argument that holds the data cannot be determined.

    Warns:
        UserWarning: If rounding moves many draws to the edge of a support, or if the gradient of log p(x, z) is NaN or
            infinite for some data, whose chains do not move.

    Source:
        *Sandwiching the Marginal Likelihood Using Bidirectional Monte Carlo* (Grosse, Ghahramani and Adams, 2015).

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyrovae as pv
        >>> def model(x):  # p(x) = N(0, 2)
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
        >>> results = pv.evaluation.bdmc(
        ...     model, guide, torch.zeros(50), num_chains=4, num_temperatures=6, num_leapfrog=2, seed=0
        ... )
        >>> exact = float(dist.Normal(0.0, 2**0.5).log_prob(torch.tensor(results.simulated_0.values)).mean())
        >>> float(results.lower.mean()) < exact < float(results.upper.mean())
        True
    """
    check_whole(num_chains=num_chains, num_temperatures=num_temperatures, num_leapfrog=num_leapfrog)
    _check_numbers(num_chains=num_chains, num_temperatures=num_temperatures, num_leapfrog=num_leapfrog)
    template = Problem(model, guide, x, **options)
    with template:
        template.check_whole()
    with isolated(model, guide, seed=template.seed) as isolation, isolation.adopting():
        whole = template.data.batch(0, template.size, template.device)
        latents, args = simulate(model, whole, options.get("kwargs"), plate=template.plate.name)
    simulated: Options = {**options, "seed": template.seed, "binarization": "simulated"}
    problem = Problem(model, guide, args, **simulated)
    spaces: list[Space] = []

    def columns(batch: Batch) -> dict[str, Tensor]:
        space = spaces[0]
        path = Path(Target(space, batch), num_temperatures, num_leapfrog)
        lower = bounds.of_valid(path.upwards(num_chains), summary)
        exact = space.flatten(_of_batch(space, latents, batch)).expand(num_chains, -1, -1)
        upper = bounds.of_valid(-path.downwards(exact), summary)
        return {
            "lower": lower["log_likelihood"],
            "lower_mcse": lower["mcse"],
            "upper": -upper["log_likelihood"],
            "upper_mcse": upper["mcse"],
            "acceptance": path.acceptance,
        }

    found = report(
        problem,
        columns,
        estimator="bidirectional Monte Carlo",
        width=lambda: _prepare(problem, spaces, num_chains),
        num_chains=num_chains,
        num_temperatures=num_temperatures,
        num_leapfrog=num_leapfrog,
    )
    done = found.sizes["datum"]  # an interrupted evaluation has fewer rows than data
    columns_of_data = {
        f"simulated_{i}": (("datum", *(f"dim_{i}_{j}" for j in range(arg.ndim - 1))), arg[:done].cpu().numpy())
        for i, arg in enumerate(args)
        if isinstance(arg, Tensor)
    }
    return found.assign(columns_of_data)


def _prepare(problem: Problem, spaces: list[Space], num_chains: int) -> int:
    """Append a :class:`Space`, which maps latents to real vectors, to ``spaces``. Return the size of a batch.

    A warning says if rounding moves many draws to the edge of a support.
    """
    spaces.append(Space(problem))
    warn_of_rounding(problem)
    return problem.width(max(num_chains, PILOT_CHAINS))


def _of_batch(space: Space, latents: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    """Return the latents of the data in a batch, by name, selected from one draw of the latents of all data.

    The first dimension of each tensor is a dimension of draws, of size one.
    """
    selected = {}
    for name, site in space.sites.items():
        ndim = space.problem.nesting + 1 + site["fn"].event_dim
        value = latents[name].reshape((1,) * (ndim - latents[name].ndim) + latents[name].shape)
        selected[name] = value.narrow(space.problem.data_dim, batch.start, batch.size)
    return selected


class Path:
    """The intermediate densities of annealing for some data, and tuned transitions that leave them invariant."""

    def __init__(self, target: Target, num_temperatures: int, num_leapfrog: int) -> None:
        self.target, self.num_leapfrog = target, num_leapfrog
        try:
            check_gradients(target)
        except FloatingPointError as error:  # the weights of chains that do not move are still valid
            warnings.warn(f"some chains of annealing do not move: {error}", stacklevel=find_stack_level())
        draws, _ = target.draw(64)
        self.scale = draws.std(0)  # scale of the guide in each dimension, shape (N, D)
        # Wu et al. space the temperatures by a sigmoid, which is flat at both ends.
        ramp = torch.sigmoid(torch.linspace(-4, 4, num_temperatures + 1, dtype=torch.float64))
        self.betas = ((ramp - ramp[0]) / (ramp[-1] - ramp[0])).tolist()
        self.steps = self._tune()
        self.acceptance = torch.ones(target.size, dtype=torch.float64)

    def upwards(self, num_chains: int) -> Tensor:
        """Return log-weights of chains from draws of the guide to the posterior, shape ``(num_chains, N)``, nats."""
        u, _ = self.target.draw(num_chains)
        log_w, acceptances = self._gain(1, u), []
        for t in range(1, len(self.betas) - 1):
            u, acceptance = self._move(t, u, self.steps[t - 1])
            acceptances.append(acceptance.mean(0))
            log_w = log_w + self._gain(t + 1, u)
        if acceptances:
            self.acceptance = torch.stack(acceptances).mean(0)
        return log_w

    def downwards(self, u: Tensor) -> Tensor:
        """Return log-weights of chains from posterior draws u back to the guide, shape ``(num_chains, N)``, nats."""
        log_w = self._gain(len(self.betas) - 1, u)
        for t in reversed(range(1, len(self.betas) - 1)):
            u, _ = self._move(t, u, self.steps[t - 1])
            log_w = log_w + self._gain(t, u)
        return log_w

    def _gain(self, t: int, u: Tensor) -> Tensor:
        log_joint, log_guide = self.target.log_densities(u)
        return (self.betas[t] - self.betas[t - 1]) * (log_joint - log_guide)

    def _move(self, t: int, u: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        beta = self.betas[t]

        def value_and_gradient(u: Tensor) -> tuple[Tensor, Tensor]:
            return self.target.value_and_gradient(u, beta)

        return hmc.transition(value_and_gradient, u, step.unsqueeze(-1) * self.scale, self.num_leapfrog)

    def _tune(self) -> list[Tensor]:
        """Tune step sizes by pilot chains, and return a list of them.

        The list holds one tensor of step sizes, shape ``(N,)``, for each intermediate temperature.
        """
        u, _ = self.target.draw(PILOT_CHAINS)
        step, steps = u.new_full((self.target.size,), self.target.dim**-0.25), []
        for t in (*[1] * 10, *range(1, len(self.betas) - 1)):  # ten more moves find the first step size
            u, acceptance = self._move(t, u, step)
            steps.append(step)
            step = step * (acceptance.mean(0) - ACCEPTANCE).mul(0.5).exp()
        return steps[10:]


def _check_numbers(**numbers: Any) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
