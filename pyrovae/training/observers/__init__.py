"""Observers of a run, which are notified at its beginning, after steps and epochs, and at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyrovae.training.run import Run


class Observer:
    """An observer that does nothing; subclasses override the methods that they need.

    A run has a list of observers. After a step or an epoch, the run calls the observers in the order of the list. At
    the beginning, it calls them in reverse order, because the observer that loads a checkpoint is the last in the list.
    All other observers then begin with the state from the checkpoint.

    Attributes:
        sees_replays: True if the observer is notified of epochs that are repeated to find a number that is not finite.
    """

    sees_replays = False

    def begin(self, run: Run) -> None:
        """Prepare the observer for a run, before its first step."""

    def after_steps(self, run: Run, count: int) -> None:
        """Process the last ``count`` steps."""

    def after_epoch(self, run: Run) -> None:
        """Process the last epoch of the history."""

    def reason_to_stop(self, run: Run) -> str | None:  # noqa: ARG002
        """Return the reason to end the run before its next epoch, or None to continue."""
        return None

    def pause(self, run: Run) -> None:
        """Save everything that must not be lost when the run ends or is told to stop."""

    def end(self, run: Run, reason: str | None) -> None:
        """Process the end of the run. ``reason`` says why the run ended early; it is None for a complete run."""

    def close(self) -> None:
        """Close all resources, also after an error."""
