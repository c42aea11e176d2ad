"""How latent sites are annealed: what a KL weight multiplies their log-probabilities by."""

from torch import Tensor

from pyrovae.sites import Site
from pyrovae.weights import Weights


def temper(site: Site, weights: Weights) -> float:
    """What annealing multiplies the log-probability of a latent site by.

    Raises:
        ValueError: If that is more than one number.
    """
    if isinstance(weights.scale, Tensor):  # then all sites have it in common, and none is annealed
        return 1.0
    relative = site["scale"] / weights.scale
    if isinstance(relative, Tensor) and relative.numel() > 1:
        raise ValueError(
            f"latent site {site['name']!r} is scaled by a tensor of shape {tuple(relative.shape)} that other sites do "
            f"not have; scale all sites by it, or this one by a number"
        )
    return float(relative)


def common_temper(sites: list[Site], weights: Weights) -> float:
    """What annealing multiplies the log-probabilities of all latent sites by.

    Raises:
        ValueError: If that is more than one number.
    """
    tempers = {site["name"]: temper(site, weights) for site in sites}
    if len(set(tempers.values())) > 1:
        raise ValueError(f"latent sites are scaled apart, {tempers}; scale them all by the same number")
    return next(iter(tempers.values()), 1.0)
