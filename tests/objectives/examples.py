"""One instance of every objective, and a custom objective. A new objective needs one line here."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyrovae.objectives import (
    CIWAE,
    IWAE,
    MIWAE,
    MMD,
    PIWAE,
    BetaELBO,
    BetaTC,
    FreeBits,
    Renyi,
    ReweightedWakeSleep,
    WeightObjective,
)


class Truncated(WeightObjective):
    """A custom objective: it truncates weights above the square root of their number times their mean."""

    def bound(self, log_weights: Tensor) -> Tensor:
        ceiling = log_weights.logsumexp(0) - 0.5 * math.log(len(log_weights))
        return torch.minimum(log_weights, ceiling).logsumexp(0) - math.log(len(log_weights))


MAKERS: dict[str, Callable[[], Any]] = {
    "IWAE": lambda: IWAE(3),
    "sticking": lambda: IWAE(3, gradient="sticking_the_landing"),
    "doubly": lambda: IWAE(3, gradient="doubly_reparameterized"),
    "doubly one by one": lambda: IWAE(3, gradient="doubly_reparameterized", vectorize_particles=False),
    "MIWAE": lambda: MIWAE(2, 3),
    "CIWAE": lambda: CIWAE(3, 0.4),
    "PIWAE": lambda: PIWAE(2, 3),
    "Renyi": lambda: Renyi(0.5, 3),
    "BetaELBO": lambda: BetaELBO(0.5),
    "BetaELBO of IWAE": lambda: BetaELBO(0.5, IWAE(3, gradient="doubly_reparameterized")),
    "FreeBits": lambda: FreeBits(0.1, 2),
    "BetaTC": lambda: BetaTC(beta=2.0, data_size=12),
    "MMD": lambda: MMD(5.0),
    "own": lambda: Truncated(3),
    "ReweightedWakeSleep": lambda: ReweightedWakeSleep(5),
}
