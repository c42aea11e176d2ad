"""A run: epochs of steps from wherever it stands, and its state, from which it goes on as if nothing had happened."""

import math
import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from pyrovae import parallel
from pyrovae.training.best import Best
from pyrovae.training.checkpoints import CheckpointError, Checkpoints
from pyrovae.training.history import History
from pyrovae.training.losses import Batch
from pyrovae.training.nonfinite import DivergenceError, NotFiniteError, are_finite
from pyrovae.training.report import Watching
from pyrovae.training.signals import StopSignals
from pyrovae.training.state import Progress, generator_states, restore_generators
from pyrovae.training.steps import Steps, Transform, batches

Schedule = torch.optim.lr_scheduler.LRScheduler
MEMORY_STEPS = 100  # how many steps lie at least between two copies of the state, which take a step's time


@dataclass(frozen=True)
class Plan:
    """What a run is to do: see :func:`pyrovae.fit`."""

    train: Batch
    valid: Batch | None
    transform: Transform | None
    epochs: int
    batch_size: int
    kl_warmup: int
    patience: int | None

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return math.ceil(len(self.train[0]) / self.batch_size)

    def ramp(self, epoch: int) -> list[float]:
        """The weight of the latent sites at each step of an epoch."""
        steps = self.steps
        return [min(1.0, (epoch * steps + i + 1) / (self.kl_warmup * steps or 1)) for i in range(steps)]


