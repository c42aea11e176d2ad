"""How latent sites are annealed: what a KL weight multiplies their log-probabilities by."""

from torch import Tensor

from pyrovae._waist.scales import same_scale
from pyrovae._waist.sites import Site
from pyrovae._waist.weights import Weights


def temper(q: Site, p: Site, weights: Weights) -> float | Tensor:
    """What annealing multiplies the log-probabilities of a latent site by, in guide and model.

    A tensor has shape ``()``, here and below.

    Raises:
        ValueError: If that is more than one number, or another one in the guide than in the model.
    """
    if not same_scale(q["scale"], p["scale"]):
        raise ValueError(
            f"latent site {q['name']!r} is scaled by {_relative(q, weights)} in the guide and by "
            f"{_relative(p, weights)} in the model, which leaves no divergence of the two; scale both alike"
        )
    return _relative(q, weights)


def common_temper(sites: list[Site], weights: Weights) -> float | Tensor:
    """What annealing multiplies the log-probabilities of all latent sites by.

    Raises:
        ValueError: If that is more than one number.
    """
    if not sites:
        return 1.0
    if not all(same_scale(sites[0]["scale"], site["scale"]) for site in sites):
        tempers = {site["name"]: _relative(site, weights) for site in sites}
        raise ValueError(f"latent sites are scaled apart, {tempers}; scale them all by the same number")
    return _relative(sites[0], weights)


def _relative(site: Site, weights: Weights) -> float | Tensor:
    """A site's own scale, in that which all sites share."""
    if isinstance(weights.scale, Tensor):  # then all sites have it in common, and none is annealed
        return 1.0
    relative: float | Tensor = site["scale"] / weights.scale
    if isinstance(relative, Tensor) and relative.numel() > 1:
        raise ValueError(
            f"latent site {site['name']!r} is scaled by a tensor of shape {tuple(relative.shape)} that other sites do "
            f"not have; scale all sites by it, or this one by a number"
        )
    return relative.reshape(()) if isinstance(relative, Tensor) else relative
