"""One run of a guide and its model, as they are: no dimension of draws, nothing enumerated."""

from collections.abc import Sequence
from typing import Any

import pyro
from pyro import poutine
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from pyrovae._waist.agreement import check_same_latents
from pyrovae._waist.errors import explained_divergence
from pyrovae._waist.plates import outermost_plate, plate_names, site_plates
from pyrovae._waist.scoring import score
from pyrovae._waist.sites import Program, Site, sample_sites


def trace(model: Program, guide: Program, args: Sequence[Any], kwargs: Any = None) -> tuple[list[Site], list[Site]]:
    """Run the guide, then the model at its draws, and return the sample sites of model and guide."""
    with explained_divergence():
        guide_trace = poutine.trace(guide).get_trace(*args, **(kwargs or {}))
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **(kwargs or {}))
    return sample_sites(model_trace), sample_sites(guide_trace)


def check_program(model: Program, guide: Program, args: Sequence[Any]) -> CondIndepStackFrame:
    """Run guide and model once with validation, and return the outermost plate of the observed sites.

    Latent sites outside of that plate, and sites that the model enumerates, are no error in a program to be trained.

    Raises:
        ValueError: If model and guide disagree about their latent sites, if no plate holds the observed sites, or if a
            value lies outside the support of its distribution.
    """
    with pyro.validation_enabled():
        model_sites, guide_sites = trace(model, guide, args)
        check_same_latents(model_sites, guide_sites)
        for site in model_sites + guide_sites:
            score(site)
    observed = [site for site in model_sites if site["is_observed"]]
    return outermost_plate([site for site in observed if site_plates(site)] or observed)


def global_draws(
    model: Program, guide: Program, args: Sequence[Any], kwargs: Any = None, *, plate: str | None = None
) -> dict[str, Tensor]:
    """Draw the latent sites that lie outside of the data plate, and the auxiliary sites of the guide there.

    Raises:
        ValueError: If all latent sites lie inside.
    """
    model_sites, guide_sites = trace(model, guide, args, kwargs)
    name = plate or outermost_plate([site for site in model_sites if site["is_observed"] and site_plates(site)]).name
    latents = [site for site in guide_sites if not site["is_observed"]]
    outside = [site for site in latents if name not in plate_names(site)]
    of_model = [site["name"] for site in model_sites if not site["is_observed"]]
    if not any(site["name"] in of_model for site in outside):
        raise ValueError(
            f"all latent sites, {of_model}, lie inside the data plate {name!r}; there is no "
            f"global latent to average over: use pyrovae.evaluation.evaluate"
        )
    return {site["name"]: site["value"].detach() for site in outside}
