"""Checks that a model and its guide agree about their latent sites: names, points, measures, masks."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from pyrovae._waist.errors import ProgramError
from pyrovae._waist.scoring import entry_mask
from pyrovae._waist.sites import Site, is_enumerated, is_point
from pyrovae._waist.support import coordinates, measure


def check_same_latents(model_sites: list[Site], guide_sites: list[Site]) -> None:
    """Check that model and guide have the same latent sites, except for enumerated and auxiliary ones.

    Raises:
        ValueError: If a latent site is missing in either, a site asks for parallel draws, the guide has no density, or
            an auxiliary site of the guide has no counterpart.
    """
    for site in filter(is_enumerated, model_sites + guide_sites):
        if site["infer"].get("num_samples") is not None:
            raise ValueError(
                f"latent site {site['name']!r} asks for {site['infer']['num_samples']} parallel samples, which is not "
                f"a sum over its values; enumerate it, infer={{'enumerate': 'parallel'}}, or draw it"
            )
    _check_points(model_sites, guide_sites)
    in_model = {site["name"] for site in model_sites if not (site["is_observed"] or is_enumerated(site))}
    in_guide = {site["name"] for site in guide_sites if not site["is_observed"]}
    auxiliary = {site["name"] for site in guide_sites if site["infer"].get("is_auxiliary")}
    in_model |= in_guide & {site["name"] for site in model_sites if is_enumerated(site)}
    if missing := sorted(in_model - in_guide):
        raise ValueError(
            f"latent site {missing[0]!r} is in the model but not in the guide, which has {sorted(in_guide)}; "
            f"sample it in the guide under the same name, or observe it"
        )
    if surplus := sorted(in_guide - in_model - auxiliary):
        raise ValueError(
            f"latent site {surplus[0]!r} is in the guide but not in the model, which has {sorted(in_model)}; "
            f"sample it in the model under the same name, or mark it with infer={{'is_auxiliary': True}}"
        )


def _check_points(model_sites: list[Site], guide_sites: list[Site]) -> None:
    """Refuse a guide that puts all mass on a point where the model has a density, and draws nothing else."""
    if any(site["infer"].get("is_auxiliary") for site in guide_sites):
        return  # an autoguide computes such points from its auxiliary draw
    of_model = {site["name"]: site["fn"] for site in model_sites if not site["is_observed"]}
    for site in guide_sites:
        given = site["is_observed"] or site["infer"].get("_pyrovae_given")
        if not given and is_point(site["fn"]) and not is_point(of_model.get(site["name"], site["fn"])):
            raise ValueError(
                f"the guide puts all mass of latent site {site['name']!r} on a point, a maximum a posteriori estimate, "
                f"so its draws have no density and no weights; sample it, or condition the model on its value"
            )


def check_auxiliary(model_sites: list[Site], guide_sites: list[Site]) -> None:
    """Check that auxiliary sites of the guide are the noise from which its other sites are computed.

    An autoguide draws one auxiliary vector and computes every latent site from it, as a point. A vector that leaves
    latent sites random has a density of its own in log q, which nothing in the model matches: then the mean weight is
    not p(x), and can be infinite.

    Raises:
        ValueError: If auxiliary sites have not as many entries as the points that are computed from them.
    """
    in_model = {site["name"]: site for site in model_sites}
    alone = [s for s in guide_sites if s["infer"].get("is_auxiliary") and s["name"] not in in_model]
    points = [site for site in guide_sites if site["name"] in in_model and is_point(site["fn"])]
    free = sum(site["value"].numel() for site in alone)
    bound = sum(coordinates(in_model[site["name"]]["fn"], site["value"]) for site in points)
    if alone and free > bound:
        raise ValueError(
            f"auxiliary site {alone[0]['name']!r} of the guide has no counterpart in the model, so the mean of the "
            f"importance weights is not p(x); sample it in the model too, from a density given the other latent sites, "
            f"or leave it out of the guide"
        )
    if alone and free < bound:
        raise ValueError(
            f"auxiliary site {alone[0]['name']!r} of the guide has {free} entries in all, and {bound} of the latent "
            f"sites {[site['name'] for site in points]} are computed as points, so these have no density; sample as "
            f"many entries as there are"
        )


def check_measures(model_sites: list[Site], guide_sites: list[Site]) -> None:
    """Check that densities of model and guide refer to the same measure, so that their ratio is a weight.

    Raises:
        ValueError: If one is discrete and the other is not, one lies on a surface such as the simplex, or one is of
            angles and the other of all real numbers.
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
            f"latent site {name!r} is {drawn} in the guide, {type(site['fn']).__name__}, and {scored} in the model, "
            f"{type(other).__name__}, so their ratio is no importance weight; give both the same support"
        )


def latent_masks(sites: list[Site]) -> dict[str, Any]:
    """Return the masks of latent sites by name, in the shape of their values, without sites of which all counts."""
    latents = [site for site in sites if not (site["is_observed"] or is_enumerated(site))]
    masks = {site["name"]: entry_mask(site) for site in latents}
    return {name: mask for name, mask in masks.items() if mask is not True}


def check_masks(model_sites: list[Site], masks: Mapping[str, Any]) -> None:
    """Check that the latent sites of a model are masked as in the guide.

    Where both are masked, the site is left out of the weight. If only one is, its density has no counterpart.

    Args:
        model_sites: Sites of a run of the model.
        masks: Masks of the guide's sites, as :func:`latent_masks` returns them.

    Raises:
        ProgramError: If the masks differ.
    """
    for site in model_sites:
        if site["is_observed"] or is_enumerated(site) or _is_same(entry_mask(site), masks.get(site["name"], True)):
            continue
        raise ProgramError(
            f"latent site {site['name']!r} has another mask in the guide than in the model, so where it is masked in "
            f"one of them its density has no counterpart in the log-weight; mask it alike in both, "
            f"pyro.poutine.mask(mask=...)"
        )


def _is_same(first: Any, second: Any) -> bool:
    if first is second or get_proxy_mode() is not None:  # while a graph is traced, masks have no values
        return True
    first, second = map(torch.as_tensor, (first, second))
    return torch.equal(*torch.broadcast_tensors(first, second.to(first.device)))
