"""What is told of a run while it goes: a progress bar, lines in the log, TensorBoard."""

from __future__ import annotations

import logging
import signal
from typing import TYPE_CHECKING, Any

from pyrovae import parallel
from pyrovae.training.history import History
from pyrovae.training.tensorboard import Board

if TYPE_CHECKING:
    from pyrovae.training.run import Plan
    from pyrovae.training.state import Progress
    from pyrovae.training.steps import Steps

logger = logging.getLogger(__name__)


class Watching:
    """Tells of one run.

    Args:
        bar: Shows the progress; ``tqdm``.
        board: Writes for TensorBoard.
    """

    def __init__(self, bar: Any, board: Board | None = None) -> None:
        self.bar, self.board = bar, board
        self.level = logging.INFO if parallel.is_first() else logging.DEBUG  # so that each line is there once

    def begin(self, plan: Plan, steps: Steps, progress: Progress) -> None:
        """Tells what is trained on what, once it is known where the run begins."""
        logger.log(
            self.level,
            "training %s (%d parameters) by %s on %s data of shape %s, %s, on %s, from epoch %d, step %d",
            type(steps.module).__name__,
            sum(tensor.numel() for tensor in steps.parameters.values()),
            steps.criterion.name,
            len(plan.train[0]),
            " and ".join(str(tuple(tensor.shape[1:])) for tensor in plan.train),
            "no validation data" if plan.valid is None else f"{len(plan.valid[0])} validation data",
            plan.train[0].device,
            progress.epoch,
            progress.step,
        )
        if self.board is not None:
            self.board.begin(progress.epoch, steps.module, plan.train, plan.valid)

    def step(self) -> None:
        """Counts a step."""
        self.bar.update()

    def go_on(self, made: int) -> None:
        """Counts on from so many steps, which tell nothing of the rate of those to come."""
        self.bar.n = self.bar.initial = self.bar.last_print_n = made
        self.bar.refresh()

    def epoch(self, history: History, steps: Steps) -> None:
        """Tells of the epoch that the history has last."""
        bounds = {name: column[-1] for name in ("train", "valid") if (column := getattr(history, name))}
        shown = [f"{name} {bound:.2f}" for name, bound in bounds.items()]
        self.bar.set_postfix_str(
            ", ".join(shown + ([f"compiled in {seconds:.0f} s"] if (seconds := steps.compile_seconds) else []))
        )
        if steps.watched:  # it has been told of
            return
        skipped = [f"{history.skipped[-1]} steps skipped"] if history.skipped[-1] else []
        told = ", ".join([f"{name} {bound:.4f}" for name, bound in bounds.items()] + skipped)
        logger.log(self.level, "epoch %d: %s, %.1f s", len(history.train) - 1, told, history.seconds[-1])
        if self.board is not None:
            self.board.add(history, steps.parameters)

    def end(self, history: History, progress: Progress, received: int | None, is_patience_over: bool) -> None:
        """Tells how the run ended."""
        if history.interrupted:
            by = "Ctrl-C" if received is None else signal.Signals(received).name
            logger.log(self.level, "stopped by %s in epoch %d, step %d", by, progress.epoch, progress.step)
        elif is_patience_over:
            logger.log(
                self.level, "stopped since the bound on the validation data has not become better for long enough"
            )
        at = "amid an epoch" if history.best_epoch is None else f"of epoch {history.best_epoch}"
        logger.log(self.level, "trained %d epochs; the module has the weights %s", progress.epoch, at)

    def close(self) -> None:
        """Closes what was opened to tell of it."""
        if self.board is not None:
            self.board.close()
