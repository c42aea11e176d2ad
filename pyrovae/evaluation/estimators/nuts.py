r"""A reference for a few data: draws from the posterior by NUTS, and log p(x) from these draws by bridge sampling.

Let :math:`u_i` be correlated draws from the posterior with the effective sample size :math:`n_1`. Let
:math:`\tilde u_j` be :math:`n_2` independent draws from a normal density g, which is fitted to other draws from the
posterior. With :math:`l(u) = p(x, u) / g(u)` and :math:`s_m = n_m / (n_1 + n_2)`, the optimal bridge estimate is the
fixed point of

.. math::
    \hat p = \frac{\mathrm{mean}_j\; l(\tilde u_j) / (s_1 l(\tilde u_j) + s_2 \hat p)}
                  {\mathrm{mean}_i\; 1 / (s_1 l(u_i) + s_2 \hat p)}.

The relative error is the square root of
:math:`\mathrm{Var}(f_1) / (n_1 \bar f_1^2) + \mathrm{Var}(f_2) / (n_2 \bar f_2^2)`, where :math:`f_1` are the terms of
the mean over i and :math:`f_2` are the terms of the mean over j.
"""

import math
import sys
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch
from pyro.infer import MCMC, NUTS
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyrovae._waist.sites import Program
from pyrovae.evaluation.batches import Batch
from pyrovae.evaluation.options import Options
from pyrovae.evaluation.pairs import takes_vae
from pyrovae.evaluation.problem import Problem
from pyrovae.evaluation.report import report
from pyrovae.evaluation.unconstrained.edges import warn_of_rounding
from pyrovae.evaluation.unconstrained.space import Space
from pyrovae.evaluation.unconstrained.target import Target, check_gradients

if TYPE_CHECKING:
    import xarray as xr


