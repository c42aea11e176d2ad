r"""Decomposition of the KL term of the ELBO into mutual information and marginal KL.

With the aggregate posterior :math:`q(z) = \frac1N \sum_n q(z \mid x_n)` of the data,

.. math::
    \frac1N \sum_n \mathrm{KL}\big(q(z \mid x_n) \,\|\, p(z)\big)
    = \underbrace{\frac1N \sum_n \mathrm{E}_{q(z \mid x_n)} \log \frac{q(z \mid x_n)}{q(z)}}_{I_q(x; z) \,\le\, \log N}
    + \underbrace{\mathrm{KL}\big(q(z) \,\|\, p(z)\big)}_{\text{marginal KL}}.

If posterior and prior have independent dimensions, the marginal KL is the sum of the total correlation
:math:`\mathrm{KL}(q(z) \,\|\, \prod_j q(z_j))` and the dimension-wise KL
:math:`\sum_j \mathrm{KL}(q(z_j) \,\|\, p(z_j))`.
"""

import math
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor

from pyrovae._waist.plates import dim_of
from pyrovae._waist.sites import Program, Site, factors
from pyrovae._waist.weights import Weights
from pyrovae.evaluation.batches import Batch
from pyrovae.evaluation.diagnostics.latent_sites import SUMMED_OUT, by_datum, latents_of, pairs, runs
from pyrovae.evaluation.options import Options
from pyrovae.evaluation.pairs import takes_vae
from pyrovae.evaluation.problem import Problem
from pyrovae.evaluation.report import report
from pyrovae.evaluation.sampler import check_draws

if TYPE_CHECKING:
    import xarray as xr


@takes_vae
def elbo_surgery(
    model: Program,
    guide: Program,
    x: Any,
    num_samples: int = 1,
    **options: Unpack[Options],
) -> "xr.Dataset":
    r"""Split the ELBO into reconstruction, mutual information and marginal KL.

    The aggregate posterior is the average of the guide's posteriors for the N given data, so the mutual information is
    at most log N. The density of the aggregate posterior at the draws is exact. Its computation takes
    N * N * ``num_samples`` evaluations of the guide's density.

    Args:
        model: Pyro program of p(x, z) without enumerated sites.
        guide: Pyro program of q(z | x).
        x: Data, shape ``(N, *event)``, or a tuple of tensors that share the first dimension.
        num_samples: Draws per datum.
        **options: Keyword arguments of :class:`Options`.

    Returns:
        Dataset with dimension ``datum``, nats. The mean of each variable over the data is a term of the decomposition:

        * ``reconstruction``: mean of log p(x | z) over the draws;
        * ``kl``: KL term of the ELBO, the sum of the next two variables;
        * ``mutual_information`` and ``marginal_kl``: the two parts of ``kl``;
        * ``total_correlation`` and ``dimension_wise_kl``: the two parts of ``marginal_kl``. These variables are present
          if there is a single latent site, and the dimensions of this site are independent in guide and prior.

    Raises:
        TypeError: For the reasons listed at :func:`evaluate`.
        ValueError: For the reasons listed at :func:`evaluate`; if a discrete site is enumerated; if a latent site
            is masked or auxiliary; if the prior differs between data; or if the guide's density differs between two
            runs at the same draws.

    Source:
        *ELBO Surgery* (Hoffman and Johnson, 2016); *Isolating Sources of Disentanglement in Variational Autoencoders*
        (Chen, Li, Grosse and Duvenaud, 2018), for the split of the marginal KL.

    Example:
        >>> import torch, pyrovae as pv
        >>> def network(x):  # q(z | x) = N((x_0, 0), I), so only the first latent depends on x
        ...     return torch.cat([x[..., :1], torch.zeros(*x.shape[:-1], 3)], dim=-1)
        >>> posterior = pv.posteriors.DiagonalNormal(network)
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.likelihoods.Normal(pv.networks.mlp(2, 4)), posterior)
        >>> x = torch.tensor([[-9.0], [9.0]]).repeat(25, 4)
        >>> terms = pv.evaluation.elbo_surgery(vae.model, vae.guide, x, seed=0).mean()
        >>> round(float(terms.mutual_information), 2)  # log 2, as the posteriors of the two values do not overlap
        0.69
        >>> bool(abs(terms.kl - terms.mutual_information - terms.marginal_kl) < 1e-4)
        True
    """
    problem = Problem(model, guide, x, **options)
    check_draws(num_samples)

    def columns(batch: Batch) -> dict[str, Tensor]:
        terms: dict[str, list[Tensor]] = {}
        for weights in runs(problem, batch, num_samples):
            for name, term in _terms(problem, weights).items():
                terms.setdefault(name, []).append(term[:, : batch.kept])
        return {name: torch.cat(parts).mean(0) for name, parts in terms.items()}

    def prepare() -> int:
        if problem.probe.enumerates:
            raise ValueError(SUMMED_OUT)
        problem.check_repeats()
        _check_latents(problem)
        return problem.width(num_samples)

    return report(problem, columns, estimator="ELBO surgery", width=prepare, units="nats", num_samples=num_samples)


