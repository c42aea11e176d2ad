"""Location and scale of the prior of a latent site, given the latents that the model samples before this site."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import AffineTransform

from pyrovae._waist.sites import Site, is_enumerated
from pyrovae.evaluation.batches import Batch

if TYPE_CHECKING:
    from pyrovae.evaluation.unconstrained.space import Space

FAMILIES = (
    torch.distributions.Normal,
    torch.distributions.StudentT,
    torch.distributions.Laplace,
    torch.distributions.Cauchy,
    torch.distributions.Gumbel,
)
WRAPPERS = (dist.ExpandedDistribution, dist.MaskedDistribution, torch.distributions.Independent)
LEAST_CHANGE = 1e-3  # least difference between the logarithms of two scales that counts as a change


def scaled_sites(first: list[Site], again: list[Site]) -> tuple[str, ...]:
    """Return the names of the latent sites whose prior has a scale that depends on other latents.

    Sites are left out if their prior has no location and scale, or if the model enumerates discrete sites.

    Args:
        first: Sites of a run of the model.
        again: Sites of a run of the model for the same data with other values of the latents.
    """
    if any(map(is_enumerated, first)):
        return ()
    others = {site["name"]: site for site in again}
    pairs = [(site, others[site["name"]]) for site in first if site["name"] in others]
    return tuple(site["name"] for site, other in pairs if _have_two_scales(site, other))


def _have_two_scales(one: Site, other: Site) -> bool:
    found, again = location_and_scale(one["fn"]), location_and_scale(other["fn"])
    if one["is_observed"] or found is None or again is None:
        return False
    return float((found[1].log() - again[1].log()).abs().max()) > LEAST_CHANGE


def locations_and_scales(space: "Space", batch: Batch, u: Tensor) -> tuple[Tensor, Tensor]:
    """Return location and scale of the prior of each coordinate of u, given the latents at u.

    Args:
        space: The map between latents and real vectors u.
        batch: A batch of data.
        u: Real vectors, shape ``(num_draws, N, D)``.

    Returns:
        Locations and scales, both with the shape of u. Coordinates of sites outside ``space.scaled`` have location 0
        and scale 1.
    """
    real = space.split(u)
    runs = space.problem.route.priors(batch, space.values(u)[0], len(u), space.scaled)
    locations = {name: torch.zeros_like(value) for name, value in real.items()}
    scales = {name: torch.ones_like(value) for name, value in real.items()}
    for name in space.scaled:
        found = [location_and_scale(sites[name]["fn"]) for sites in runs]
        pairs = [pair for pair in found if pair is not None]
        shape, vectorize = real[name].shape, space.problem.vectorize
        locations[name] = _stacked([location for location, _ in pairs], shape, vectorize=vectorize)
        scales[name] = _stacked([scale for _, scale in pairs], shape, vectorize=vectorize)
    return space.join(locations), space.join(scales)


def _stacked(parts: list[Tensor], shape: torch.Size, *, vectorize: bool) -> Tensor:
    """Expand the parts, one for each run of the model, and return them along the dimension of draws."""
    return parts[0].expand(shape) if vectorize else torch.stack([part.expand(shape[1:]) for part in parts])


def location_and_scale(distribution: Any) -> tuple[Tensor, Tensor] | None:
    """Return location and scale of each unconstrained coordinate, or None for a distribution without these."""
    while isinstance(distribution, WRAPPERS):
        distribution = distribution.base_dist
    if isinstance(distribution, torch.distributions.LogNormal):  # its unconstrained coordinate is the logarithm
        distribution = distribution.base_dist
    if isinstance(distribution, torch.distributions.MultivariateNormal):
        return distribution.loc, distribution.stddev
    if isinstance(distribution, torch.distributions.TransformedDistribution) and not isinstance(distribution, FAMILIES):
        return _transformed(distribution)
    return (distribution.loc, distribution.scale) if isinstance(distribution, FAMILIES) else None


def _transformed(distribution: Any) -> tuple[Tensor, Tensor] | None:
    """Return location and scale after affine transforms, or None if there are other transforms."""
    found = location_and_scale(distribution.base_dist)
    affine = all(isinstance(transform, AffineTransform) for transform in distribution.transforms)
    return None if found is None or not affine else after_affine(*found, distribution.transforms)


def after_affine(location: Tensor, scale: Tensor, transforms: Iterable[Any]) -> tuple[Tensor, Tensor]:
    """Return the location and the scale after affine transforms."""
    for transform in transforms:
        factor = torch.as_tensor(transform.scale, dtype=scale.dtype, device=scale.device)
        location, scale = transform.loc + factor * location, factor.abs() * scale
    return location, scale
