"""Steps of the optimizer on a module's loss, and bounds per datum."""

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from pyro import poutine
from torch import Tensor, nn

from pyrovae.arguments import Data, as_tuple
from pyrovae.isolation import isolated, restore_buffers, save_buffers
from pyrovae.training.captured_step import CapturedUpdates, can_be_captured
from pyrovae.training.gradients import CompiledGradients
from pyrovae.training.losses import Batch, Criterion
from pyrovae.training.nonfinite import NotFiniteError, Watch, are_finite, first_not_finite
from pyrovae.training.shares import Shares
from pyrovae.training.state import Tensors, generator_states, restore_generators

Transform = Callable[..., Data]
NonFinite = Literal["raise", "skip"]


class Steps:
    """One module under one criterion.

    Args:
        module: What is trained.
        criterion: Its loss.
        batch_size: Data per step.
        clip_norm: What the norm of a gradient is cut down to.
        skip: Whether a step is left out if its loss or gradient is not finite.

    Attributes:
        tensors: All that are kept of the module and its programs.
        parameters: Those that are trained, by name, once the data have been checked.
        optimizer: To be given before the first step.
        watched: Whether every step is looked at, and refused if something in it is not finite.
    """

    optimizer: torch.optim.Optimizer

    def __init__(
        self, module: nn.Module, criterion: Criterion, batch_size: int, clip_norm: float | None, skip: bool
    ) -> None:
        self.module, self.criterion, self.batch_size = module, criterion, batch_size
        self.clip_norm, self.skip, self.watched = clip_norm, skip, False
        self.gradients: Criterion | CompiledGradients | Shares = criterion
        self.captured: CapturedUpdates | None = None
        self.tensors = Tensors(module, {})
        self.parameters: dict[str, Tensor] = {}

    def check(self, data: Batch, transform: Transform | None = None) -> None:
        """Runs all data once with validation on, and finds the parameters."""
        with isolated(*self.criterion.programs, seed=0), poutine.trace(param_only=True) as capture:
            for batch in batches(data, self.batch_size, transform):
                self.criterion.check(batch)
        known = {id(tensor) for tensor in (*self.module.parameters(), *self.tensors.stored.values())}
        for name, site in capture.trace.nodes.items():
            value: Any = site["value"]
            if id(tensor := value.unconstrained()) not in known:
                self.tensors.keep(name, tensor)
                known.add(id(tensor))
        named = {**dict(self.module.named_parameters()), **self.tensors.stored}
        self.parameters = {name: tensor for name, tensor in named.items() if tensor.requires_grad}

    def compile(self, weighted: bool) -> None:
        """Compiles the gradients, when the first batch is there."""
        others, modules = (*self.module.parameters(), *self.module.buffers()), self.module.modules()
        parameters = list(self.parameters.values())
        self.gradients = CompiledGradients(self.criterion, parameters, others, modules, weighted)
        if can_be_captured(self.optimizer):
            self.captured = CapturedUpdates(self.optimizer)

    def share_out(self, data: Batch, transform: Transform | None = None) -> None:
        """Shares the batches out among the processes that this one has joined; data have been checked."""
        with isolated(*self.criterion.programs, seed=0):
            batch = next(batches(data, self.batch_size, transform))
        self.gradients = Shares(self.criterion, self.tensors, batch)

    def settle(self) -> None:
        """Sees to it that all processes have the same module."""
        if isinstance(self.gradients, Shares):
            self.gradients.settle()

    @property
    def compile_seconds(self) -> float:
        """What compilation has taken so far."""
        return self.gradients.seconds if isinstance(self.gradients, CompiledGradients) else 0.0

    def step(self, batch: Batch, kl_weight: float) -> Tensor | float | None:
        """Makes a step and returns the loss; or None, if the step was skipped.

        Raises:
            NotFiniteError: If steps are watched and something is not finite; nothing has been changed then.
            ValueError: If no parameter gets a gradient.
        """
        self.optimizer.zero_grad()
        is_looked_at = self.watched or self.skip
        before = (generator_states(), save_buffers(self.module.modules())) if is_looked_at else None
        loss = self.gradients(batch, kl_weight)
        slopes = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        if not slopes:
            raise ValueError(
                f"no parameter of {type(self.module).__name__} gets a gradient from {self.criterion.name}; use the "
                f"module's parameters in its model, guide or loss, and announce them with pyro.module where the "
                f"objective is not differentiable by itself"
            )
        if before is not None and not are_finite([torch.as_tensor(loss), *slopes.values()]):
            generators, buffers = before
            restore_buffers(buffers)
            if self.skip:
                return None
            restore_generators(generators)
            reason = self._reason(batch, kl_weight, loss, slopes)
            restore_buffers(buffers)  # once more: to find the reason, the programs may have been run
            raise NotFiniteError(reason)
        if self.captured is not None and isinstance(self.gradients, CompiledGradients) and self.gradients.in_place:
            self.captured(self._update, list(slopes.values()))
        else:
            self._update()
        if self.watched and (name := first_not_finite(self.parameters)):
            raise NotFiniteError(f"the step of {type(self.optimizer).__name__} spoiled parameter {name}")
        return loss

    def _update(self) -> None:
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), self.clip_norm)
        self.optimizer.step()

    def _reason(self, batch: Batch, kl_weight: float, loss: Tensor | float, slopes: dict[str, Tensor]) -> str:
        """Says what is not finite in a step, by making it again under the eyes of :class:`Watch`."""
        if are_finite([torch.as_tensor(loss)]):
            return f"the gradient of parameter {first_not_finite(slopes)} is not finite"
        with Watch() as watch:
            self.criterion(batch, kl_weight)
        self.optimizer.zero_grad()
        return watch.explain(self.criterion.name, -float(loss))

    def bound(self, data: Batch) -> float:
        """Returns the bound on data, nats per datum, with the same noise at every call.

        Raises:
            NotFiniteError: If it is not finite.
        """
        self.settle()
        value = self.gradients.value if isinstance(self.gradients, Shares) else self.criterion.value
        with isolated(*self.criterion.programs, seed=0):
            parts = batches(data, self.batch_size)
            bound = -sum(value(part) * self.criterion.share(part) for part in parts) / len(data[0])
        if not math.isfinite(bound):
            with isolated(*self.criterion.programs, seed=0), Watch() as watch:
                for part in batches(data, self.batch_size):
                    self.criterion.value(part)
            raise NotFiniteError(watch.explain(self.criterion.name, bound))
        return bound


def batches(
    data: Batch, size: int, transform: Transform | None = None, order: Tensor | None = None, start: int = 0
) -> Iterator[Batch]:
    """The batches of some data from the one of index ``start`` on, in an order or as they stand."""
    order = torch.arange(len(data[0]), device=data[0].device) if order is None else order
    for indices in order.split(size)[start:]:
        batch = tuple(tensor[indices] for tensor in data)
        yield batch if transform is None else as_tuple(transform(*batch))
