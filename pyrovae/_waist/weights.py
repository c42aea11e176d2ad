r"""Importance log-weights of a Pyro program: the waist through which every bound and every diagnostic passes.

For data :math:`x_n` and draws :math:`z_n^{(k)} \sim q(z \mid x_n)`,

.. math:: \log w_n^{(k)} = \log p(x_n, z_n^{(k)}) - \log q(z_n^{(k)} \mid x_n),

one number per draw and datum. The route has three steps:

1. :func:`pyrovae._waist.draws.run_guide` draws z;
2. :func:`log_joint` scores the draws under the model, and :func:`log_guide` under the guide;
3. the log-weight is their difference.

The draws are a plate outside of all plates of the program. The log-probability of every site is summed over all
dimensions but the draws and the data, in :func:`pyrovae._waist.summation.sum_per_datum`. Masks are kept. A discrete
site that model or guide enumerate, :math:`y`, is summed out exactly by Pyro's variable elimination,

.. math:: \log w_n^{(k)} = \log \sum_y p(x_n, y, z_{n, y}^{(k)}) / q(z_{n, y}^{(k)} \mid x_n, y),

whether its posterior is part of the guide or not: :math:`q(y \mid x)` has no influence on the sum. A masked site that
is summed out contributes a factor of one. A draw outside of the model's support has weight zero.

Only the model's sites and the guide's latent sites belong to log p(x). A :func:`pyro.factor` or an observed site in the
guide is part of a training loss. Scales are not multiplied in: a plate's subsampling and :func:`pyro.poutine.scale`
weigh a training loss, and are returned beside the weights.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from pyrovae._waist.draws import Draws, run_guide, run_model
from pyrovae._waist.sites import (
    Program,
    Site,
    check_auxiliary,
    check_masks,
    check_measures,
    check_same_latents,
    is_enumerated,
    mask_of,
    outermost_plate,
    plate_names,
    same_scale,
    score,
    shared_plates,
    site_plates,
    sized,
)
from pyrovae._waist.summation import Term, sum_per_datum


class Densities(NamedTuple):
    r"""The three terms of a log-weight, :math:`\log w = \log p(x \mid z) + \log p(z) - \log q(z \mid x)`.

    Attributes:
        likelihood: Of the observed sites, shape ``(num_draws, N)``, nats.
        prior: Of the model's latent sites, likewise.
        guide: Of the guide's sites, likewise.
    """

    likelihood: Tensor
    prior: Tensor
    guide: Tensor


class Weights(NamedTuple):
    """Log-weights with all that callers need to know about the run.

    Attributes:
        log_weights: Shape ``(num_draws, N)``, nats.
        scale: Factor of a datum's bound in a training loss: a number, or a tensor that broadcasts to ``(N,)``.
        plate: The data plate.
        nesting: Depth of the program's own plates.
        outside: Names of the observed sites outside the data plate; their log-probability is in no datum's weight.
        unreparameterized: Names of the guide's latent sites whose draws carry no gradient, without enumerated sites.
        densities: The terms of the log-weights; ``None`` if enumerated sites are summed out.
        model_sites: Sample sites of the model's run.
        guide_sites: Sample sites of the guide's run.
        chosen: Indices that subsampling plates took, by plate.
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
) -> Weights:
    """Run guide and model, and return their log-weights, differentiable and open to Pyro's handlers.

    Args:
        model: Pyro program of p(x, z).
        guide: Pyro program of q(z | x).
        args: Arguments of both, the data among them.
        num_draws: Draws of z per datum.
        kwargs: Keyword arguments of both.
        nesting: Depth of the program's own plates. All draws are then made in one run, along the next dimension to the
            left. By default the program is run once for every draw.
        plate: Name of the data plate; by default the outermost plate that all latent sites share.
        for_loss: Whether the weights are part of a training loss. Then the scales of single sites (annealing) multiply
            their log-probabilities, and factors and observed sites of the guide count. The data plate's own factor, and
            a factor common to all sites, never multiply: they are the returned ``scale``.
        values: Values of sites by name, which replace draws: a latent site with its dimension of draws, a subsampling
            plate with the indices of its data. A plate that is not named chooses once, for all draws.

    Raises:
        ValueError: If there is no draw to make, model and guide disagree about their latent sites, there is no data
            plate, a latent site lies outside of it, or an observed value lies outside the support of its distribution.
    """
    if num_draws < 1:
        raise ValueError(f"the number of draws per datum must be at least 1, got {num_draws}")
    values = dict(values or {})

    def run(count: int) -> Weights:
        draws = run_guide(guide, args, count, kwargs=kwargs, nesting=nesting, values=values)
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
    """Sum the log-probabilities of a run of the guide and a run of the model to log-weights.

    Args:
        model_sites: What :func:`pyrovae._waist.draws.run_model` returned at these draws.
        draws: What :func:`pyrovae._waist.draws.run_guide` returned.
        plate: Name of the data plate.
        for_loss: As for :func:`importance_weights`.
    """
    guide_sites = draws.sites if for_loss else [site for site in draws.sites if not site["is_observed"]]
    check_same_latents(model_sites, draws.sites)
    check_measures(model_sites, draws.sites)
    check_masks(model_sites, draws.sites)
    if not for_loss:
        check_auxiliary(model_sites, draws.sites)
    sites = model_sites + guide_sites
    if not any(site["is_observed"] for site in model_sites):
        raise ValueError(
            f"the model observes nothing, it samples {[site['name'] for site in model_sites]}; pass the data with "
            f"pyro.sample(name, distribution, obs=x), and model and guide in this order"
        )
    data = data_plate(sites, plate)
    inside = [site for site in sites if data.name in plate_names(site)]
    if not for_loss:
        _check_complete(inside, data)
    first, *rest = [site["scale"] for site in inside]
    common = first if all(same_scale(first, other) for other in rest) else None

    def term(site: Site) -> Term:
        if not for_loss or common is not None:
            return site, masked_score(site)
        return site, site["scale"] * data.size / data.full_size * masked_score(site)

    shape = draws.num_draws, data.size
    densities = None
    names = {id(site) for site in inside}
    of_model = [term(site) for site in model_sites if id(site) in names]
    of_guide = [term(site) for site in guide_sites if id(site) in names and not is_enumerated(site)]
    if any(map(is_enumerated, guide_sites)):
        terms = of_model + [(site, -log_q) for site, log_q in of_guide]
        log_weights = sum_per_datum(terms, draws.draws_dim, _dim(data)).expand(shape)
    elif any(map(is_enumerated, model_sites)):
        joint, log_q = (
            sum_per_datum(terms, draws.draws_dim, _dim(data)).expand(shape) for terms in (of_model, of_guide)
        )
        log_weights = joint - log_q
    else:
        likelihood, prior, log_q = (
            sum_per_datum(terms, draws.draws_dim, _dim(data)).expand(shape)
            for terms in (
                [term for term in of_model if term[0]["is_observed"]],
                [term for term in of_model if not term[0]["is_observed"]],
                of_guide,
            )
        )
        # Outside of the support of z, the likelihood is that of a value in its place, and says nothing.
        densities = Densities(torch.where(prior == -math.inf, 0.0, likelihood), prior, log_q)
        log_weights = joint_density(likelihood, prior) - log_q
    return Weights(
        log_weights,
        scale=(data.full_size or data.size) / data.size if common is None else _of_data(common, _dim(data)),
        plate=data,
        nesting=max((-frame.dim for site in sites for frame in site_plates(site)), default=0),
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


def log_joint(
    model: Program,
    args: Sequence[Any],
    values: Mapping[str, Tensor],
    num_draws: int,
    *,
    plate: CondIndepStackFrame,
    nesting: int | None,
    kwargs: Mapping[str, Any] | None = None,
) -> Tensor:
    """Run the model at values of its latent sites and return log p(x, z), shape ``(num_draws, N)``, nats.

    For programs whose guide enumerates nothing and that have passed the checks of :func:`importance_weights`.

    Args:
        model: Pyro program of p(x, z).
        args: Its arguments.
        values: Values of the latent sites and indices of subsampling plates, by name.
        num_draws: Number of draws in the values.
        plate: The data plate, with the number of data in the arguments as its size.
        nesting: Depth of the program's own plates, or ``None`` for values without a dimension of draws.
        kwargs: Its keyword arguments.
    """
    sites = run_model(model, args, values, num_draws, kwargs=kwargs, nesting=nesting)
    inside = [site for site in sites if plate.name in plate_names(site)]
    draws_dim = None if nesting is None else -nesting - 1
    terms = [(site, masked_score(site)) for site in inside]
    if any(map(is_enumerated, inside)):
        return sum_per_datum(terms, draws_dim, _dim(plate)).expand(num_draws, plate.size)
    likelihood, prior = (
        sum_per_datum([term for term in terms if term[0]["is_observed"] == observed], draws_dim, _dim(plate))
        for observed in (True, False)
    )
    return joint_density(likelihood, prior).expand(num_draws, plate.size)


def log_guide(draws: Draws, plate: CondIndepStackFrame) -> Tensor:
    """Return log q(z | x) of the draws of a guide that enumerates nothing, shape ``(num_draws, N)``, nats."""
    latents = [site for site in draws.latents.values() if plate.name in plate_names(site)]
    terms = [(site, masked_score(site)) for site in latents]
    return sum_per_datum(terms, draws.draws_dim, _dim(plate)).expand(draws.num_draws, plate.size)


def joint_density(likelihood: Tensor, prior: Tensor) -> Tensor:
    """Add log p(x | z) and log p(z); the sum is -inf outside of the support of z, whatever the likelihood is there."""
    return torch.where(prior == -math.inf, prior, likelihood + prior)


def masked_score(site: Site) -> Tensor:
    """Return the log-probability of a site with its mask, in its batch shape, nats.

    A masked site that is summed out is uniform over its values, so that the sum is a factor of one.
    """
    log_prob = score(site)
    if not is_enumerated(site) or "_enumerate_dim" not in site["infer"] or (mask := mask_of(site)) is True:
        return scale_and_mask(log_prob, mask=site["mask"])
    size = site["value"].shape[site["infer"]["_enumerate_dim"] - site["fn"].event_dim]
    return torch.where(torch.as_tensor(mask), log_prob, log_prob.new_full((), -math.log(size)))


def data_plate(sites: list[Site], name: str | None) -> CondIndepStackFrame:
    """Return the plate of that name, or the outermost one that all latent sites share.

    Raises:
        ValueError: If there is none, or a latent site lies outside of it.
    """
    latents = [site for site in sites if not site["is_observed"]]
    if name is None:
        shared = shared_plates(latents or sites)
        if not shared and len(latents) == len(sites):
            raise ValueError(
                f"latent sites {[site['name'] for site in latents]} share no plate; name the data plate with plate="
            )
        data = shared[0] if shared else outermost_plate([site for site in sites if site["is_observed"]])
    else:
        plates = {frame.name: frame for site in sites for frame in site_plates(site)}
        if name not in plates:
            raise ValueError(f"there is no vectorized plate {name!r} in the program, which has {sorted(plates)}")
        data = plates[name]
    _check_same_plate(data, sites)
    for site in latents:
        if data.name not in plate_names(site):
            raise ValueError(
                f"latent site {site['name']!r} lies outside the data plate {data.name!r}, so the data are not "
                f"independent and no datum has a weight of its own; average over draws of it "
                f"(pyrovae.evaluation.evaluate_globals), condition on it "
                f"(pyro.condition(model, data={{{site['name']!r}: value}}), and leave it out of the guide), "
                f"or name another plate with plate=; if it has a plate, give that the same name, size and dim in model "
                f"and guide"
            )
    return sized(data, sites)


def _check_same_plate(data: CondIndepStackFrame, sites: list[Site]) -> None:
    """Refuse a data plate that has another size or dimension in another place."""
    for site in sites:
        for frame in site_plates(site):
            if frame.name == data.name and (frame.dim, frame.size) != (data.dim, data.size):
                raise ValueError(
                    f"plate {data.name!r} has size {data.size} and dim {data.dim} in one place and size {frame.size} "
                    f"and dim {frame.dim} at site {site['name']!r}; declare it alike in model and guide"
                )


def _dim(plate: CondIndepStackFrame) -> int:
    assert plate.dim is not None
    return plate.dim


def _check_complete(sites: list[Site], data: CondIndepStackFrame) -> None:
    """Refuse plates inside the data plate that leave something out: then log p(x) is not known."""
    for site in sites:
        for frame in site_plates(site):
            if frame.name != data.name and frame.size != frame.full_size:
                raise ValueError(
                    f"plate {frame.name!r} of site {site['name']!r} takes {frame.size} of {frame.full_size} inside the "
                    f"data plate {data.name!r}, so a datum is scored in part; evaluate a program that takes all of it"
                )


def _of_data(scale: float | Tensor, data_dim: int) -> float | Tensor:
    """Return a scale as a number, or as a tensor of shape ``(N,)`` if it depends on the datum."""
    if not isinstance(scale, Tensor):
        return scale
    if scale.numel() == 1:
        return scale.reshape(())
    if scale.ndim < -data_dim or scale.numel() != scale.shape[data_dim]:
        raise ValueError(
            f"a scale of shape {tuple(scale.shape)}, common to all sites, varies over more than the data, which are at "
            f"dimension {data_dim}; scale by a number, or by one number per datum"
        )
    return scale.reshape(-1)
