r"""Importance sampling with randomized quasi-Monte Carlo draws, which cover the unit cube evenly.

The draws of the guide are :math:`z = g(u)` for u uniform in the unit cube. The values of u are a scrambled Sobol
sequence with a random shift for every datum. Each point is uniform, so the mean weight stays unbiased. The variance of
the mean weight is small if the weight is a smooth function of few directions of u. The points of a sequence depend on
each other, so the error is estimated from R independent sequences,

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
from torch.distributions.transforms import ComposeTransform

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
from pyrovae.evaluation.unconstrained.edges import warn_of_rounding

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

    The method improves on :func:`evaluate` for good proposals in few dimensions. It does not help if the proposal
    misses part of the posterior.

    Args:
        model: Pyro program of p(x, z).
        guide: Pyro program of q(z | x). Each site must have a distribution with an inverse distribution function (such
            as a normal or Laplace distribution), a multivariate normal distribution, or a transform or flow of one of
            these.
        x: Data, shape ``(N, *event)``, or a tuple of tensors that share the first dimension.
        num_samples: Total number of draws per datum, K.
        num_replicates: Number of independent sequences, R, which divides K. K / R should be a power of two.
        **options: Keyword arguments of :class:`Options`.

    Returns:
        Dataset with dimension ``datum``: ``elbo``, ``elbo_mcse``, ``log_likelihood``, ``mcse``, ``ess`` and
        ``pareto_k`` as from :func:`evaluate`, but with errors from the spread of the R sequences.

    Raises:
        TypeError: For the reasons listed at :func:`evaluate`.
        ValueError: For the reasons listed at :func:`evaluate`; if ``num_replicates`` is less than 2 or does not divide
            ``num_samples``; if a site of the guide has no inverse distribution function, or a transform to values of
            more dimensions; or if the program must be run once for each draw.
        FloatingPointError: If the log-weights of all data are NaN or infinite.

    Warns:
        UserWarning: If rounding moves many draws to the edge of a support.

    Source:
        *Quasi-Monte Carlo Variational Inference* (Buchholz, Wenzel and Mandt, 2018); *Scrambled Net Variance for
        Integrals of Smooth Functions* (Owen, 1997).

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyrovae as pv
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 1.0))
        >>> x = torch.tensor([0.0, 1.0])
        >>> quasi = pv.evaluation.rqmc(model, guide, x, num_samples=2048, seed=0)
        >>> plain = pv.evaluation.evaluate(model, guide, x, num_samples=2048, seed=0)
        >>> bool((plain.mcse / quasi.mcse > 10).all())
        True
    """
    check_whole(num_samples=num_samples, num_replicates=num_replicates)
    if num_replicates < 2 or num_samples < num_replicates or num_samples % num_replicates:
        raise ValueError(
            f"num_replicates must be at least 2 and divide num_samples, got num_replicates={num_replicates} and "
            f"num_samples={num_samples}. Choose, for example, 32 and 4096."
        )
    problem = Problem(model, guide, x, **options)

    def prepare() -> int:
        problem.check_reach()
        warn_of_rounding(problem)
        if not problem.vectorize:
            raise ValueError(
                "rqmc makes all draws in one run, but this program must be run once for each draw. Let the program "
                "count dimensions from the right and keep leading dimensions, or use pyrovae.evaluation.evaluate."
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
    """Return the bounds, errors and diagnostics of each datum by name, shapes ``(N,)``.

    Args:
        log_weights: Log-weights, shape ``(num_replicates, num_samples / num_replicates, N)``.
    """
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
    """Return log-weights of a batch for a refined guide that computes its normal draws from Sobol points."""
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
    if not dim:  # all latents are summed out
        return torch.empty(num_points, num_data, 0, dtype=torch.float64)
    seed = int(torch.randint(2**31, ()))
    points = torch.quasirandom.SobolEngine(dim, scramble=True, seed=seed).draw(num_points, dtype=torch.float64)
    shift = torch.rand(num_data, dim, dtype=torch.float64)
    return ((points.unsqueeze(1) + shift) % 1).clamp(1e-15, 1 - 1e-15)


def _own(shape: Sequence[int], fn: Any, nesting: int) -> Sequence[int]:
    """Return ``shape`` without the dimensions of enumerated sites.

    Dimensions of enumerated sites lie to the left of the last ``nesting`` batch dimensions and the event dimensions.
    """
    return shape[max(0, len(shape) - nesting - fn.event_dim) :]


class _Quasi(Messenger):
    """Pyro handler that computes the guide's draws from uniform points, shape ``(num_samples, N, D)``.

    Each latent site uses the next unused dimensions of the points. A latent site that depends on an enumerated site
    uses the same points for all values of the enumerated site.
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
    """Map uniform points in the unit cube to draws of the distribution ``fn``, in the shape of the points."""
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
            value = _quantile(name, fn.base_dist, _of_base(name, fn, uniform))
            for transform in fn.transforms:
                value = transform(value)
            return value
    try:
        return fn.icdf(uniform).to(fn.mean.dtype)
    except NotImplementedError as error:
        raise ValueError(
            f"latent site {name!r} is a {type(fn).__name__}, for which torch has no inverse distribution function. Use "
            f"pyrovae.evaluation.evaluate, which makes random draws."
        ) from error


def _of_base(name: str, fn: Any, uniform: Tensor) -> Tensor:
    """Return the coordinates of uniform points that the base distribution of a transformed distribution needs.

    The base can have fewer dimensions than the values, as for values on a simplex.
    """
    shape = ComposeTransform(fn.transforms).inverse_shape(uniform.shape)
    points = uniform[..., : shape[-1]] if len(shape) == uniform.ndim else uniform
    if points.shape != shape:
        raise ValueError(
            f"latent site {name!r} is a {type(fn).__name__} that transforms values of {len(shape)} dimensions to "
            f"values of {uniform.ndim}, which rqmc does not support. Use pyrovae.evaluation.evaluate, which makes "
            f"random draws."
        )
    return points
