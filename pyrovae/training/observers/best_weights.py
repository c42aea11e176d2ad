"""The weights that a run restores at its end: those of the epoch with the best bound on the validation data."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pyrovae.training.observers import Observer
from pyrovae.training.state import Tensors

if TYPE_CHECKING:
    from pyrovae.training.run import Run


class BestWeights(Observer):
    """Observer that copies the tensors of the epoch with the best bound on the validation data.

    Epochs that end with a KL weight below 1 do not count. Before the first epoch that counts, the latest
    epoch is taken as the best. Without validation data, no copies are made, and the module keeps its last weights.

    Args:
        tensors: Parameters and buffers of the run.
    """

    sees_replays = True

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors
        self.copies: dict[str, Tensor] = {}
        self.epoch, self.bound = -1, -math.inf

    def after_epoch(self, run: Run) -> None:
        """Copy the tensors if the last epoch is the best so far."""
        history = run.state.history
        bound = history.valid[-1] if history.valid else None
        history.best_epoch = self.update(len(history.train) - 1, bound, counts=history.kl_weight[-1] >= 1)

    def update(self, epoch: int, bound: float | None, counts: bool = True) -> int:
        """Copy the tensors if the bound is the best so far; return the index of the best epoch so far."""
        if bound is None:
            self.epoch = epoch
        elif (bound > self.bound) if counts else (self.bound == -math.inf):
            self.epoch, self.copies = epoch, self.tensors.copy()
            self.bound = bound if counts else -math.inf
        return self.epoch

    def restore(self) -> None:
        """Copy the values of the best epoch into the tensors."""
        self.tensors.restore(self.copies)

    def state(self) -> dict[str, Any]:
        """Return a dictionary: the index of the best epoch, its bound, and the copies of the tensors of this epoch."""
        return {"epoch": self.epoch, "bound": self.bound, "copies": self.copies}

    def load(self, state: dict[str, Any]) -> None:
        """Restore a state that :meth:`state` returned."""
        self.epoch, self.bound, self.copies = state["epoch"], state["bound"], state["copies"]
