"""A test that finds guides whose density at given values is expensive, such as inverse autoregressive flows."""

from typing import Any

import pyro.distributions as dist
import torch

from pyrovae.distributions import NormalizingFlow


def scores_slowly(distribution: Any) -> bool:
    """Return true if the log-density at given values takes one pass of a network for each latent dimension."""
    while isinstance(distribution, dist.ExpandedDistribution | torch.distributions.Independent):
        distribution = distribution.base_dist
    transforms: list[Any] = list(getattr(distribution, "transforms", ()))
    if isinstance(distribution, NormalizingFlow):
        transforms = [distribution.transform]
    return any("utoregressive" in name for transform in transforms for name in _names(transform))


def _names(transform: Any) -> list[str]:
    """Return the class names of a transform and its parts.

    The parts of an inverse transform are left out, because the inverse of a slow transform scores given values fast.
    """
    parts = getattr(transform, "transforms", None) or getattr(transform, "parts", None)
    return [type(transform).__name__] + [name for part in parts or () for name in _names(part)]
