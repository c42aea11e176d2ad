r"""Importance log-weights of a Pyro program: the waist through which every bound and every diagnostic passes.

For data :math:`x_n` and draws :math:`z_n^{(k)} \sim q(z \mid x_n)`,

.. math:: \log w_n^{(k)} = \log p(x_n, z_n^{(k)}) - \log q(z_n^{(k)} \mid x_n),

one number per draw and per datum. The draws are a plate outside all plates of the program; the log-probability of every
site is summed over all dimensions but the draws and the data. Masks are kept. A discrete site that model or guide
enumerate, :math:`y`, is summed out exactly, by Pyro's variable elimination,

.. math:: \log w_n^{(k)} = \log \sum_y p(x_n, y, z_{n, y}^{(k)}) / q(z_{n, y}^{(k)} \mid x_n, y),

whether its posterior is part of the guide or not: :math:`q(y \mid x)` has no influence on it. Scales are not multiplied
in: a plate's subsampling and :func:`pyro.poutine.scale` weigh a training loss, and are returned beside the weights.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from pyrovae._waist.draws import Given, with_draws
from pyrovae._waist.sites import (
    Program,
    Site,
    check_same_latents,
    is_enumerated,
    outermost_plate,
    same_scale,
    score,
    shared_plates,
    site_plates,
    trace,
)
from pyrovae._waist.summation import add_up


class Densities(NamedTuple):
    r"""The three terms of a log-weight, :math:`\log w = \log p(x \mid z) + \log p(z) - \log q(z \mid x)`.

    Attributes:
        likelihood: Of the observed sites, shape ``(num_samples, N)``, nats.
        prior: Of the model's latent sites, likewise.
        guide: Of the guide's sites, likewise.
    """

    likelihood: Tensor
    prior: Tensor
    guide: Tensor


class Weights(NamedTuple):
    """Log-weights and what they came with.

    Attributes:
        log_weights: Shape ``(num_samples, N)``, nats.
        scale: What a datum's bound counts in a training loss: a number, or a tensor that broadcasts to ``(N,)``.
        plate: The data plate.
        nesting: Depth of the program's own plates.
        outside: Names of the observed sites outside the data plate; their log-probability is in no datum's weight.
        unreparameterized: Names of the guide's latent sites whose draws carry no gradient.
        densities: The terms of the log-weights; ``None`` where enumerated sites are summed out of them.
        base_measures: What the observed sites' log-probabilities are of: ``"counting"`` or ``"Lebesgue"``, by site.
    """

    log_weights: Tensor
    scale: float | Tensor
    plate: CondIndepStackFrame
    nesting: int
    outside: tuple[str, ...]
    unreparameterized: tuple[str, ...]
    densities: Densities | None
    base_measures: Mapping[str, str]


def importance_weights(
    model: Program,
    guide: Program,
    args: Sequence[Any],
    num_samples: int = 1,
    *,
    kwargs: Mapping[str, Any] | None = None,
    nesting: int | None = None,
    plate: str | None = None,
    tempered: bool = False,
    values: Mapping[str, Tensor] | None = None,
) -> Weights:
    """Runs guide and model, and returns their log-weights, differentiable and open to Pyro's handlers.

    Args:
        model: Pyro program of p(x, z).
        guide: Pyro program of q(z | x).
        args: Arguments of both, the data among them.
        num_samples: Draws of z per datum.
        kwargs: Keyword arguments of both.
        nesting: Depth of the program's own plates. All draws are then made in one run, along the next dimension to the
            left. By default the program is run once for every draw.
        plate: Name of the data plate; by default the outermost plate that all latent sites share.
        tempered: Whether the scales of single sites (annealing) multiply their log-probabilities. The data plate's own
            factor, and a factor common to all sites, never do: they are the returned ``scale``.
        values: What sites are to take instead of a draw, by name: a latent site a value, with its dimension of draws, a
            subsampling plate the indices of its data. A plate that is not named chooses once, for all draws.

    Raises:
        ValueError: If there is no draw to make, model and guide disagree about their latent sites, there is no data
            plate, a latent site lies outside it, or a value lies outside the support of its distribution.
    """
    if num_samples < 1:
        raise ValueError(f"the number of draws per datum must be at least 1, got {num_samples}")
    given = Given(values or {})
    model, guide = given(model), given(guide)
    if nesting is None:
        runs = [_run(model, guide, args, kwargs or {}, plate, tempered) for _ in range(num_samples)]
        densities = [run.densities for run in runs if run.densities is not None]
        return runs[0]._replace(
            log_weights=torch.cat([run.log_weights for run in runs]),
            densities=Densities(*map(torch.cat, zip(*densities, strict=True))) if densities else None,
        )
    model, guide = (with_draws(program, num_samples, nesting) for program in (model, guide))
    weights = _run(model, guide, args, kwargs or {}, plate, tempered, draws_dim=-nesting - 1)
    terms = weights.densities
    return weights._replace(
        log_weights=weights.log_weights.expand(num_samples, -1),
        densities=None if terms is None else Densities(*(term.expand(num_samples, -1) for term in terms)),
        nesting=nesting,
    )


def _run(
    model: Program,
    guide: Program,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    plate: str | None,
    tempered: bool,
    draws_dim: int | None = None,
) -> Weights:
    """Runs guide and model, and sums their sites' log-probabilities per datum."""
    model_sites, guide_sites = trace(model, guide, args, kwargs, depth=None if draws_dim is None else -draws_dim)
    if draws_dim is None and any(map(is_enumerated, model_sites + guide_sites)):
        depth = -min((frame.dim for site in model_sites + guide_sites for frame in site_plates(site)), default=0)
        model_sites, guide_sites = trace(model, guide, args, kwargs, depth=depth)
    check_same_latents(model_sites, guide_sites)
    sites = model_sites + guide_sites
    if not any(site["is_observed"] for site in model_sites):
        raise ValueError(
            f"the model observes nothing, it samples {[site['name'] for site in model_sites]}; pass the data with "
            f"pyro.sample(name, distribution, obs=x), and model and guide in this order"
        )
    data = _data_plate(sites, plate)
    inside = [data in site["cond_indep_stack"] for site in sites]
    if not tempered:
        _check_complete(sites, data)
    first, *rest = [site["scale"] for site, is_inside in zip(sites, inside, strict=True) if is_inside]
    common = first if all(same_scale(first, other) for other in rest) else None
    terms: dict[str, list[tuple[Site, Tensor]]] = {name: [] for name in Densities._fields}
    for i, site in enumerate(sites):
        in_model = i < len(model_sites)
        if inside[i] and (in_model or not is_enumerated(site)):
            temper = site["scale"] * data.size / data.full_size if tempered and common is None else 1.0
            term = scale_and_mask(score(site), temper, site["mask"])
            role = ("likelihood" if site["is_observed"] else "prior") if in_model else "guide"
            terms[role].append((site, term if in_model else -term))
    densities = None
    if any(map(is_enumerated, sites)):
        log_weights = add_up([term for role in terms.values() for term in role], draws_dim, data.dim)
    else:
        likelihood, prior, minus_guide = (add_up(role, draws_dim, data.dim) for role in terms.values())
        log_weights = prior + likelihood + minus_guide
        shape = len(log_weights), data.size
        densities = Densities(likelihood.expand(shape), prior.expand(shape), -minus_guide.expand(shape))
    return Weights(
        log_weights.expand(-1, data.size),
        scale=data.full_size / data.size if common is None else _of_data(common, data.dim),
        plate=data,
        nesting=-min(frame.dim for site in sites for frame in site_plates(site)),
        outside=tuple(site["name"] for site, is_inside in zip(sites, inside, strict=True) if not is_inside),
        unreparameterized=tuple(
            site["name"] for site in guide_sites if not (site["is_observed"] or site["fn"].has_rsample)
        ),
        densities=densities,
        base_measures={site["name"]: _base_measure(site["fn"]) for site in model_sites if site["is_observed"]},
    )


