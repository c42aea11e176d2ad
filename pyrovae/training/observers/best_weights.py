"""The weights that a module has at the end of a run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pyrovae.training.observers import Observer
from pyrovae.training.state import Tensors

if TYPE_CHECKING:
    from pyrovae.training.run import Run


class BestWeights(Observer):
    """The tensors at the epoch with the best bound on the validation data, or, without such data, at the last epoch.

    While the weight of the latent sites is below 1, the last epoch counts as the best.

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
        """Copy the tensors if the bound is the best so far; return the epoch that :meth:`restore` would restore."""
        if bound is None:
            self.epoch = epoch
        elif bound > self.bound or (not counts and self.bound == -math.inf):
            self.epoch, self.copies = epoch, self.tensors.copy()
            self.bound = bound if counts else -math.inf
        return self.epoch

    def restore(self) -> None:
        """Copy the best values into the tensors."""
        self.tensors.restore(self.copies)

    def state(self) -> dict[str, Any]:
        """Return the state as tensors and plain values."""
        return {"epoch": self.epoch, "bound": self.bound, "copies": self.copies}

    def load(self, state: dict[str, Any]) -> None:
        """Restore a state of :meth:`state`."""
        self.epoch, self.bound, self.copies = state["epoch"], state["bound"], state["copies"]
