"""The training loop, which makes the remaining steps of a run and notifies observers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from pyrovae import parallel
from pyrovae.signals import StopSignals
from pyrovae.training.annealing import KLWarmup, kl_weights
from pyrovae.training.batches import Batch, Batches
from pyrovae.training.checkpoints import CheckpointError
from pyrovae.training.losses import Loss
from pyrovae.training.nonfinite import DivergenceError, NotFiniteError, are_finite
from pyrovae.training.observers import Observer
from pyrovae.training.observers.checkpoints import CheckpointObserver
from pyrovae.training.run_state import Memory, RunState, Schedule
from pyrovae.training.state import Progress, generator_states, restore_generators
from pyrovae.training.steps import Guard, Step
from pyrovae.training.validation import mean_bound

if TYPE_CHECKING:
    from pyrovae.training.blocks import Blocks

SchedulerStep = Literal["epoch", "batch"]
MEMORY_STEPS = 100  # least number of steps between two copies of the state, each of which takes as long as a step


@dataclass(frozen=True)
class Plan:
    """The data, length and schedules of a run; see :func:`pyrovae.fit`."""

    train: Batches
    valid: Batches | None
    epochs: int
    kl_warmup: KLWarmup
    scheduler_step: SchedulerStep

    @property
    def steps(self) -> int:
        """Return the number of steps per epoch."""
        return self.train.steps


class Run:
    """A run of :func:`pyrovae.fit`. Its data have been checked, and its optimizer exists.

    Args:
        plan: Data, length and schedules.
        loss: Loss to minimize.
        step: Function that makes a step of the optimizer.
        guard: Checks of a step for values that are not finite.
        state: State of the run, which a checkpoint may replace.
        observers: Observers, in the order of their notification.
        checkpoints: Observer that writes the checkpoints; None if the run has no checkpoint folder.
        blocks: Blocks of several steps; None if the run makes only single steps.
    """

    def __init__(
        self,
        plan: Plan,
        loss: Loss,
        step: Step,
        guard: Guard,
        state: RunState,
        observers: Sequence[Observer],
        checkpoints: CheckpointObserver | None,
        blocks: "Blocks | None" = None,
    ) -> None:
        self.plan, self.loss, self.step, self.guard, self.state = plan, loss, step, guard, state
        self.observers, self.checkpoints, self.blocks = observers, checkpoints, blocks
        self.signals = StopSignals(active=checkpoints is not None or parallel.size() > 1)
        self.memory, self.failed = Memory(), -1

    def __call__(self) -> None:
        """Train to the end, or until the run is told to stop; the module then has the best weights.

        Raises:
            DivergenceError: If a loss, a gradient, a parameter or a bound is not finite.
            CheckpointError: If a checkpoint could not be written.
        """
        state = self.state
        try:
            with self.signals:
                try:
                    self._begin()
                    self._train()
                except KeyboardInterrupt:
                    state.history.interrupted = True
                finally:
                    if state.progress.step and self.plan.valid is None:
                        state.history.best_epoch = None  # the weights come from an unfinished epoch
                    state.best.restore()
                    for observer in self.observers:
                        observer.close()
                for observer in self.observers:
                    observer.end(self, self._reason_to_stop())
        except CheckpointError as error:
            error.history = state.history
            raise
        self.step.gradients.sync_buffers()

    @property
    def place(self) -> tuple[int, int]:
        """Return the index of the current epoch, and the index of the current step in this epoch."""
        return self.state.progress.epoch, self.state.progress.step

    @property
    def steps_made(self) -> int:
        """Return the number of steps made so far, including skipped steps.

        If the run continues from a checkpoint, the steps before this checkpoint count as well.
        """
        return self.state.progress.epoch * self.plan.steps + self.state.progress.step

    def as_dict(self) -> dict[str, Any]:
        """Return the state as tensors and plain values, without copying."""
        return self.state.as_dict(self.step.gradients.compile_seconds)

    def load(self, state: dict[str, Any]) -> None:
        """Restore a state."""
        self.state.load(state, self.step.gradients.compile_seconds, self.plan.train.source.device)

    def _begin(self) -> None:
        restore_generators(parallel.in_first(generator_states))
        for observer in reversed(self.observers):
            observer.begin(self)
        parallel.share_generators()

    def _train(self) -> None:
        """Train; if a number is not finite and its cause is not known, repeat the last steps to find the cause."""
        try:
            self._epochs()
        except NotFiniteError as error:
            if str(error) or self.memory.copy is None:
                raise self._diverged(error) from None
            self.failed = self.state.progress.epoch
            self.load(self.memory.copy)
            self.guard.replaying = True
            try:
                self._epochs()
            except NotFiniteError as found:
                error = found
            raise self._diverged(error) from None

    def _epochs(self) -> None:
        while self.state.progress.epoch < self.plan.epochs and self._reason_to_stop() is None:
            if self._is_told_to_stop():
                self._check_finite()  # a state that is not finite must not reach a checkpoint
                self.state.history.interrupted = True
                break
            self._remember()
            self._steps()
            if self.state.progress.step == self.plan.steps:
                self._close_epoch()
        if not self.guard.replaying:
            for observer in self.observers:
                observer.pause(self)

    def _reason_to_stop(self) -> str | None:
        return next((reason for each in self.observers if (reason := each.reason_to_stop(self)) is not None), None)

    def _is_told_to_stop(self) -> bool:
        if self.guard.replaying:
            return False
        if agreed := parallel.largest(self.signals.received or 0):  # all processes must stop at the same step
            self.signals.received = agreed
        return agreed > 0

    def _check_finite(self) -> None:
        if not (math.isfinite(self.state.progress.total) and are_finite(self.step.gradients.parameters.values())):
            raise NotFiniteError

    def _steps(self) -> None:
        """Make the remaining steps of an epoch."""
        plan, now = self.plan, self.state.progress
        if now.order is None:
            now.order, now.total = plan.train.order(), _zero(plan.train.source.device)
        self.step.gradients.compare()
        ramp = kl_weights(plan.kl_warmup, now.epoch, plan.steps)
        is_told = False
        while now.step < plan.steps and not is_told:
            before = now.step
            if self._block_is_possible() and self.blocks is not None and self.blocks.make(now, ramp):
                self._notify(now.step - before)
                is_told = self._is_told_to_stop()
            else:
                is_told = self._single_steps(ramp)

    def _block_is_possible(self) -> bool:
        blocks = None if self.guard.replaying else self.blocks
        return blocks is not None and blocks.are_possible(self.state.progress)

    def _single_steps(self, ramp: Sequence[float]) -> bool:
        """Make single steps until the epoch ends or a block of steps is possible. Return true if the run must stop."""
        plan, now = self.plan, self.state.progress
        assert now.order is not None
        schedule = self.state.schedule if plan.scheduler_step == "batch" else None
        for batches, kl_weight in zip(plan.train.in_steps(now.order, now.step), ramp[now.step :], strict=True):
            if schedule is not None and self.steps_made:  # before the step, so that the history has the step's own rate
                schedule.step()
            losses = self.step(batches, kl_weight, self._weights(batches))
            now.skipped += not losses
            for batch, loss in zip(batches if losses else (), losses, strict=True):
                now.total = torch.add(now.total, loss, alpha=len(batch[0]) / self.loss.data_count(batch))
                now.seen += len(batch[0])
            now.step += 1
            self._notify(1)
            if self._is_told_to_stop():
                return True
            if self._block_is_possible():
                break
        return False

    def _notify(self, count: int) -> None:
        """Notify the observers that ``count`` steps were made. Repeated steps are not announced again."""
        if not self.guard.replaying:
            for observer in self.observers:
                observer.after_steps(self, count)

    def _weights(self, batches: Sequence[Batch]) -> Sequence[float]:
        """Return a weight for each batch of a step, so that the weighted losses sum to the loss of one larger batch."""
        if len(batches) == 1:
            return (1.0,)
        if self.loss.is_sum(batches[0]):
            return [1.0] * len(batches)
        sizes = [len(batch[0]) for batch in batches]
        return [size / sum(sizes) for size in sizes]

    def _close_epoch(self) -> None:
        """After the last step of an epoch, append its bounds to the history, and prepare the next epoch."""
        state, now = self.state, self.state.progress
        if now.seen == 0:
            raise NotFiniteError(
                "all steps of the epoch were skipped, because each had a loss or gradient that is not finite"
            )
        self._check_finite()
        row = {
            "learning_rate": float(state.optimizer.param_groups[0]["lr"]),
            "kl_weight": kl_weights(self.plan.kl_warmup, now.epoch, self.plan.steps)[-1],
            "train": -float(now.total) / now.seen,
        }
        if now.epoch == self.failed:  # a repeated epoch should have failed again
            raise NotFiniteError
        if self.plan.valid is not None:
            row["valid"] = mean_bound(self.step.gradients, self.loss, self.plan.valid)
        state.history.append(**row, skipped=now.skipped, seconds=state.clock.seconds)
        state.history.compile_seconds = state.clock.compiled_before + self.step.gradients.compile_seconds
        if state.schedule is not None and self.plan.scheduler_step == "epoch":
            _advance(state.schedule, -(state.history.valid or state.history.train)[-1])
        state.progress = Progress(now.epoch + 1)
        for observer in self.observers:
            if observer.sees_replays or not self.guard.replaying:
                observer.after_epoch(self)

    def _remember(self) -> None:
        """Keep a copy of the state in memory, if enough steps were made since the last copy."""
        due = self.memory.copy is None or self.steps_made >= self.memory.made + MEMORY_STEPS
        if due and not self.guard.replaying:
            self.memory.keep(self.as_dict(), self.steps_made)

    def _diverged(self, found: NotFiniteError) -> DivergenceError:
        now = self.state.progress
        step = now.step if now.step < self.plan.steps else None
        what = str(found) or (
            f"the {self.loss.name} objective or a parameter became NaN or infinite, but not when the steps were "
            f"repeated, so part of the computation does not depend on the seed"
        )
        place = f"at the end of epoch {now.epoch}" if step is None else f"in epoch {now.epoch}, step {step}"
        newest = None if self.checkpoints is None else self.checkpoints.newest()
        back = f", from {str(newest)!r} (pyrovae.load)" if newest and self.steps_made else ""
        advice = "Lower the learning rate, clip the gradient (clip_norm=), rescale the data"
        if not self.steps_made:
            advice = "No step has been made yet, so rescale the data, for example to mean 0 and standard deviation 1"
        return DivergenceError(
            f"{what}, {place}, counted from 0. {advice}, or bound the scales that the networks return, and train "
            f"again{back}",
            self.state.history,
            now.epoch,
            step,
            newest,
        )


def _zero(device: torch.device) -> Tensor:
    """Return a zero for summing the losses of an epoch, in double precision if the device supports it."""
    return torch.zeros((), dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)


def _advance(schedule: Schedule, loss: float) -> None:
    if isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
        schedule.step(loss)
    else:
        schedule.step()
