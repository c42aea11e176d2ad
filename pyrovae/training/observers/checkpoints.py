"""Observer that reads the newest checkpoint at the beginning of a run, and writes checkpoints during the run."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pyrovae import parallel
from pyrovae.training.checkpoints import Checkpoints
from pyrovae.training.observers import Observer

if TYPE_CHECKING:
    from pyrovae.training.run import Run


class CheckpointObserver(Observer):
    """Observer that saves a run in a folder of checkpoints. Only the first process reads and writes files.

    Args:
        checkpoints: Folder of the checkpoints.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self.saved: tuple[int, int] | None = None

    def begin(self, run: Run) -> None:
        """Continue from the newest checkpoint; if there is none, write the first checkpoint."""
        if state := parallel.in_first(self.checkpoints.latest):
            run.load(state)
            self.saved = run.place
        else:
            self.pause(run)

    def after_epoch(self, run: Run) -> None:
        """Write a checkpoint if the number of epochs is a multiple of ``checkpoint_every``."""
        if run.state.progress.epoch % self.checkpoints.every == 0:
            self.pause(run)

    def pause(self, run: Run) -> None:
        """Write a checkpoint, unless the newest checkpoint already holds the state of the run at this step."""
        if self.saved != run.place:
            parallel.in_first(partial(self.checkpoints.save, run.as_dict()))
            self.saved = run.place

    def newest(self) -> Path | None:
        """Return the path of the newest checkpoint; all processes get the same path."""
        return parallel.in_first(partial(getattr, self.checkpoints, "newest"))
