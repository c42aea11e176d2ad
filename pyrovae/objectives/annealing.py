"""How latent sites are annealed: what a KL weight multiplies their log-probabilities by."""

from torch import Tensor

from pyrovae.sites import Site
from pyrovae.weights import Weights


def temper(q: Site, p: Site, weights: Weights) -> float:
    """What annealing multiplies the log-probabilities of a latent site by, in guide and model.

    Raises:
        ValueError: If that is more than one number, or another one in the guide than in the model.
    """
    of_guide, of_model = _relative(q, weights), _relative(p, weights)
    if of_guide != of_model:
        raise ValueError(
            f"latent site {q['name']!r} is scaled by {of_guide} in the guide and by {of_model} in the model, which "
            f"leaves no divergence of the two; scale both alike"
        )
    return of_guide


def _relative(site: Site, weights: Weights) -> float:
    """A site's own scale, in that which all sites share."""
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
    tempers = {site["name"]: _relative(site, weights) for site in sites}
    if len(set(tempers.values())) > 1:
        raise ValueError(f"latent sites are scaled apart, {tempers}; scale them all by the same number")
    return next(iter(tempers.values()), 1.0)
