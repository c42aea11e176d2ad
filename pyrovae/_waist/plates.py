"""The plates of a program, and the choice of the data plate."""

from collections.abc import Sequence
from typing import Any

import torch
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from pyrovae._waist.sites import Site, is_deterministic, is_enumerated, is_point
from pyrovae._waist.support import coordinates

DRAWS = "_pyrovae_draws"  # name of the plate of draws


def site_plates(site: Site) -> list[Any]:
    """Return the vectorized plates of a site, outermost first, without the plate that pyrovae adds for draws."""
    return [frame for frame in site["cond_indep_stack"] if frame.vectorized and frame.name != DRAWS]


def plate_names(site: Site) -> set[str]:
    """Return the names of the vectorized plates of a site."""
    return {frame.name for frame in site_plates(site)}


def shared_plates(sites: list[Site]) -> list[CondIndepStackFrame]:
    """Return the plates that all sites share, outermost first."""
    return [frame for frame in site_plates(sites[0]) if all(frame.name in plate_names(site) for site in sites)]


def outermost_plate(sites: list[Site]) -> CondIndepStackFrame:
    """Return the outermost plate that all sites share.

    Raises:
        ValueError: If there is no site or no shared plate.
    """
    if not sites:
        raise ValueError("the model observes nothing. Observe the data by pyro.sample(name, distribution, obs=x).")
    if not (shared := shared_plates(sites)):
        raise ValueError(
            f"there is no data plate around the observed sites {[site['name'] for site in sites]}. Declare the data "
            f"independent with a vectorized plate, `with pyro.plate('data', len(x)):`"
        )
    return sized(shared[0], sites)


def data_plate(sites: list[Site], name: str | None) -> CondIndepStackFrame:
    """Return the data plate: the plate with the given name, or the outermost plate that all latent sites share.

    Raises:
        ValueError: If there is no plate with this name, if the latent sites share no plate, if a latent site lies
            outside the data plate, or if the plate differs in size or dimension between sites.
    """
    latents = [site for site in sites if not site["is_observed"]]
    if name is None:
        shared = shared_plates(latents or sites)
        if not shared and len(latents) == len(sites):
            raise ValueError(
                f"latent sites {[site['name'] for site in latents]} share no plate. Name the data plate with plate=."
            )
        # Conditioned latent sites may lie outside the plate.
        observed = [site for site in sites if site["is_observed"] and not is_deterministic(site)]
        data = shared[0] if shared else outermost_plate([site for site in observed if site_plates(site)] or observed)
    else:
        plates = {frame.name: frame for site in sites for frame in site_plates(site)}
        if name not in plates:
            raise ValueError(
                f"there is no vectorized plate {name!r} in the program, whose plates are {sorted(plates)}. Pass one of "
                f"them as plate=."
            )
        data = plates[name]
    _check_same_plate(data, sites)
    check_packing(latents, data.name)
    for site in latents:
        if data.name not in plate_names(site):
            raise ValueError(
                f"latent site {site['name']!r} lies outside the data plate {data.name!r}, so the data are not "
                f"independent and a single datum has no weight. Average over draws of the site "
                f"(pyrovae.evaluation.evaluate_globals), condition on it (pyro.condition(model, "
                f"data={{{site['name']!r}: value}}), and remove it from the guide), or name another plate with plate=. "
                f"If the site has a plate, give the plate the same name, size and dim in model and guide."
            )
    return sized(data, sites)


def check_packing(latents: Sequence[Site], plate: str) -> None:
    """Check that the guide does not draw the latents of all data as one vector, as AutoDiagonalNormal does.

    A vector of global latents, which all data share, is not an error.

    Args:
        latents: Latent sites of model and guide.
        plate: Name of the data plate.

    Raises:
        ValueError: If a vector that lies outside the data plate holds the values of latent sites inside the data plate.
    """
    drawn = [site for site in latents if not is_enumerated(site)]
    outside = [site for site in drawn if plate not in plate_names(site)]
    auxiliary = [site for site in outside if site["infer"].get("is_auxiliary")]
    names = {site["name"] for site in latents}
    vectors = [
        site
        for site in auxiliary
        if site["fn"].event_dim == 1
        and site["name"].removesuffix("_unconstrained") not in names - {site["name"]}  # a site of AutoNormal
    ]
    if len(outside) == len(drawn) or not vectors:
        return
    of_model = {site["name"]: site["fn"] for site in drawn if not is_point(site["fn"])}
    points = {site["name"]: site for site in outside if is_point(site["fn"]) and not site["infer"].get("is_auxiliary")}
    shared = sum(coordinates(of_model.get(name, site["fn"]), site["value"]) for name, site in points.items())
    if sum(site["value"].numel() for site in auxiliary) > shared:
        raise ValueError(
            f"the guide draws the latent sites of all data as one vector, {vectors[0]['name']!r}, which lies outside "
            f"the data plate {plate!r}, so a single datum has no density. Train a guide that samples inside the plate: "
            f"pyro.infer.autoguide.AutoNormal(model), or a program that computes the latent sites from the data."
        )


def _check_same_plate(data: CondIndepStackFrame, sites: list[Site]) -> None:
    """Raise ValueError if the data plate has different sizes or dimensions at different sites."""
    for site in sites:
        for frame in site_plates(site):
            if frame.name == data.name and (frame.dim, frame.size) != (data.dim, data.size):
                raise ValueError(
                    f"plate {data.name!r} has size {data.size} and dim {data.dim} in one place but size {frame.size} "
                    f"and dim {frame.dim} at site {site['name']!r}. Declare it with the same size and dim in model and "
                    f"guide."
                )


def check_complete(sites: list[Site], data: CondIndepStackFrame) -> None:
    """Raise ValueError if a plate inside the data plate is subsampled, because a datum is then scored only in part."""
    for site in sites:
        for frame in site_plates(site):
            if frame.name != data.name and frame.size != frame.full_size:
                raise ValueError(
                    f"plate {frame.name!r} of site {site['name']!r} subsamples {frame.size} of {frame.full_size} "
                    f"entries inside the data plate {data.name!r}, so a datum is scored only in part. Evaluate a "
                    f"program that does not subsample this plate."
                )


def sized(plate: CondIndepStackFrame, sites: Sequence[Site]) -> CondIndepStackFrame:
    """Return a plate whose size is known.

    If the plate was declared without a size (-1 in Pyro), its size is inferred from the shapes of its sites.

    Args:
        plate: Plate from a run of a program.
        sites: Sites inside the plate, from which a missing size is inferred.
    """
    if plate.size is not None and plate.size >= 0:
        return plate
    dim: int = plate.dim  # type: ignore[assignment]
    shapes = [_batch_shape(site) for site in sites if plate.name in plate_names(site)]
    size = max((shape[dim] for shape in shapes if len(shape) >= -dim), default=1)
    return plate._replace(size=size, full_size=size)


def _batch_shape(site: Site) -> torch.Size:
    value, event = site["value"], len(site["fn"].event_shape)
    of_value = value.shape[: value.ndim - event] if isinstance(value, Tensor) else torch.Size()
    return torch.broadcast_shapes(of_value, site["fn"].batch_shape)


def nesting_of(sites: Sequence[Site]) -> int:
    """Return the nesting depth of the vectorized plates around some sites, as Pyro's ``max_plate_nesting`` counts it.

    The plate that pyrovae adds for draws does not count.
    """
    return max((-frame.dim for site in sites for frame in site_plates(site)), default=0)


def dim_of(plate: CondIndepStackFrame) -> int:
    """Return the dimension of a vectorized plate, counted from the right."""
    assert plate.dim is not None
    return plate.dim
