"""Checks that the latent sites of a model and its guide agree in their names, base measures and masks."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from pyrovae._waist.errors import ProgramError
from pyrovae._waist.scoring import entry_mask
from pyrovae._waist.sites import Site, is_enumerated, is_point
from pyrovae._waist.support import coordinates, measure


def check_same_latents(model_sites: list[Site], guide_sites: list[Site]) -> None:
    """Check that model and guide have the same latent sites, except for enumerated and auxiliary sites.

    Raises:
        ValueError: If a latent site is missing in model or guide; if a site requests ``num_samples`` parallel samples;
            or if a guide without auxiliary sites puts all mass of a site on a point, but the model does not.
    """
    for site in filter(is_enumerated, model_sites + guide_sites):
        if site["infer"].get("num_samples") is not None:
            raise ValueError(
                f"latent site {site['name']!r} requests {site['infer']['num_samples']} parallel samples, which do not "
                f"sum out the site. Use infer={{'enumerate': 'parallel'}} without num_samples, or omit both options to "
                f"sample the site."
            )
    _check_points(model_sites, guide_sites)
    in_model = {site["name"] for site in model_sites if not (site["is_observed"] or is_enumerated(site))}
    in_guide = {site["name"] for site in guide_sites if not site["is_observed"]}
    auxiliary = {site["name"] for site in guide_sites if site["infer"].get("is_auxiliary")}
    in_model |= in_guide & {site["name"] for site in model_sites if is_enumerated(site)}
    if missing := sorted(in_model - in_guide):
        raise ValueError(
            f"latent site {missing[0]!r} is in the model but not in the guide, which has {sorted(in_guide)}. Sample it "
            f"in the guide under the same name, or observe it."
        )
    if surplus := sorted(in_guide - in_model - auxiliary):
        raise ValueError(
            f"latent site {surplus[0]!r} is in the guide but not in the model, which has {sorted(in_model)}. Sample "
            f"the site in the model under the same name. If the guide computes the values of its other sites from this "
            f"site, mark the site with infer={{'is_auxiliary': True}}."
        )


def _check_points(model_sites: list[Site], guide_sites: list[Site]) -> None:
    """Raise ValueError if the guide puts all mass of a site on a point, but the model does not.

    If the guide has auxiliary sites, nothing is checked here; see :func:`check_auxiliary`.
    """
    if any(site["infer"].get("is_auxiliary") for site in guide_sites):
        return  # an autoguide computes such points from its auxiliary site
    of_model = {site["name"]: site["fn"] for site in model_sites if not site["is_observed"]}
    for site in guide_sites:
        at_point = is_point(site["fn"]) and not is_point(of_model.get(site["name"], site["fn"]))
        if at_point and not site["is_observed"]:
            raise ValueError(
                f"the guide puts all mass of latent site {site['name']!r} on a point, a maximum a posteriori estimate, "
                f"so its draws have no density and no weights. Sample the site in the guide, or condition the model on "
                f"its value."
            )


def check_auxiliary(model_sites: list[Site], guide_sites: list[Site]) -> None:
    """Check that auxiliary sites of the guide are the noise from which the guide computes its other sites.

    An autoguide samples one auxiliary vector and computes the values of all latent sites from this vector. Each latent
    site then has a ``Delta`` distribution. Another guide may sample an auxiliary vector, and then sample the latent
    sites at random, conditional on the vector. In this case, log q contains the density of the vector in addition to
    the densities of the latent sites. The model has no counterpart of the vector's density, so the mean weight is not
    p(x), and can be infinite.

    Raises:
        ValueError: If there are auxiliary sites that are not in the model, and they do not have the same number of
            coordinates as the ``Delta`` sites that are computed from them.
    """
    in_model = {site["name"]: site for site in model_sites}
    alone = [s for s in guide_sites if s["infer"].get("is_auxiliary") and s["name"] not in in_model]
    points = [site for site in guide_sites if site["name"] in in_model and is_point(site["fn"])]
    free = sum(site["value"].numel() for site in alone)
    bound = sum(coordinates(in_model[site["name"]]["fn"], site["value"]) for site in points)
    if alone and free > bound:
        raise ValueError(
            f"auxiliary site {alone[0]['name']!r} of the guide has no counterpart in the model, so the mean of the "
            f"importance weights is not p(x). Sample the site in the model too, conditional on the other latent sites, "
            f"or remove the site from the guide."
        )
    if alone and free < bound:
        raise ValueError(
            f"the auxiliary sites of the guide, such as {alone[0]['name']!r}, have {free} entries, but {bound} entries "
            f"of the latent sites {[site['name'] for site in points]} are computed as points, so these have no "
            f"density. Sample {bound} auxiliary entries."
        )


def check_measures(model_sites: list[Site], guide_sites: list[Site]) -> None:
    """Check that densities of model and guide refer to the same measure, so that their ratio is a weight.

    Raises:
        ValueError: If only one of the two densities is discrete, if only one is a density on a surface such as the
            simplex, or if one is a density of angles and the other a density of real numbers.
    """
    of_model = {site["name"]: site["fn"] for site in model_sites if not site["is_observed"]}
    for site in guide_sites:
        other, name = of_model.get(site["name"]), site["name"]
        if site["is_observed"] or other is None or is_point(site["fn"]) or is_point(other):
            continue
        kinds = measure(site["fn"]), measure(other)
        if None in kinds or kinds[0] == kinds[1]:
            continue
        if set(kinds) <= {"interval", "Lebesgue"} or set(kinds) == {"interval", "angle"}:
            continue
        words = {"counting": "discrete", "Lebesgue": "a density on real numbers", "angle": "a density of angles"}
        drawn, scored = (words.get(kind or "", f"a density on the {kind}") for kind in kinds)
        raise ValueError(
            f"latent site {name!r} is {drawn} in the guide ({type(site['fn']).__name__}), but {scored} in the model "
            f"({type(other).__name__}), so the ratio of the two densities is not an importance weight. Give the site "
            f"the same support in guide and model."
        )


def latent_masks(sites: list[Site]) -> dict[str, Any]:
    """Return a dictionary from the name of each masked latent site to its mask.

    A mask broadcasts to the shape of the site's value.
    """
    latents = [site for site in sites if not (site["is_observed"] or is_enumerated(site))]
    masks = {site["name"]: entry_mask(site) for site in latents}
    return {name: mask for name, mask in masks.items() if mask is not True}


def check_masks(model_sites: list[Site], masks: Mapping[str, Any]) -> None:
    """Check that the latent sites of a model are masked as in the guide.

    An entry that is masked in model and guide is left out of the weight. If only one of the two programs masks an
    entry, the density of this entry in the other program has no counterpart in the weight.

    Args:
        model_sites: Sites of a run of the model.
        masks: Masks of the guide's sites, as returned by :func:`latent_masks`.

    Raises:
        ProgramError: If the masks differ.
    """
    for site in model_sites:
        if site["is_observed"] or is_enumerated(site) or _is_same(entry_mask(site), masks.get(site["name"], True)):
            continue
        raise ProgramError(
            f"latent site {site['name']!r} has different masks in guide and model. If only one program masks an entry, "
            f"the density of this entry in the other program has no counterpart in the log-weight. Use the same mask "
            f"in guide and model, pyro.poutine.mask(mask=...)."
        )


def _is_same(first: Any, second: Any) -> bool:
    if first is second or get_proxy_mode() is not None:  # masks have no values while a graph is traced
        return True
    first, second = map(torch.as_tensor, (first, second))
    return torch.equal(*torch.broadcast_tensors(first, second.to(first.device)))
