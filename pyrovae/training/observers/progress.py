"""A progress bar, and messages in the log."""

from __future__ import annotations

import logging
import signal
from typing import TYPE_CHECKING, Any

from pyrovae import parallel
from pyrovae._progress import tqdm
from pyrovae.training.observers import Observer
from pyrovae.training.programs import name_of

if TYPE_CHECKING:
    from pyrovae.training.run import Run

logger = logging.getLogger(__name__)


class ProgressBar(Observer):
    """A progress bar over the steps of a run.

    Args:
        name: Name of the objective.
        hidden: If true, the bar is hidden. If None, it is hidden unless the output is a terminal.
    """

    def __init__(self, name: str, hidden: bool | None) -> None:
        self.name, self.hidden = name, hidden
        self.bar: Any = None

    def begin(self, run: Run) -> None:
        """Show the bar. If a run continues from a checkpoint, only its new steps count for the steps per second."""
        self.bar = tqdm(total=run.plan.epochs * run.plan.steps, unit="step", desc=self.name, disable=self.hidden)
        self.bar.n = self.bar.initial = self.bar.last_print_n = run.steps_made
        if run.step.gradients.is_compiled:
            self.bar.set_postfix_str("compiling", refresh=False)
        self.bar.refresh()

    def after_steps(self, run: Run, count: int) -> None:  # noqa: ARG002
        """Count the steps."""
        self.bar.update(count)

    def after_epoch(self, run: Run) -> None:
        """Show the bounds of the epoch."""
        history, seconds = run.state.history, run.step.gradients.compile_seconds
        shown = [f"{name} {column[-1]:.2f}" for name, column in history.bounds().items()]
        self.bar.set_postfix_str(", ".join(shown + ([f"compiled in {seconds:.0f} s"] if seconds else [])))

    def close(self) -> None:
        """Close the bar, which stays visible in its last state."""
        if self.bar is not None:
            self.bar.close()


class Reporter(Observer):
    """Observer that logs the run, each of its epochs, and its end. Only the first process logs at level INFO."""

    def __init__(self) -> None:
        self.level = logging.INFO if parallel.is_first() else logging.DEBUG

    def begin(self, run: Run) -> None:
        """Log the module, the optimizer and the data."""
        plan, progress = run.plan, run.state.progress
        logger.log(
            self.level,
            "training %s (%d parameters) by %s on %s data of shape %s, %s, on %s, from epoch %d, step %d",
            name_of(run.state.tensors.module),
            sum(tensor.numel() for tensor in run.step.gradients.parameters.values()),
            run.state.history.objective,
            len(plan.train.source),
            " and ".join(str(tuple(tensor.shape[1:])) for tensor in plan.train.source.datum),
            "no validation data" if plan.valid is None else f"{len(plan.valid.source)} validation data",
            plan.train.source.device,
            progress.epoch,
            progress.step,
        )

    def after_epoch(self, run: Run) -> None:
        """Log the bounds of the epoch."""
        history = run.state.history
        skipped = [f"{history.skipped[-1]} steps skipped"] if history.skipped[-1] else []
        told = ", ".join([f"{name} {column[-1]:.4f}" for name, column in history.bounds().items()] + skipped)
        logger.log(self.level, "epoch %d: %s, %.1f s", len(history.train) - 1, told, history.seconds[-1])

    def end(self, run: Run, reason: str | None) -> None:
        """Log the reason for the end of the run."""
        history, progress, received = run.state.history, run.state.progress, run.signals.received
        if history.interrupted:
            by = "Ctrl-C" if received is None else signal.Signals(received).name
            logger.log(self.level, "stopped by %s in epoch %d, step %d", by, progress.epoch, progress.step)
        elif reason is not None:
            logger.log(self.level, "stopped %s", reason)
        at = "of the last step" if history.best_epoch is None else f"of epoch {history.best_epoch}"
        logger.log(self.level, "trained %d epochs; the module has the weights %s", progress.epoch, at)
