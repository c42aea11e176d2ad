"""The state of a run: everything on which the rest of the run depends. A checkpoint holds this state."""

import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from pyrovae.training.history import History
from pyrovae.training.observers.best_weights import BestWeights
from pyrovae.training.state import Progress, Tensors, generator_states, restore_generators

Schedule = torch.optim.lr_scheduler.LRScheduler


@dataclass
class Clock:
    """Clock of a run. It does not count the time from a checkpoint until the run continues from this checkpoint.

    Attributes:
        started: Value of ``time.perf_counter()`` at the start of the run, seconds. A continued run sets it to the
            present value minus the seconds that the checkpoint holds.
        compiled_before: Seconds of compilation in earlier processes.
    """

    started: float = field(default_factory=time.perf_counter)
    compiled_before: float = 0.0

    @property
    def seconds(self) -> float:
        """Return the seconds that the run has taken so far."""
        return time.perf_counter() - self.started


@dataclass
class RunState:
    """The state of a run.

    Attributes:
        tensors: Parameters and buffers.
        optimizer: Optimizer of torch.
        schedule: Schedule of the learning rate.
        best: Best weights, which the run restores at its end.
        history: Columns of the epochs so far.
        progress: Position in the run.
        clock: Seconds so far.
    """

    tensors: Tensors
    optimizer: torch.optim.Optimizer
    schedule: Schedule | None
    best: BestWeights
    history: History
    progress: Progress = field(default_factory=Progress)
    clock: Clock = field(default_factory=Clock)

    def as_dict(self, compile_seconds: float) -> dict[str, Any]:
        """Return the state of the run and of the random generators as plain values and tensors, without copying."""
        return {
            "progress": dict(vars(self.progress)),
            "tensors": self.tensors.named(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "generators": generator_states(),
            "history": asdict(self.history),
            "best": self.best.state(),
            "seconds": self.clock.seconds,
            "compile_seconds": self.clock.compiled_before + compile_seconds,
        }

    def load(self, state: dict[str, Any], compile_seconds: float, device: torch.device) -> None:
        """Restore the run and the random generators from a state that :meth:`as_dict` returned."""
        self.tensors.restore(state["tensors"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        restore_generators(state["generators"])
        self.best.load(state["best"])
        self.history = History(**{**state["history"], "interrupted": False})
        self.progress = Progress(**tree_map_only(Tensor, lambda tensor: tensor.to(device), state["progress"]))
        self.clock = Clock(time.perf_counter() - state["seconds"], state["compile_seconds"] - compile_seconds)


class Memory:
    """A copy of a run's state in memory, from which the run can repeat steps."""

    def __init__(self) -> None:
        self.copy: dict[str, Any] | None = None
        self.made = 0

    def keep(self, state: dict[str, Any], made: int) -> None:
        """Store a copy of ``state``, the state of the run after ``made`` steps."""
        best = state.pop("best")  # its tensors are copies already
        self.copy = {**tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), state), "best": best}
        self.made = made
