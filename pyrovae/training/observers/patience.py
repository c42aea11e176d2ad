"""Early stopping of a run whose bound on the validation data no longer improves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyrovae.training.observers import Observer

if TYPE_CHECKING:
    from pyrovae.training.run import Run


class Patience(Observer):
    """Observer that stops a run if the bound on the validation data has not improved for a number of epochs.

    Epochs that end with a KL weight below 1 are not counted.

    Args:
        epochs: The run stops after this number of epochs without a better bound.
    """

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def reason_to_stop(self, run: Run) -> str | None:
        """Return a reason if the run is to stop, else None.

        The run stops if ``epochs`` epochs have followed the best epoch. Epochs that end with a KL weight below 1 do not
        count.
        """
        weights = run.state.history.kl_weight[run.state.best.epoch + 1 :]
        if sum(weight >= 1 for weight in weights) < self.epochs:
            return None
        return f"because the bound on the validation data has not improved for {self.epochs} epochs"
