"""The KL weight: the factor by which KL annealing multiplies the log-probabilities of latent sites."""

from torch import Tensor

from pyrovae._waist.scales import same_scale
from pyrovae._waist.sites import Site
from pyrovae._waist.weights import Weights


def temper(q: Site, p: Site, weights: Weights) -> float | Tensor:
    """Return the factor by which annealing multiplies the log-probabilities of a latent site in guide and model.

    If the factor is a tensor, it has shape ``()``.

    Raises:
        ValueError: If the factor is not a single number, or if it differs between guide and model.
    """
    if not same_scale(q["scale"], p["scale"]):
        raise ValueError(
            f"latent site {q['name']!r} is scaled by {_relative(q, weights)} in the guide but by "
            f"{_relative(p, weights)} in the model, so the KL divergence of guide and model is not defined. "
            f"Use the same scale in both."
        )
    return _relative(q, weights)


def common_temper(sites: list[Site], weights: Weights) -> float | Tensor:
    """Return the factor by which annealing multiplies the log-probabilities of all latent sites.

    Raises:
        ValueError: If the factor differs between sites.
    """
    if not sites:
        return 1.0
    if not all(same_scale(sites[0]["scale"], site["scale"]) for site in sites):
        tempers = {site["name"]: _relative(site, weights) for site in sites}
        raise ValueError(f"latent sites have different scales, {tempers}. Scale all of them by the same number.")
    return _relative(sites[0], weights)


def _relative(site: Site, weights: Weights) -> float | Tensor:
    """Return the ratio of a site's scale to the scale of the data plate.

    If ``weights.scale`` is a tensor, all sites have this scale, so the result is 1.
    """
    if isinstance(weights.scale, Tensor):  # all sites share the scale, and annealing is off
        return 1.0
    relative: float | Tensor = site["scale"] / weights.scale
    if isinstance(relative, Tensor) and relative.numel() > 1:
        raise ValueError(
            f"latent site {site['name']!r} is scaled by a tensor of shape {tuple(relative.shape)}, but the "
            f"other sites are not. Scale all sites by this tensor, or this site by a number."
        )
    return relative.reshape(()) if isinstance(relative, Tensor) else relative
