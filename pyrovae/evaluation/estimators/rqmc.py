r"""Importance sampling with randomized quasi-Monte Carlo draws: points that fill the cube more evenly than chance.

A guide whose draws are :math:`z = g(u)` for u uniform in the unit cube takes for u a scrambled Sobol sequence, moved by
a random shift for every datum. Each point is uniform, so the mean weight stays unbiased; the more smoothly the weight
depends on few directions of u, the smaller its variance. Points of one sequence depend on each other, so the error
comes from R independent sequences,

.. math:: \hat p(x) = \frac1R \sum_{r=1}^R \hat p_r(x), \qquad
    \mathrm{se}(\log \hat p) = \frac{\mathrm{sd}_r(\hat p_r)}{\sqrt R\, \hat p}.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Unpack

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyrovae._waist.draws import run_guide
from pyrovae._waist.sites import Program, is_enumerated, is_point
from pyrovae.arguments import check_whole
from pyrovae.distributions import MultivariateNormal, NormalizingFlow
from pyrovae.evaluation import bounds
from pyrovae.evaluation.batches import Batch
from pyrovae.evaluation.diagnostics.psis import psis
from pyrovae.evaluation.options import Options
from pyrovae.evaluation.pairs import takes_vae
from pyrovae.evaluation.problem import Problem
from pyrovae.evaluation.report import report

if TYPE_CHECKING:
    import xarray as xr


@takes_vae
def rqmc(
    model: Program,
    guide: Program,
    x: Any,
    num_samples: int = 4096,
    *,
    num_replicates: int = 32,
    **options: Unpack[Options],
) -> "xr.Dataset":
    r"""Estimate log p(x) of each datum from randomized quasi-Monte Carlo draws of the guide.

    It pays for good proposals of few dimensions. A proposal that misses the posterior misses it with these draws too.

    Args:
        model: Pyro program of p(x, z).
        guide: Pyro program of q(z | x) whose sites are made of normal, Laplace or other distributions with an inverse
            distribution function, multivariate normals, transforms and flows of them.
        x: Data, shape ``(N, *event)``, or a tuple of tensors that share the first dimension.
        num_samples: Draws per datum, K, in all.
        num_replicates: Independent sequences, R, which divides K; K / R is best a power of two.
        **options: See :class:`Options`.

    Returns:
        Dataset with dimension ``datum``: ``elbo``, ``elbo_mcse``, ``log_likelihood``, ``mcse``, ``ess``, ``pareto_k``
        as those of :func:`evaluate`, but with errors from the spread of the sequences.

    Raises:
        TypeError: As :func:`evaluate`.
        ValueError: As :func:`evaluate`; if ``num_replicates`` is less than 2 or does not divide ``num_samples``, or a
            site of the guide has no inverse distribution function.
        FloatingPointError: If a log-weight is NaN or infinite.

    Source:
        *Quasi-Monte Carlo Variational Inference* (Buchholz, Wenzel and Mandt, 2018); *Scrambled Net Variance for
        Integrals of Smooth Functions* (Owen, 1997).

    Example:
        >>> import torch, pyrovae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Normal(pv.networks.mlp(2, 4)),
        ...     pv.posteriors.DiagonalNormal(pv.networks.mlp(4, 2 * 2)),
        ... )
        >>> quasi = pv.evaluation.rqmc(vae.model, vae.guide, torch.zeros(5, 4), 2048, seed=0)
        >>> plain = pv.evaluation.evaluate(vae.model, vae.guide, torch.zeros(5, 4), 2048, seed=0)
        >>> bool(quasi.mcse.mean() < plain.mcse.mean())
        True
    """
    check_whole(num_samples=num_samples, num_replicates=num_replicates)
    if num_replicates < 2 or num_samples < num_replicates or num_samples % num_replicates:
        raise ValueError(
            f"num_replicates must be at least 2 and divide num_samples, got num_replicates={num_replicates} and "
            f"num_samples={num_samples}; choose for instance 32 and 4096"
        )
    problem = Problem(model, guide, x, **options)

    def prepare() -> int:
        problem.check_reach()
        if not problem.vectorize:
            raise ValueError(
                "rqmc makes all draws in one run, and this program runs once for each draw; let it count dimensions "
                "from the right and keep leading ones, or use pyrovae.evaluation.evaluate"
            )
        return problem.width(num_samples // num_replicates)

    def columns(batch: Batch) -> dict[str, Tensor]:
        log_weights = _log_weights(problem, batch, num_samples, num_replicates)[:, :, : batch.kept]
        return bounds.of_valid(log_weights, _summary, draws_dims=2)

    return report(
        problem,
        columns,
        estimator="randomized quasi-Monte Carlo",
        width=prepare,
        num_samples=num_samples,
        num_replicates=num_replicates,
    )


def _summary(log_weights: Tensor) -> dict[str, Tensor]:
    """Return the columns of log-weights of shape ``(num_replicates, num_samples / num_replicates, N)``."""
    rounding = bounds.rounding_error(log_weights.flatten(0, 1))
    log_weights = log_weights.double()
    together = log_weights.flatten(0, 1)
    elbo, elbo_mcse = bounds.elbo(log_weights.mean(1))
    log_likelihood, mcse = bounds.log_likelihood(log_weights.logsumexp(1) - math.log(log_weights.shape[1]))
    return {
        "elbo": elbo,
        "elbo_mcse": elbo_mcse,
        "log_likelihood": log_likelihood,
        "mcse": torch.hypot(mcse, rounding),
        "ess": bounds.effective_sample_size(together),
        "pareto_k": psis(together)[1],
    }


def _log_weights(problem: Problem, batch: Batch, num_samples: int, num_replicates: int) -> Tensor:
    """Return log-weights of a batch, shape ``(num_replicates, num_samples / num_replicates, N)``."""
    if problem.proposal is not None:
        return _refined_log_weights(problem, batch, num_samples, num_replicates)
    draws = run_guide(problem.guide, batch.args, kwargs=problem.options["kwargs"], values=batch.subsample)
    random = [site for site in draws.latents.values() if not (is_point(site["fn"]) or is_enumerated(site))]
    dim = sum(math.prod(_own(site["value"].shape, site["fn"], problem.nesting)) for site in random) // batch.size
    runs = []
    for _ in range(num_replicates):
        uniform = _points(num_samples // num_replicates, batch.size, dim)
        with _Quasi(uniform.to(problem.device), problem.data_dim, problem.nesting):
            runs.append(problem.run(batch, len(uniform)).log_weights)
    return torch.stack(runs)


def _refined_log_weights(problem: Problem, batch: Batch, num_samples: int, num_replicates: int) -> Tensor:
    """Return the same of a refined guide, whose normal members are drawn from the points."""
    assert problem.proposal is not None
    mean = problem.proposal.normal(problem, batch).mean
    runs = []
    for _ in range(num_replicates):
        noise = torch.special.ndtri(_points(num_samples // num_replicates, *mean.shape)).to(mean)
        drawn = problem.proposal.draw(problem, batch, len(noise), noise)
        assert drawn.log_joint is not None
        runs.append(drawn.log_joint - drawn.log_q)
    return torch.stack(runs)


def _points(num_points: int, num_data: int, dim: int) -> Tensor:
    """Return a scrambled Sobol sequence with a random shift for each datum, shape ``(num_points, num_data, dim)``."""
    if not dim:  # every latent is summed out
        return torch.empty(num_points, num_data, 0, dtype=torch.float64)
    seed = int(torch.randint(2**31, ()))
    points = torch.quasirandom.SobolEngine(dim, scramble=True, seed=seed).draw(num_points, dtype=torch.float64)
    shift = torch.rand(num_data, dim, dtype=torch.float64)
    return ((points.unsqueeze(1) + shift) % 1).clamp(1e-15, 1 - 1e-15)


def _own(shape: Sequence[int], fn: Any, nesting: int) -> Sequence[int]:
    """Return a shape without the dimensions of enumerated sites, which stand to the left of all plates."""
    return shape[max(0, len(shape) - nesting - fn.event_dim) :]


class _Quasi(Messenger):
    """Make the guide's draws out of uniform points, shape ``(num_samples, N, D)``, in the order of its sites.

    A latent that depends on an enumerated site has the same points at all of the site's values.
    """

    def __init__(self, uniform: Tensor, data_dim: int, nesting: int) -> None:
        super().__init__()
        self.uniform, self.data_dim, self.nesting, self.used = uniform, data_dim, nesting, 0

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["value"] is not None or site_is_subsample(msg) or is_point(msg["fn"]):
            return
        if is_enumerated(msg):
            return
        shape = list(_own(msg["fn"].shape(), msg["fn"], self.nesting + 1))
        rest = shape[1 : self.data_dim] + shape[self.data_dim + 1 :]
        own = self.uniform[..., self.used : self.used + math.prod(rest)]
        self.used += math.prod(rest)
        uniform = own.reshape(*own.shape[:2], *rest).movedim(1, self.data_dim)
        msg["value"] = _quantile(msg["name"], msg["fn"], uniform)


def _quantile(name: str, fn: Any, uniform: Tensor) -> Tensor:
    """Return the draws that uniform points, of the shape of fn, make."""
    match fn:
        case dist.ExpandedDistribution() | torch.distributions.Independent():
            return _quantile(name, fn.base_dist, uniform)
        case NormalizingFlow():
            return fn.of_noise(_quantile(name, fn.base_dist, uniform))
        case MultivariateNormal():
            return fn.of_noise(torch.special.ndtri(uniform).to(fn.loc.dtype))
        case torch.distributions.MultivariateNormal() | torch.distributions.LowRankMultivariateNormal():
            noise = torch.special.ndtri(uniform).to(fn.loc.dtype).unsqueeze(-1)
            return fn.loc + (fn.scale_tril @ noise).squeeze(-1)
        case torch.distributions.TransformedDistribution():
            value = _quantile(name, fn.base_dist, uniform)
            for transform in fn.transforms:
                value = transform(value)
            return value
    try:
        return fn.icdf(uniform).to(fn.mean.dtype)
    except NotImplementedError as error:
        raise ValueError(
            f"latent site {name!r} is a {type(fn).__name__}, whose inverse distribution function torch does not have; "
            f"use pyrovae.evaluation.evaluate, which draws it at random"
        ) from error
