r"""A reference for a handful of data: the posterior by NUTS, and log p(x) from its draws by bridge sampling.

Let :math:`u_i` be :math:`n_1` draws from the posterior, and :math:`\tilde u_j` be :math:`n_2` draws from a normal
density g fitted to other draws from the posterior. With :math:`l(u) = p(x, u) / g(u)` and
:math:`s_i = n_i / (n_1 + n_2)` the optimal bridge between the two is the fixed point of

.. math::
    \hat p = \frac{\frac1{n_2} \sum_j l(\tilde u_j) / (s_1 l(\tilde u_j) + s_2 \hat p)}
                  {\frac1{n_1} \sum_i 1 / (s_1 l(u_i) + s_2 \hat p)},

where :math:`n_1` is the effective number of the correlated draws. Its relative error is the root of
:math:`\mathrm{Var}(f_1) / (n_1 \bar f_1^2) + \mathrm{Var}(f_2) / (n_2 \bar f_2^2)`, with :math:`f_1, f_2` the terms of
the two sums.
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
from pyrovae.evaluation.unconstrained.space import Space
from pyrovae.evaluation.unconstrained.target import Target

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
    r"""Draw from the posterior of some data with Pyro's NUTS, and estimate their log p(x) by bridge sampling.

    The chains start at draws from the guide. If the guide is a :class:`pyrovae.guides.Refined`, they move in the
    coordinates in which its normal density is standard, which serves as the mass matrix. All data move as one state, so
    use it for some ten data at a time. Modes that no chain has seen are missed, which ``r_hat`` may show.

    Args:
        model: Pyro program of p(x, z) with continuous latent sites.
        guide: Pyro program of q(z | x).
        x: Data, shape ``(N, *event)``, or a tuple of tensors that share the first dimension.
        num_samples: Draws per chain, after the warm-up. The first half serves to fit the normal density.
        warmup_steps: Draws per chain that adapt step size and mass matrix.
        num_chains: Chains, one after the other.
        max_tree_depth: NUTS makes at most ``2 ** max_tree_depth`` leapfrog steps a draw.
        **options: See :class:`Options`; the progress bar is Pyro's.

    Returns:
        Dataset with dimension ``datum``: ``log_likelihood``, the estimate of log p(x) in nats, and ``mcse``, its Monte
        Carlo standard error; ``r_hat``, the largest split R-hat, and ``ess``, the smallest effective number of draws,
        among the datum's latent dimensions; and the draws of each latent site under its name, with dimensions
        ``chain``, ``draw``, ``datum`` and its own. The number of divergent transitions is an attribute.

    Raises:
        TypeError: As :func:`evaluate`.
        ValueError: As :func:`evaluate`; if there are too few draws to fit a normal density, or chains that do not move;
            if a latent site is discrete, masked or auxiliary, or the program cannot take a dimension to the left of its
            plates.
        FloatingPointError: If a log-density is NaN or infinite.

    Source:
        *The No-U-Turn Sampler* (Hoffman and Gelman, 2014); *Simulating Ratios of Normalizing Constants via a Simple
        Identity* (Meng and Wong, 1996); *Estimating Marginal Likelihoods for Mixture and Markov Switching Models Using
        Bridge Sampling Techniques* (Fruehwirth-Schnatter, 2004), for the error.

    Example:
        >>> import torch, pyrovae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Normal(pv.networks.mlp(2, 4)),
        ...     pv.posteriors.DiagonalNormal(pv.networks.mlp(4, 2 * 2)),
        ... )
        >>> reference = pv.evaluation.nuts(
        ...     vae.model, vae.guide, torch.zeros(2, 4), 100, warmup_steps=50, seed=0, progress=False
        ... )
        >>> reference.log_likelihood.shape, reference.z.dims
        ((2,), ('chain', 'draw', 'datum', 'z_dim_0'))
    """
    for name, value, least in (("num_samples", num_samples, 8), ("num_chains", num_chains, 1)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    problem = Problem(model, guide, x, **options)
    spaces: list[Space] = []

    def prepare() -> int:
        spaces.append(Space(problem, with_guide=False))
        return problem.size

    def columns(batch: Batch) -> dict[str, np.ndarray]:
        target = Target(spaces[0], batch)
        if num_chains * (num_samples // 2) < 5 * target.dim:
            raise ValueError(
                f"{num_chains} chains of {num_samples} draws are too few to fit a normal density of {target.dim} "
                f"dimensions; make at least {math.ceil(10 * target.dim / num_chains)} draws a chain"
            )
        kernel = {"max_tree_depth": max_tree_depth}
        chains = [_chain(target, num_samples, warmup_steps, kernel) for _ in range(num_chains)]
        draws = torch.stack([chain[0] for chain in chains])  # (num_chains, num_samples, N, D)
        found = _summary(target, draws, problem.affordable)
        found["divergences"] = torch.zeros(batch.size)
        found["divergences"][0] = sum(chain[1] for chain in chains)  # of all data, which move as one state
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
    if problem.proposal is not None:  # its density serves as the mass matrix
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
            disable_progbar=not (progress and sys.stderr.isatty()),  # Pyro's own bar is not quiet elsewhere
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
    """Estimates of log p(x) and their standard errors, shapes ``(N,)``."""
    fitted, kept = draws.double().split([draws.shape[1] // 2, draws.shape[1] - draws.shape[1] // 2], dim=1)
    sample = fitted.flatten(0, 1)
    deviations = (sample - sample.mean(0)).movedim(0, 1)  # (N, draws, D)
    covariance = deviations.mT @ deviations / (len(sample) - 1)
    tril, failed = torch.linalg.cholesky_ex(covariance)
    if failed.any():
        raise ValueError(
            f"the chains of {int((failed > 0).sum())} of {target.size} data did not move in all dimensions, so no "
            f"normal density can be fitted to their draws; raise warmup_steps and num_samples"
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
            "log p(x, z) is NaN or infinite at draws of the normal density that was fitted to the posterior; look at "
            "the parameters of the model and at the scales that it gives"
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
    """Variance over squared mean of values given by their logarithms."""
    return (log_values - log_values.amax(0)).exp().var(0) / (log_values - log_values.amax(0)).exp().mean(0).square()
