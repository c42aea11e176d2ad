"""A user's function that is called after each epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pyrovae.training.history import History
from pyrovae.training.observers import Observer

if TYPE_CHECKING:
    from pyrovae.training.run import Run

Callback = Callable[[History], bool | None]


class CallbackObserver(Observer):
    """Observer that calls a function with the history after each epoch, and stops the run if the function returns True.

    Args:
        function: Function that is called with the history.
    """

    def __init__(self, function: Callback) -> None:
        self.function, self.stopped = function, False

    def after_epoch(self, run: Run) -> None:
        """Call the function."""
        self.stopped = self.function(run.state.history) is True

    def reason_to_stop(self, run: Run) -> str | None:  # noqa: ARG002
        """Return a reason to stop if the last call of the function returned True, else None."""
        return "by the callback" if self.stopped else None
