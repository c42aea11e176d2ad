"""The weights that a run ends with."""

import math
from typing import Any

from torch import Tensor

from pyrovae.training.state import Tensors


class Best:
    """The tensors at the epoch with the best bound on the validation data; without such data, at the last epoch."""

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors
        self.copies: dict[str, Tensor] = {}
        self.epoch, self.bound = -1, -math.inf

    def offer(self, epoch: int, bound: float | None) -> int:
        """Copies the tensors if the bound is the best so far; returns the epoch that :meth:`restore` would restore."""
        if bound is None:
            self.epoch = epoch
        elif bound > self.bound:
            self.epoch, self.bound, self.copies = epoch, bound, self.tensors.copy()
        return self.epoch

    def restore(self) -> None:
        """Gives the tensors the best values."""
        self.tensors.restore(self.copies)

    def state(self) -> dict[str, Any]:
        """All of it, as tensors and plain values."""
        return {"epoch": self.epoch, "bound": self.bound, "copies": self.copies}

    def load(self, state: dict[str, Any]) -> None:
        """Takes over such a state."""
        self.epoch, self.bound, self.copies = state["epoch"], state["bound"], state["copies"]
