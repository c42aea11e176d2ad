"""Observers of a run: each is told when the run begins, after steps and epochs, and at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyrovae.training.run import Run


class Observer:
    """An observer that does nothing; subclasses override what they need.

    A run tells its observers of steps and epochs in the order of its list, and of its beginning in the opposite order,
    so that the last one, which reads checkpoints, begins first.

    Attributes:
        sees_replays: Whether the observer is told of epochs that are repeated in order to find what went wrong.
    """

    sees_replays = False

    def begin(self, run: Run) -> None:
        """Get ready, before the first step."""

    def after_step(self, run: Run) -> None:
        """Take note of a step."""

    def after_epoch(self, run: Run) -> None:
        """Take note of the last epoch of the history."""

    def reason_to_stop(self, run: Run) -> str | None:  # noqa: ARG002
        """Return why the run is to end before its next epoch; None lets it go on."""
        return None

    def pause(self, run: Run) -> None:
        """Keep what must not be lost, because the run ends or has been told to stop."""

    def end(self, run: Run, reason: str | None) -> None:
        """Take note of the end of the run, with the reason for an early end."""

    def close(self) -> None:
        """Close what was opened, also after an error."""