def _base_measure(distribution: Any) -> str:
    """What a log-probability is of: a probability of points, or a density."""
    try:
        return "counting" if distribution.support.is_discrete else "Lebesgue"
    except NotImplementedError:  # torch's distributions need not name their support
        return "unknown"


def _data_plate(sites: list[Site], name: str | None) -> Any:
    """The plate called so, or the outermost one that all latent sites share."""
    latents = [site for site in sites if not site["is_observed"]]
    if name is None:
        shared = shared_plates(latents or sites)
        data = shared[0] if shared else outermost_plate([site for site in sites if site["is_observed"]])
    else:
        plates = {frame.name: frame for site in sites for frame in site_plates(site)}
        if name not in plates:
            raise ValueError(f"there is no vectorized plate {name!r} in the program, which has {sorted(plates)}")
        data = plates[name]
    for site in latents:
        if data not in site["cond_indep_stack"]:
            raise ValueError(
                f"latent site {site['name']!r} lies outside the data plate {data.name!r}, so the data are not "
                f"independent and no datum has a weight of its own; average over draws of it "
                f"(pyrovae.evaluation.evaluate_globals), condition on it "
                f"(pyro.condition(model, data={{{site['name']!r}: value}}), and leave it out of the guide), "
                f"or name another plate with plate=; if it has a plate, give that the same name, size and dim in model "
                f"and guide"
            )
    return data


def _check_complete(sites: list[Site], data: CondIndepStackFrame) -> None:
    """Refuses plates inside the data plate that leave something out: then log p(x) is not known."""
    for site in (site for site in sites if data in site["cond_indep_stack"]):
        for frame in site_plates(site):
            if frame != data and frame.size != frame.full_size:
                raise ValueError(
                    f"plate {frame.name!r} of site {site['name']!r} takes {frame.size} of {frame.full_size} inside the "
                    f"data plate {data.name!r}, so a datum is scored in part; evaluate a program that takes all of it"
                )


def _of_data(scale: float | Tensor, data_dim: int) -> float | Tensor:
    """A scale as a number, or as a tensor of shape ``(N,)`` if it depends on the datum."""
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
