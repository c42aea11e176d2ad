r"""Annealed importance sampling, and bidirectional Monte Carlo, which has the truth between two bounds.

Between the guide and the posterior lie the densities

.. math:: f_t(z) = q(z \mid x)^{1 - \beta_t}\, p(x, z)^{\beta_t}, \qquad 0 = \beta_0 < \dots < \beta_T = 1.

A chain starts at :math:`z_0 \sim q(z \mid x)` and makes at each t a transition :math:`z_{t-1} \to z_t` that leaves
:math:`f_t` invariant. Its weight is unbiased, however badly the transitions mix:

.. math::
    \log w = \sum_{t=1}^T (\beta_t - \beta_{t-1}) \log \frac{p(x, z_{t-1})}{q(z_{t-1} \mid x)}, \qquad
    \mathrm{E}[w] = p(x), \quad \mathrm{E} \log \tfrac1C \sum_c w_c \le \log p(x).

The same chain run backwards from an exact draw :math:`z_T \sim p(z \mid x)` has :math:`\mathrm{E}[1 / w] = 1 / p(x)`,
so :math:`\mathrm{E}[-\log \frac1C \sum_c 1 / w_c] \ge \log p(x)`: an upper bound. An exact draw is known for data
that the model itself has made, :math:`z \sim p(z), x \sim p(x \mid z)`.

The step sizes are found for every t and datum by chains that are thrown away, so that the chains that count have fixed
transitions; otherwise the weights would not be unbiased.
"""

from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor

from pyrovae._waist.sites import Program
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
from pyrovae.evaluation.unconstrained.space import Space
from pyrovae.evaluation.unconstrained.target import Target
from pyrovae.isolation import isolated

if TYPE_CHECKING:
    import xarray as xr

PILOT_CHAINS = 8
ACCEPTANCE = 0.65  # near the optimum of HMC in many dimensions


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

    Where the guide is a poor proposal, importance sampling needs ever more draws; annealing needs more temperatures.
    To start from the prior, as Wu et al. do, take it for the guide: ``guide = poutine.block(model, hide_fn=lambda site:
    site["is_observed"])``.

    Args:
        model: Pyro program of p(x, z) with continuous latent sites.
        guide: Pyro program of q(z | x).
        x: Data, shape ``(N, *event)``, or a tuple of tensors that share the first dimension.
        num_chains: Chains per datum, C.
        num_temperatures: Number of densities between guide and posterior, T.
        num_leapfrog: Leapfrog steps of a transition.
        **options: See :class:`Options`.

    Returns:
        Dataset with dimension ``datum``: ``log_likelihood``, the estimate of log p(x) in nats, in expectation a lower
        bound; ``mcse``, its Monte Carlo standard error by the delta method; ``ess``, the effective number of chains, 1
        to C; ``pareto_k``, k-hat of the chains' weights; ``acceptance``, the mean probability with which a transition
        was accepted. Attributes as those of :func:`evaluate`.

    Raises:
        TypeError: As :func:`evaluate`.
        ValueError: As :func:`evaluate`; if a number is out of range, a latent site is discrete or auxiliary, the
            program cannot take a dimension to the left of its plates, or a density is another one at every run.
        FloatingPointError: If a log-weight is NaN or infinite.

    Source:
        *Annealed Importance Sampling* (Neal, 2001); *On the Quantitative Analysis of Decoder-Based Generative Models*
        (Wu, Burda, Salakhutdinov and Grosse, 2017).

    Example:
        >>> import torch, pyrovae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Normal(pv.networks.mlp(2, 4)),
        ...     pv.posteriors.DiagonalNormal(pv.networks.mlp(4, 2 * 2)),
        ... )
        >>> results = pv.evaluation.ais(vae.model, vae.guide, torch.zeros(3, 4), 30, num_temperatures=10, seed=0)
        >>> results.log_likelihood.shape, bool((results.mcse < 0.5).all())
        ((3,), True)
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
    r"""Sandwich log p(x) of simulated data between a lower and an upper bound, by bidirectional Monte Carlo.

    The data are drawn from the model, so that an exact draw from the posterior is known. A narrow gap says that as many
    temperatures are enough for :func:`ais`, also on real data, as far as these are like the simulated ones.

    Args:
        model: Pyro program of p(x, z) with continuous latent sites.
        guide: Pyro program of q(z | x).
        x: A template: as many data are simulated, of the same shape; tensors of a tuple that the model does not observe
            (labels that are given, masks) are kept.
        num_chains: Chains per datum and direction, C.
        num_temperatures: Number of densities between guide and posterior, T.
        num_leapfrog: Leapfrog steps of a transition.
        **options: See :class:`Options`.

    Returns:
        Dataset with dimension ``datum``: ``lower`` and ``upper``, stochastic bounds on log p(x) in nats that hold in
        expectation; ``lower_mcse`` and ``upper_mcse``, their Monte Carlo standard errors, of which the latter does not
        know of the chains' common start; ``acceptance``; and the simulated data, ``simulated_0`` and so on, one for
        each argument of the model.

    Raises:
        TypeError: As :func:`ais`.
        ValueError: As :func:`ais`; if it cannot be told which argument holds the data.
        FloatingPointError: If a log-weight is NaN or infinite.

    Source:
        *Sandwiching the Marginal Likelihood Using Bidirectional Monte Carlo* (Grosse, Ghahramani and Adams, 2015).

    Example:
        >>> import torch, pyrovae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Normal(pv.networks.mlp(2, 4)),
        ...     pv.posteriors.DiagonalNormal(pv.networks.mlp(4, 2 * 2)),
        ... )
        >>> bounds = pv.evaluation.bdmc(vae.model, vae.guide, torch.zeros(50, 4), 10, num_temperatures=30, seed=0)
        >>> bool(bounds.lower.mean() < bounds.upper.mean()), bounds.simulated_0.shape
        (True, (50, 4))
    """
    check_whole(num_chains=num_chains, num_temperatures=num_temperatures, num_leapfrog=num_leapfrog)
    _check_numbers(num_chains=num_chains, num_temperatures=num_temperatures, num_leapfrog=num_leapfrog)
    template = Problem(model, guide, x, **options)
    with template:
        template.check_whole()
    with isolated(model, guide, seed=template.seed) as isolation, isolation.adopting():
        latents, args = simulate(model, template.data.batch(0, template.size, template.device))
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
    columns_of_data = {
        f"simulated_{i}": (("datum", *(f"dim_{i}_{j}" for j in range(arg.ndim - 1))), arg.cpu().numpy())
        for i, arg in enumerate(args)
        if isinstance(arg, Tensor)
    }
    return found.assign(columns_of_data)


