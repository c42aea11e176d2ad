"""A test that finds guides whose density at given values is expensive, such as inverse autoregressive flows."""

from typing import Any

import pyro.distributions as dist
import torch

from pyrovae.distributions import NormalizingFlow


def scores_slowly(distribution: Any) -> bool:
    """Return true if the log-density of given values needs one pass of a network for each latent dimension."""
    return any("utoregressive" in name for transform in _transforms(distribution) for name in _names(transform))


def is_autoregressive(distribution: Any) -> bool:
    """Return true if a draw or its log-density may need one pass of a network for each latent dimension."""
    return any("utoregressive" in repr(transform) for transform in _transforms(distribution))


def _transforms(distribution: Any) -> list[Any]:
    while isinstance(distribution, dist.ExpandedDistribution | torch.distributions.Independent):
        distribution = distribution.base_dist
    if isinstance(distribution, NormalizingFlow):
        return [distribution.transform]
    return list(getattr(distribution, "transforms", ()))


def _names(transform: Any) -> list[str]:
    """Return the class name of a transform, and the class names of the transforms of which it consists.

    For the inverse of a transform, only the class name of the inverse is returned, without the name of the transform.
    That name would mislead: if a transform scores given values slowly, its inverse scores them fast.
    """
    parts = getattr(transform, "transforms", None) or getattr(transform, "parts", None)
    return [type(transform).__name__] + [name for part in parts or () for name in _names(part)]