class Run:
    """A run of :func:`pyrovae.fit`, data checked and optimizer made.

    Args:
        plan: What it is to do.
        steps: How it makes a step.
        schedule: Of the learning rate.
        checkpoints: Where it is kept.
        watching: Tells of it.

    Attributes:
        history: What it did.
    """

    def __init__(
        self,
        plan: Plan,
        steps: Steps,
        schedule: Schedule | None,
        checkpoints: Checkpoints | None,
        watching: Watching,
    ) -> None:
        self.plan, self.steps, self.schedule, self.checkpoints = plan, steps, schedule, checkpoints
        self.watching = watching
        self.history, self.best, self.progress = History(steps.criterion.name), Best(steps.tensors), Progress()
        self.signals = StopSignals(active=checkpoints is not None or parallel.size() > 1)
        self.started, self.compiled_before = time.perf_counter(), 0.0
        self.saved: tuple[int, int] | None = None
        self.memory: dict[str, Any] | None = None
        self.remembered, self.failed = 0, -1

    def __call__(self) -> None:
        """Trains to the end, or until told to stop; the module then has the best weights.

        Raises:
            DivergenceError: If something is not finite.
            CheckpointError: If a checkpoint could not be written.
        """
        try:
            with self.signals:
                try:
                    self._begin()
                    self._train()
                except KeyboardInterrupt:
                    self.history.interrupted = True
                finally:
                    if self.progress.step and self.plan.valid is None:
                        self.history.best_epoch = None  # the weights are from amid an epoch
                    self.best.restore()
                    self.watching.close()
                received = self.signals.received
                self.watching.end(self.history, self.progress, received, self._is_patience_over())
        except CheckpointError as error:
            error.history = self.history
            raise

    def _begin(self) -> None:
        restore_generators(parallel.in_first(generator_states))
        if self.checkpoints is not None:
            if state := parallel.in_first(self.checkpoints.latest):
                self._restore(state)
                self.saved = self.progress.epoch, self.progress.step
            else:
                self._save()
        parallel.share_generators()
        self.watching.begin(self.plan, self.steps, self.progress)

    def _train(self) -> None:
        """Trains; where something is not finite, and it is too late to say what, makes the last steps again."""
        try:
            self._epochs()
        except NotFiniteError as error:
            if str(error) or self.memory is None:
                raise self._diverged(error) from None
            self.failed = self.progress.epoch
            self._restore(self.memory)
            self.steps.watched = True
            try:
                self._epochs()
            except NotFiniteError as found:
                error = found
            raise self._diverged(error) from None

    def _epochs(self) -> None:
        while self.progress.epoch < self.plan.epochs and not self._is_patience_over():
            if self._is_told_to_stop():
                self._check_finite()  # no checkpoint is made of what is lost
                self.history.interrupted = True
                break
            self._remember()
            self._steps()
            if self.progress.step == self.plan.steps:
                self._close_epoch()
        self._save()

    def _is_told_to_stop(self) -> bool:
        if self.steps.watched:
            return False
        if agreed := parallel.largest(self.signals.received or 0):  # all processes stop at the same step
            self.signals.received = agreed
        return agreed > 0

    def _check_finite(self) -> None:
        if not (math.isfinite(self.progress.total) and are_finite(self.steps.parameters.values())):
            raise NotFiniteError

    def _steps(self) -> None:
        """Makes the steps that are left of an epoch."""
        plan, now, criterion = self.plan, self.progress, self.steps.criterion
        if now.order is None:
            now.order = torch.randperm(len(plan.train[0]), device=plan.train[0].device)
        ramp = plan.ramp(now.epoch)[now.step :]
        parts = batches(plan.train, plan.batch_size, plan.transform, now.order, now.step)
        for batch, kl_weight in zip(parts, ramp, strict=True):
            loss = self.steps.step(batch, kl_weight)
            if loss is None:
                now.skipped += 1
            else:
                now.total = now.total + loss * criterion.share(batch)
                now.seen += len(batch[0])
            now.step += 1
            self.watching.step()
            if self._is_told_to_stop():
                break

    def _close_epoch(self) -> None:
        """Judges an epoch whose steps have been made, and gets ready for the next."""
        now, steps = self.progress, self.steps
        if now.seen == 0:
            raise NotFiniteError("no step of the epoch had a finite loss and gradient, so that all were skipped")
        self._check_finite()
        row = {
            "learning_rate": float(steps.optimizer.param_groups[0]["lr"]),
            "kl_weight": self.plan.ramp(now.epoch)[-1],
            "train": -float(now.total) / now.seen,
        }
        if now.epoch == self.failed:  # steps that are made again should not have got so far
            raise NotFiniteError
        if self.plan.valid is not None:
            row["valid"] = steps.bound(self.plan.valid)
        self.history.append(**row, skipped=now.skipped, seconds=time.perf_counter() - self.started)
        self.history.compile_seconds = self.compiled_before + steps.compile_seconds
        self.history.best_epoch = self.best.offer(now.epoch, row.get("valid"))
        if self.schedule is not None:
            _advance(self.schedule, self.history)
        self.progress = Progress(now.epoch + 1)
        self.watching.epoch(self.history, steps)
        if self.checkpoints is not None and self.progress.epoch % self.checkpoints.every == 0:
            self._save()

    def _save(self) -> None:
        place = self.progress.epoch, self.progress.step
        if self.checkpoints is not None and self.saved != place and not self.steps.watched:
            parallel.in_first(partial(self.checkpoints.save, self._state()))
            self.saved = place

    def _remember(self) -> None:
        """Copies the state, if it is long enough since that was done."""
        made = self.progress.epoch * self.plan.steps + self.progress.step
        if not self.steps.watched and (self.memory is None or made >= self.remembered + MEMORY_STEPS):
            state = self._state()
            best = state.pop("best")  # whose tensors are copies
            self.memory = {**tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), state), "best": best}
            self.remembered = made

    def _diverged(self, found: NotFiniteError) -> DivergenceError:
        now, step = self.progress, self.progress.step if self.progress.step < self.plan.steps else None
        what = str(found) or (
            f"the {self.history.objective} objective or a parameter became NaN or infinite, but not when the steps "
            f"were repeated, so that something in them does not follow from the seed,"
        )
        place = f"at the end of epoch {now.epoch}" if step is None else f"in epoch {now.epoch}, step {step}"
        newest = None if self.checkpoints is None else parallel.in_first(partial(getattr, self.checkpoints, "newest"))
        back = f", from {str(newest)!r} (pyrovae.load)" if newest else ""
        return DivergenceError(
            f"{what} {place}, counted from 0; lower the learning rate, clip the gradient (clip_norm=), rescale the "
            f"data, or bound the scales that the networks give, and train again{back}",
            self.history,
            now.epoch,
            step,
            newest,
        )

    def _is_patience_over(self) -> bool:
        patience = self.plan.patience
        return patience is not None and self.progress.epoch - 1 - self.best.epoch >= patience

    def _state(self) -> dict[str, Any]:
        """All that the rest of the run depends on, as tensors and plain values, not copied."""
        return {
            "progress": dict(vars(self.progress)),
            "tensors": self.steps.tensors.named(),
            "optimizer": self.steps.optimizer.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "generators": generator_states(),
            "history": asdict(self.history),
            "best": self.best.state(),
            "seconds": time.perf_counter() - self.started,
            "compile_seconds": self.compiled_before + self.steps.compile_seconds,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        device = self.plan.train[0].device
        self.steps.tensors.restore(state["tensors"])
        self.steps.optimizer.load_state_dict(state["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        restore_generators(state["generators"])
        self.best.load(state["best"])
        self.history = History(**{**state["history"], "interrupted": False})
        self.progress = Progress(**tree_map_only(Tensor, lambda tensor: tensor.to(device), state["progress"]))
        self.started = time.perf_counter() - state["seconds"]
        self.compiled_before = state["compile_seconds"] - self.steps.compile_seconds
        self.watching.go_on(self.progress.epoch * self.plan.steps + self.progress.step)


def _advance(schedule: Schedule, history: History) -> None:
    if isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
        schedule.step(-(history.valid or history.train)[-1])
    else:
        schedule.step()