def _prepare(problem: Problem, spaces: list[Space], num_chains: int) -> int:
    """Find the space of an opened problem, and return the number of data for a batch."""
    spaces.append(Space(problem))
    return problem.width(max(num_chains, PILOT_CHAINS))


def _of_batch(space: Space, latents: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    """Return one draw of the latents of all data for those of a batch, with a dimension of draws."""
    selected = {}
    for name, site in space.sites.items():
        ndim = space.problem.nesting + 1 + site["fn"].event_dim
        value = latents[name].reshape((1,) * (ndim - latents[name].ndim) + latents[name].shape)
        selected[name] = value.narrow(space.problem.data_dim, batch.start, batch.size)
    return selected


class Path:
    """The densities between guide and posterior of some data, and tuned transitions that leave each invariant."""

    def __init__(self, target: Target, num_temperatures: int, num_leapfrog: int) -> None:
        self.target, self.num_leapfrog = target, num_leapfrog
        draws, _ = target.draw(64)
        self.scale = draws.std(0)  # of the guide in each dimension, shape (N, D)
        # As in Wu et al.: a sigmoid, which goes slowly at both ends.
        ramp = torch.sigmoid(torch.linspace(-4, 4, num_temperatures + 1, dtype=torch.float64))
        self.betas = ((ramp - ramp[0]) / (ramp[-1] - ramp[0])).tolist()
        self.steps = self._tune()
        self.acceptance = torch.ones(target.size, dtype=torch.float64)

    def upwards(self, num_chains: int) -> Tensor:
        """Log-weights of chains from guide to posterior, shape ``(num_chains, N)``."""
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
        """Log-weights of chains from posterior draws u to the guide, shape ``(num_chains, N)``."""
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
        """Step sizes of each datum at each temperature, shape ``(N,)``, from chains of their own."""
        u, _ = self.target.draw(PILOT_CHAINS)
        step, steps = u.new_full((self.target.size,), self.target.dim**-0.25), []
        for t in (*[1] * 10, *range(1, len(self.betas) - 1)):  # ten moves more to find the first size
            u, acceptance = self._move(t, u, step)
            steps.append(step)
            step = step * (acceptance.mean(0) - ACCEPTANCE).mul(0.5).exp()
        return steps[10:]


def _check_numbers(**numbers: Any) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
