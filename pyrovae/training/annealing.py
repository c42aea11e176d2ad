"""The weight of the latent sites during training: a linear warm-up, or a function of the epoch."""

import math
from collections.abc import Callable

KLWarmup = float | Callable[[float], float]
"""Number of epochs over which the weight grows linearly to 1, or the weight as a function of the epoch."""


def kl_weight(warmup: KLWarmup, epoch: float) -> float:
    """Return the KL weight after ``epoch`` epochs; ``epoch`` may be fractional.

    Raises:
        ValueError: If ``warmup`` is a function, and the weight that it returns is negative or not finite.
    """
    if not callable(warmup):
        return min(1.0, epoch / warmup) if warmup else 1.0
    weight = float(warmup(epoch))
    if not 0 <= weight < math.inf:
        raise ValueError(f"kl_warmup({epoch:g}) returned {weight}. Return a finite weight of at least 0.")
    return weight


def kl_weights(warmup: KLWarmup, epoch: int, steps: int) -> list[float]:
    """Return the weight of the latent sites at each of the ``steps`` steps of the epoch with index ``epoch``."""
    return [kl_weight(warmup, (epoch * steps + step + 1) / steps) for step in range(steps)]