def _terms(problem: Problem, weights: Weights) -> dict[str, Tensor]:
    """Return a dictionary with the terms of the decomposition for every draw and datum of a run.

    A term has the name of its variable in the result of :func:`elbo_surgery`. Each term has shape ``(num_draws, n)``
    for a batch of n data, and is in nats.
    """
    assert weights.densities is not None
    of_guide, of_model = latents_of(weights.guide_sites), latents_of(weights.model_sites)
    draws = {}
    for name, q, _ in pairs(of_guide, of_model):
        full = q["value"].expand(*q["fn"].batch_shape, *q["fn"].event_shape)
        draws[name] = by_datum(problem, q, full, flat=False)
    reconstruction, log_p, log_q = (term.double() for term in weights.densities)
    units = _has_units(of_guide) and _has_units(of_model)
    shape = log_q.shape
    points = {name: value.flatten(0, 1) for name, value in draws.items()}
    aggregate, of_units = _aggregate(problem, points, units=units)
    aggregate = aggregate.reshape(shape)
    terms = {
        "reconstruction": reconstruction,
        "kl": log_q - log_p,
        "mutual_information": log_q - aggregate,
        "marginal_kl": aggregate - log_p,
    }
    if units:
        (p,) = of_model.values()
        prior_units = by_datum(problem, p, _units(p)).double()
        of_units = of_units.reshape(*shape, -1)
        terms["total_correlation"] = aggregate - of_units.sum(-1)
        terms["dimension_wise_kl"] = (of_units - prior_units).sum(-1)
    return terms


def _check_latents(problem: Problem) -> None:
    """Check that no latent site is masked, and that the latents of all data have the same prior.

    Each datum of a batch gets the draw of the datum before it. If all data have the same prior, log p(z) moves with the
    draws.

    Raises:
        ValueError: If a latent site is auxiliary or masked, or the prior differs between data.
    """
    weights = problem.run(problem.few())
    for name, q, p in pairs(latents_of(weights.guide_sites), latents_of(weights.model_sites)):
        _check_unmasked(name, q, p)
    for batch in problem.batches(64):
        drawn = problem.draw(batch, 1)
        axes = {name: dim_of(problem.plate) - problem.probe.event_dims[name] for name in drawn.dims}
        moved = {name: drawn.values[name].roll(1, axis) for name, axis in axes.items()}
        before, after = (
            problem.route.log_prior(batch, {**drawn.values, **values}, 1, tuple(axes)) for values in ({}, moved)
        )
        if not torch.allclose(after.roll(-1, 1), before, rtol=1e-4, atol=1e-3, equal_nan=True):
            raise ValueError(
                "the prior of the latents differs between data, p(z | y), so there is no KL divergence of the "
                "aggregate posterior from the prior. Pass only data with the same prior, such as the data of one "
                "label, or use pyrovae.evaluation.kl_per_dimension."
            )


def _check_unmasked(name: str, *sites: Site) -> None:
    if any(site["mask"] is not None for site in sites):
        raise ValueError(
            f"latent site {name!r} is masked, so the posteriors of some data cannot be aggregated. Remove the "
            f"data for which the mask is false, and remove the mask from model and guide."
        )


def _units(site: Site) -> Tensor:
    """Return the log-probability of each dimension of a site's value. The dimensions must be independent."""
    distribution: Any = factors(site["fn"])
    return distribution.log_prob(site["value"])


def _has_units(latents: dict[str, Site]) -> bool:
    """Return whether there is exactly one latent site and its dimensions are independent."""
    first, *others = latents.values()
    return not others and factors(first["fn"]) is not None


def _aggregate(problem: Problem, points: dict[str, Tensor], *, units: bool) -> tuple[Tensor, Tensor]:
    """Return the log-densities of the aggregate posterior, and of its marginals, at given points, nats.

    The first tensor has shape ``(points,)``. The second tensor, shape ``(points, units)``, holds the marginal
    log-density of each latent dimension (unit). If ``units`` is false, no marginals are computed, and the second tensor
    is the first tensor reshaped to ``(points, 1)``.
    """
    total, blocks = len(next(iter(points.values()))), []
    width = problem.width(64)
    for start in range(0, total, width):
        some = {name: value[start : start + width] for name, value in points.items()}
        in_all, in_units = [], []
        for batch in problem.batches(64):
            count = len(next(iter(some.values())))
            values = {
                name: value.unsqueeze(1).expand(-1, batch.size, *value.shape[1:]).movedim(1, problem.data_dim)
                for name, value in some.items()
            }
            for draws in problem.run_guide(batch, values, count):
                log_q = problem.log_density(batch, draws)
                in_all.append(log_q[:, : batch.kept])
                if units:
                    (site,) = draws.latents.values()
                    in_units.append(by_datum(problem, site, _units(site))[:, : batch.kept])
        blocks.append(_mixture(problem, in_all, in_units))
    return torch.cat([block[0] for block in blocks]), torch.cat([block[1] for block in blocks])


def _mixture(problem: Problem, in_all: list[Tensor], in_units: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Average densities over the data, and return the log-densities of the aggregate posterior and its marginals.

    Args:
        problem: Problem that has the data.
        in_all: Log-densities from the runs of the guide, one tensor for each run, shape ``(num_draws, n)``. If the
            draws of a batch are divided over several runs, these runs follow one another.
        in_units: Log-densities of each latent dimension (unit) from the same runs, shape ``(num_draws, n, units)``.
            The list may be empty.

    Returns:
        Two tensors, shapes ``(num_draws,)`` and ``(num_draws, units)``. If ``in_units`` is empty, the second tensor is
        the first as a single column.
    """
    per_batch = len(in_all) // sum(1 for _ in problem.batches(64))

    def mean(parts: list[Tensor]) -> Tensor:
        batches = [torch.cat(parts[i : i + per_batch]) for i in range(0, len(parts), per_batch)]
        return torch.cat(batches, 1).double().logsumexp(1) - math.log(problem.size)

    together = mean(in_all)
    return together, mean(in_units) if in_units else together.unsqueeze(-1)
