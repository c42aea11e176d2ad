"""Single runs of a guide and its model, without a dimension of draws and without enumeration."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import pyro
from pyro import poutine
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from pyrovae._waist.agreement import check_same_latents
from pyrovae._waist.changes_in_place import ChangesInPlace
from pyrovae._waist.errors import explained_divergence
from pyrovae._waist.plates import check_packing, outermost_plate, plate_names, site_plates
from pyrovae._waist.scoring import score
from pyrovae._waist.sites import Program, Site, is_deterministic, sample_sites


def trace(model: Program, guide: Program, args: Sequence[Any], kwargs: Any = None) -> tuple[list[Site], list[Site]]:
    """Run the guide, run the model at the guide's draws, and return two lists: the sample sites of model and guide."""
    with explained_divergence():
        with ChangesInPlace():
            guide_trace = poutine.trace(guide).get_trace(*args, **(kwargs or {}))
        with ChangesInPlace():
            model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **(kwargs or {}))
    return sample_sites(model_trace), sample_sites(guide_trace)


def check_program(model: Program, guide: Program, args: Sequence[Any]) -> CondIndepStackFrame:
    """Run guide and model once with validation, and return the outermost plate of the observed sites.

    No error is raised for latent sites outside this plate, or for sites that the model enumerates, because programs
    with such sites can be trained.

    Raises:
        ValueError: If model and guide disagree about their latent sites, if no plate holds the observed sites, or if a
            value lies outside the support of its distribution.
    """
    with pyro.validation_enabled():
        model_sites, guide_sites = trace(model, guide, args)
        check_same_latents(model_sites, guide_sites)
        for site in model_sites + guide_sites:
            score(site, strict=True)
    observed = [site for site in model_sites if site["is_observed"] and not is_deterministic(site)]
    return outermost_plate([site for site in observed if site_plates(site)] or observed)


class GlobalDraw(NamedTuple):
    """One draw of the latent sites outside the data plate (global latents).

    Attributes:
        values: Values of the global latent sites that model and guide share, by name.
        outside: Names of all latent sites of the guide outside the data plate, including auxiliary sites.
        plate: Name of the data plate.
    """

    values: dict[str, Tensor]
    outside: list[str]
    plate: str


def global_draws(
    model: Program, guide: Program, args: Sequence[Any], kwargs: Any = None, *, plate: str | None = None
) -> GlobalDraw:
    """Run guide and model once, and return the draw of the latent sites that lie outside the data plate.

    Raises:
        ValueError: If all latent sites lie inside the data plate, or if the guide draws the latents of all data as one
            vector.
    """
    model_sites, guide_sites = trace(model, guide, args, kwargs)
    observed = [site for site in model_sites if site["is_observed"] and not is_deterministic(site)]
    name = plate or outermost_plate([site for site in observed if site_plates(site)]).name
    of_model = {site["name"] for site in model_sites if not site["is_observed"]}
    check_packing([site for site in model_sites + guide_sites if not site["is_observed"]], name)
    latents = [site for site in guide_sites if site["name"] in of_model]
    outside = [site for site in latents if name not in plate_names(site)]
    if not outside:
        raise ValueError(
            f"all latent sites, {[site['name'] for site in latents]}, lie inside the data plate {name!r}, so there is "
            f"no global latent to average over. Use pyrovae.evaluation.evaluate."
        )
    own = [site["name"] for site in guide_sites if not site["is_observed"] and name not in plate_names(site)]
    return GlobalDraw({site["name"]: site["value"].detach() for site in outside}, own, name)