@takes_vae
def nuts(
    model: Program,
    guide: Program,
    x: Any,
    num_samples: int = 1000,
    *,
    warmup_steps: int = 500,
    num_chains: int = 2,
    max_tree_depth: int = 10,
    **options: Unpack[Options],
) -> "xr.Dataset":
    r"""Draw from the posteriors of a few data with Pyro's NUTS, and estimate log p(x) of each by bridge sampling.

    The chains start at draws from the guide. If the guide is a :class:`pyrovae.guides.Refined`, the chains move in
    coordinates in which the fitted density is standard normal, so the fit serves as the mass matrix. NUTS moves the
    latents of all data as a single state. Use the function for at most about ten data at a time. The estimate misses a
    mode that no chain visits, and ``r_hat`` does not show this. It shows only that chains stay in different modes.

    Args:
        model: Pyro program of p(x, z) with continuous latent sites.
        guide: Pyro program of q(z | x).
        x: Data, shape ``(N, *event)``, or a tuple of tensors that share the first dimension.
        num_samples: Draws per chain after the warm-up. The first half of them is used to fit the normal density of
            bridge sampling.
        warmup_steps: Draws per chain during which step size and mass matrix are adapted.
        num_chains: Number of chains, which run one after another.
        max_tree_depth: NUTS makes at most ``2 ** max_tree_depth`` leapfrog steps per draw.
        **options: Keyword arguments of :class:`Options`. The progress bar is that of Pyro's ``MCMC``.

    Returns:
        Dataset with dimension ``datum``:

        * ``log_likelihood``, ``mcse``: estimate of log p(x) and its Monte Carlo standard error, nats;
        * ``r_hat``: largest split R-hat among the latent dimensions of the datum;
        * ``ess``: smallest effective sample size among the latent dimensions of the datum;
        * for each latent site, a variable of its name that holds the draws, with dimensions ``chain``, ``draw``,
          ``datum`` and those of the site.

        The attribute ``divergences`` holds the number of divergent transitions.

    Raises:
        TypeError: For the reasons listed at :func:`evaluate`.
        ValueError: For the reasons listed at :func:`evaluate`; if there are too few draws to fit a normal density, or
            chains do not move; or if the posterior is not a density of real vectors, for example because a latent site
            is discrete, masked or an angle.
        FloatingPointError: If a log-density or its gradient is NaN or infinite for all data.

    Warns:
        UserWarning: If rounding moves many draws to the edge of a support.

    Source:
        *The No-U-Turn Sampler* (Hoffman and Gelman, 2014); *Simulating Ratios of Normalizing Constants via a Simple
        Identity* (Meng and Wong, 1996); *Estimating Marginal Likelihoods for Mixture and Markov Switching Models Using
        Bridge Sampling Techniques* (Fruehwirth-Schnatter, 2004), for the error.

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyrovae as pv
        >>> def model(x):  # p(x) = N(0, 2)
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 1.0))
        >>> x = torch.tensor([0.0, 1.0])
        >>> results = pv.evaluation.nuts(
        ...     model, guide, x, num_samples=40, warmup_steps=4, num_chains=1, max_tree_depth=1, seed=0, progress=False
        ... )
        >>> exact = dist.Normal(0.0, 2**0.5).log_prob(x).numpy()
        >>> results.z.dims, bool((abs(results.log_likelihood - exact) < 0.5).all())
        (('chain', 'draw', 'datum'), True)
    """
    for name, value, least in (("num_samples", num_samples, 8), ("num_chains", num_chains, 1)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    problem = Problem(model, guide, x, **options)
    spaces: list[Space] = []

    def prepare() -> int:
        spaces.append(Space(problem, with_guide=False))
        warn_of_rounding(problem)
        return problem.size

    def columns(batch: Batch) -> dict[str, np.ndarray]:
        target = Target(spaces[0], batch)
        if num_chains * (num_samples // 2) < 5 * target.dim:
            raise ValueError(
                f"{num_chains} chains of {num_samples} draws are too few to fit a normal density of {target.dim} "
                f"dimensions. Make at least {2 * math.ceil(5 * target.dim / num_chains)} draws per chain."
            )
        check_gradients(target)
        kernel = {"max_tree_depth": max_tree_depth}
        chains = [_chain(target, num_samples, warmup_steps, kernel) for _ in range(num_chains)]
        draws = torch.stack([chain[0] for chain in chains])  # (num_chains, num_samples, N, D)
        found = _summary(target, draws, problem.affordable)
        found["divergences"] = torch.zeros(batch.size)
        found["divergences"][0] = sum(chain[1] for chain in chains)  # for all data, which move as a single state
        for name, values in found.items():
            dims.setdefault(name, _dims(name, values.ndim))
        return {name: _kept(values, dims[name], batch.kept) for name, values in found.items()}

    dims: dict[str, tuple[str, ...]] = {}
    result = report(
        problem,
        columns,
        estimator="NUTS and bridge sampling",
        width=prepare,
        dims=dims,
        num_samples=num_samples,
        num_chains=num_chains,
        warmup_steps=warmup_steps,
        settings={"max_tree_depth": max_tree_depth},
    )
    return result.drop_vars("divergences").assign_attrs(divergences=int(result.divergences.sum()))


def _dims(name: str, ndim: int) -> tuple[str, ...]:
    return ("datum",) if ndim == 1 else ("chain", "draw", "datum", *(f"{name}_dim_{i}" for i in range(ndim - 3)))


def _kept(values: Tensor, dims: tuple[str, ...], kept: int) -> np.ndarray:
    return values.narrow(dims.index("datum"), 0, kept).cpu().numpy()


def _chain(target: Target, num_samples: int, warmup_steps: int, kernel: Any) -> tuple[Tensor, int]:
    """Return the draws of one chain, shape ``(num_samples, N, D)``, and the number of its divergent transitions."""
    problem, normal, start = target.problem, None, target.draw(1)[0]
    if problem.proposal is not None:  # the refined density serves as the mass matrix
        normal = problem.proposal.normal(problem, target.batch)
        start = normal.whiten(start)

    def place(moved: Tensor) -> Tensor:
        return moved if normal is None else normal.place(moved)

    def potential(state: dict[str, Tensor]) -> Tensor:
        return -target.log_joint(place(state["u"].unsqueeze(0))).sum()

    progress = target.problem.options["progress"]
    with torch.enable_grad():
        mcmc = MCMC(
            NUTS(potential_fn=potential, **kernel),
            num_samples,
            warmup_steps,
            initial_params={"u": start[0]},
            disable_progbar=not (progress and sys.stderr.isatty()),  # Pyro's bar floods an output that is no terminal
        )
        mcmc.run()
    return place(mcmc.get_samples()["u"].detach()), sum(map(len, mcmc.diagnostics()["divergences"].values()))


def _summary(target: Target, draws: Tensor, affordable: int) -> dict[str, Tensor]:
    log_likelihood, mcse = _bridge(target, draws, affordable)
    columns = {
        "log_likelihood": log_likelihood,
        "mcse": mcse,
        "r_hat": split_gelman_rubin(draws).amax(-1),
        "ess": effective_sample_size(draws).amin(-1),
    }
    values, _ = target.space.values(draws.flatten(0, 1))
    drawn = target.space.by_datum(values).items()
    return columns | {name: value.unflatten(0, draws.shape[:2]) for name, value in drawn}


def _bridge(target: Target, draws: Tensor, affordable: int) -> tuple[Tensor, Tensor]:
    """Return bridge-sampling estimates of log p(x) and their standard errors, shapes ``(N,)``, nats."""
    fitted, kept = draws.double().split([draws.shape[1] // 2, draws.shape[1] - draws.shape[1] // 2], dim=1)
    sample = fitted.flatten(0, 1)
    deviations = (sample - sample.mean(0)).movedim(0, 1)  # (N, draws, D)
    covariance = deviations.mT @ deviations / (len(sample) - 1)
    tril, failed = torch.linalg.cholesky_ex(covariance)
    if failed.any():
        raise ValueError(
            f"the chains of {int((failed > 0).sum())} of {target.size} data did not move, or moved in too few "
            f"directions for the fit of a normal density. Increase warmup_steps and num_samples."
        )
    normal = MultivariateNormal(sample.mean(0), scale_tril=tril)
    width = max(1, affordable // target.size)
    bridges = []
    for u in (kept.flatten(0, 1), normal.sample((kept.shape[0] * kept.shape[1],))):
        log_joint = torch.cat([target.log_joint(part.to(draws.dtype)) for part in u.split(width)]).double()
        bridges.append(log_joint - normal.log_prob(u))
    posterior, proposal = bridges
    if not proposal.isfinite().all():
        raise FloatingPointError(
            "log p(x, z) is NaN or infinite at draws of the normal density that was fitted to the posterior. Check the "
            "parameters of the model and the scales that its networks return."
        )
    n1 = effective_sample_size(posterior.unflatten(0, kept.shape[:2])).clamp(min=1)
    n2 = torch.full_like(n1, len(proposal))
    log_s1, log_s2 = (n1 / (n1 + n2)).log(), (n2 / (n1 + n2)).log()
    log_p = posterior.median(0).values
    for _ in range(1000):
        below = -torch.logaddexp(log_s1 + posterior, log_s2 + log_p)
        above = proposal - torch.logaddexp(log_s1 + proposal, log_s2 + log_p)
        update = _log_mean(above) - _log_mean(below)
        done, log_p = (update - log_p).abs().max() < 1e-10, update
        if done:
            break
    return log_p, (_relative_variance(below) / n1 + _relative_variance(above) / n2).sqrt()


def _log_mean(log_values: Tensor) -> Tensor:
    return log_values.logsumexp(0) - math.log(len(log_values))


def _relative_variance(log_values: Tensor) -> Tensor:
    """Return the variance of positive values divided by their squared mean, given the logarithms of the values."""
    return (log_values - log_values.amax(0)).exp().var(0) / (log_values - log_values.amax(0)).exp().mean(0).square()
