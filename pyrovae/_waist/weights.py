r"""Importance log-weights of a Pyro program, from which every bound and every diagnostic is computed.

For data :math:`x_n` and draws :math:`z_n^{(k)} \sim q(z \mid x_n)`,

.. math:: \log w_n^{(k)} = \log p(x_n, z_n^{(k)}) - \log q(z_n^{(k)} \mid x_n),

with one value per draw and datum. The computation has three steps:

1. :func:`pyrovae._waist.draws.run_guide` draws z;
2. :func:`pyrovae._waist.draws.run_model` runs the model at these draws;
3. :func:`weigh` sums the log-probabilities of the sites of each run, and subtracts the guide's sum from the model's.

The draws are a plate outside all plates of the program. In :func:`pyrovae._waist.summation.sum_per_datum`, the
log-probability of every site is summed over all dimensions except the draws and the data. Masked entries count as 0. If
model or guide enumerate a discrete site :math:`y`, Pyro's variable elimination sums it out exactly:

.. math:: \log w_n^{(k)} = \log \sum_y p(x_n, y, z_{n, y}^{(k)}) / q(z_{n, y}^{(k)} \mid x_n, y).

The sum is the same whether or not the guide has a posterior of y, because :math:`q(y \mid x)` does not affect it. The
mask of a site that is summed out is ignored, as in :class:`pyro.infer.TraceEnum_ELBO`, because unmasked sites that
depend on this site need its probabilities. If no site depends on the summed-out site, its probabilities sum to one, so
it does not change the log-weight. A draw outside the model's support has weight zero.

Only the model's sites and the guide's latent sites enter a log-weight. A :func:`pyro.factor` or an observed site in the
guide does not, because it is part of a training loss. By default, log-weights are not multiplied by scales. The scale
of a subsampling plate and a :func:`pyro.poutine.scale` around all sites are factors of a training loss, and are
returned together with the weights.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from pyrovae._waist.agreement import check_auxiliary, check_masks, check_measures, check_same_latents, latent_masks
from pyrovae._waist.densities import Densities, joint_density
from pyrovae._waist.draws import Draws, run_guide, run_model
from pyrovae._waist.outside import check_outside
from pyrovae._waist.plates import check_complete, data_plate, dim_of, nesting_of, plate_names
from pyrovae._waist.scales import same_scale, scale_of_data
from pyrovae._waist.scoring import masked_score
from pyrovae._waist.sites import Program, Site, is_deterministic, is_enumerated, sample_sites
from pyrovae._waist.summation import Term, device_of, sum_per_datum


class Weights(NamedTuple):
    """Log-weights, and the properties of the run that callers need.

    Attributes:
        log_weights: Log-weights, shape ``(num_draws, N)``, nats.
        scale: Factor of a datum's bound in a training loss: a number, or a tensor that broadcasts to ``(N,)``.
        plate: The data plate.
        nesting: Nesting depth of the program's own plates.
        outside: Names of the observed sites outside the data plate. Their log-probabilities are not part of a weight.
        unreparameterized: Names of the guide's latent sites that are not enumerated and have no reparameterized draws.
        densities: Likelihood, prior and guide terms of the log-weights; ``None`` if enumerated sites are summed out.
        model_sites: Sample sites of the model's run.
        guide_sites: Sample sites of the guide's run.
        chosen: Indices that subsampling plates chose, by name of the plate.
    """

    log_weights: Tensor
    scale: float | Tensor
    plate: CondIndepStackFrame
    nesting: int
    outside: tuple[str, ...]
    unreparameterized: tuple[str, ...]
    densities: Densities | None
    model_sites: list[Site]
    guide_sites: list[Site]
    chosen: dict[str, Tensor]

    @property
    def of_model(self) -> Sequence[Tensor]:
        """The model's part of the log-weights, as a sequence of tensors: the likelihood term and the prior term.

        If enumerated sites are summed out, these terms cannot be separated from the guide's term. The sequence then
        holds a single tensor, the log-weights.
        """
        return (self.log_weights,) if self.densities is None else self.densities[:2]


def importance_weights(
    model: Program,
    guide: Program,
    args: Sequence[Any],
    num_draws: int = 1,
    *,
    kwargs: Mapping[str, Any] | None = None,
    nesting: int | None = None,
    plate: str | None = None,
    for_loss: bool = False,
    values: Mapping[str, Tensor] | None = None,
    depth: int | None = None,
) -> Weights:
    """Run guide and model, and return differentiable log-weights. Pyro handlers around the call act on both programs.

    Args:
        model: Pyro program of p(x, z).
        guide: Pyro program of q(z | x).
        args: Arguments of model and guide, which include the data.
        num_draws: Number of draws of z per datum.
        kwargs: Keyword arguments of model and guide.
        nesting: Nesting depth of the program's own plates. If ``nesting`` is given, one run makes all draws, along the
            next dimension to the left of these plates. By default, the program runs once for every draw, without a
            dimension of draws.
        plate: Name of the data plate; by default the outermost plate that all latent sites share.
        for_loss: If true, the weights are part of a training loss. They then include factors and observed sites of the
            guide, and the log-probability of a site is multiplied by the site's scale (annealing). The scale of the
            data plate, or a scale that all sites share, is returned as ``scale`` instead.
        values: Values that replace draws, by name. The value of a latent site has a dimension of draws if ``nesting``
            is given. The value of a subsampling plate holds the indices of its data. A plate without a value chooses
            its data once for all draws.
        depth: Nesting depth of the program's own plates. This argument is used only if ``nesting`` is ``None``, and is
            required only if ``values`` have dimensions of enumerated sites.

    Raises:
        ValueError: If ``num_draws`` is less than 1; if model and guide disagree about their latent sites; if there is
            no data plate, or a latent site lies outside it; or if an observed value lies outside the support of its
            distribution.
    """
    if num_draws < 1:
        raise ValueError(f"the number of draws per datum must be at least 1, got {num_draws}")
    values = dict(values or {})

    def run(count: int) -> Weights:
        options: Any = {"kwargs": kwargs, "nesting": nesting, "values": values}
        draws = run_guide(guide, args, count, depth=depth, **options)
        if draws.depth is not None and nesting is None and depth is None:
            own = nesting_of(sample_sites(poutine.trace(model).get_trace(*args, **(kwargs or {}))))
            if own > draws.depth:  # the guide must enumerate to the left of the model's additional plates
                draws = run_guide(guide, args, count, depth=own, **options)
        values.update(draws.chosen)
        with_guide = draws if draws.depth is not None else None
        sites = run_model(model, args, draws.values, count, kwargs=kwargs, nesting=nesting, drawn_with=with_guide)
        return weigh(sites, draws, plate=plate, for_loss=for_loss)

    if nesting is not None:
        return run(num_draws)
    runs = [run(1) for _ in range(num_draws)]
    if num_draws == 1:
        return runs[0]
    densities = [each.densities for each in runs if each.densities is not None]
    return runs[0]._replace(
        log_weights=torch.cat([each.log_weights for each in runs]),
        densities=Densities(*map(torch.cat, zip(*densities, strict=True))) if densities else None,
    )


def weigh(model_sites: list[Site], draws: Draws, *, plate: str | None = None, for_loss: bool = False) -> Weights:
    """Return the log-weights of the guide's draws, from a run of the guide and a run of the model at these draws.

    Args:
        model_sites: Sites of the model's run at the draws, the result of :func:`pyrovae._waist.draws.run_model`.
        draws: Draws of the guide, the result of :func:`pyrovae._waist.draws.run_guide`.
        plate: Name of the data plate.
        for_loss: If true, the weights are part of a training loss; see :func:`importance_weights`.
    """
    guide_sites = draws.sites if for_loss else [site for site in draws.sites if not site["is_observed"]]
    _check(model_sites, draws.sites, for_loss=for_loss)
    sites = model_sites + guide_sites
    data = data_plate(sites, plate)
    check_outside(model_sites + (draws.sites if for_loss else []), data)
    inside = [site for site in sites if data.name in plate_names(site)]
    if not for_loss:
        check_complete(inside, data)
    first, *rest = [site["scale"] for site in inside]
    common = first if all(same_scale(first, other) for other in rest) else None

    def terms(of: list[Site]) -> list[Term]:
        scored = [(site, masked_score(site)) for site in of if data.name in plate_names(site)]
        if not for_loss or common is not None:
            return scored
        return [(site, site["scale"] * data.size / data.full_size * log_prob) for site, log_prob in scored]

    drawn = [site for site in guide_sites if not is_enumerated(site)]
    log_weights, densities = _sum(terms(model_sites), terms(drawn), draws, data)
    return Weights(
        log_weights,
        scale=(data.full_size or data.size) / data.size if common is None else scale_of_data(common, dim_of(data)),
        plate=data,
        nesting=nesting_of(sites),
        outside=tuple(site["name"] for site in model_sites + draws.sites if data.name not in plate_names(site)),
        unreparameterized=tuple(
            site["name"]
            for site in guide_sites
            if not (site["is_observed"] or is_enumerated(site) or site["fn"].has_rsample)
        ),
        densities=densities,
        model_sites=model_sites,
        guide_sites=draws.sites,
        chosen=draws.chosen,
    )


def _check(model_sites: list[Site], guide_sites: list[Site], *, for_loss: bool) -> None:
    """Check that model and guide agree, and that the model observes something."""
    check_same_latents(model_sites, guide_sites)
    check_measures(model_sites, guide_sites)
    check_masks(model_sites, latent_masks(guide_sites))
    if not for_loss:
        check_auxiliary(model_sites, guide_sites)
    if not any(site["is_observed"] and not is_deterministic(site) for site in model_sites):
        raise ValueError(
            f"the model observes nothing; its sample sites are {[site['name'] for site in model_sites]}. Observe the "
            f"data by pyro.sample(name, distribution, obs=x), and pass model and guide in this order."
        )


def _sum(
    of_model: list[Term], of_guide: list[Term], draws: Draws, data: CondIndepStackFrame
) -> tuple[Tensor, Densities | None]:
    """Return two results: the log-weights, shape ``(num_draws, N)``, nats, and their likelihood, prior and guide terms.

    The second result is None if enumerated sites are summed out.
    """
    device = device_of(of_model + of_guide)

    def total(terms: list[Term]) -> Tensor:
        return sum_per_datum(terms, draws.draws_dim, dim_of(data), device).expand(draws.num_draws, data.size)

    if draws.depth is not None:
        return total(of_model + [(site, -log_q) for site, log_q in of_guide]), None
    if any(is_enumerated(site) for site, _ in of_model):
        return total(of_model) - total(of_guide), None
    likelihood = total([term for term in of_model if term[0]["is_observed"]])
    prior = total([term for term in of_model if not term[0]["is_observed"]])
    log_q = total(of_guide)
    # Outside the support of z, the likelihood was computed at a replacement value and is meaningless.
    densities = Densities(torch.where(prior == -math.inf, 0.0, likelihood), prior, log_q)
    return joint_density(likelihood, prior) - log_q, densities
