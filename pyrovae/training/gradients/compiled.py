"""The gradient of a loss by compiled graphs. This module is imported only to compile or to set a precision."""

import logging
import operator
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae._compilation.graphs import Graph, compiled_or_none, warn_caller
from pyrovae._compilation.precision import Precision, check_precision, products
from pyrovae.training.batches import Batch
from pyrovae.training.captured_step import CapturedUpdates, can_be_captured
from pyrovae.training.gradients.comparison import Comparison
from pyrovae.training.losses import LossAndGradient, Products

logger = logging.getLogger(__name__)


def products_in(precision: Precision, device: torch.device) -> Products:
    """Return a function without arguments, which makes a context manager that sets the precision of matrix products.

    Raises:
        ValueError: If the precision is unknown or the device does not support it.
    """
    check_precision(precision, device)
    return partial(products, precision)


class CompiledGradients:
    """The gradient of a loss by compiled graphs, one for each batch shape.

    Before the first gradient, the programs must have run once with Pyro's validation, because a graph cannot validate.
    If the programs cannot be compiled, a message names the cause, and they run eagerly. A graph keeps the numbers and
    branches that Python code computed when the graph was recorded. If a number or a branch changes later, the graph no
    longer computes the loss of the programs. As soon as a comparison shows this, the programs run eagerly.

    Args:
        loss: Loss to differentiate.
        parameters: Trained parameters by name.
        others: Further tensors that the programs read: frozen parameters and buffers.
        modules: Modules that the programs run.
        weighted: If true, the weight of the latent sites may differ from 1.
        optimizer: Optimizer whose steps are captured as a CUDA graph if possible; ``None`` captures no steps.
        caller: Name of the caller, for messages.
        tell: Function that is called with the message for a program that cannot be compiled; by default a warning.
    """

    is_compiled = True

    def __init__(
        self,
        loss: LossAndGradient,
        parameters: Mapping[str, Tensor],
        others: Iterable[Tensor],
        modules: Iterable[nn.Module],
        *,
        weighted: bool,
        optimizer: torch.optim.Optimizer | None = None,
        caller: str = "fit",
        tell: Callable[[str], None] = warn_caller,
    ) -> None:
        self.loss, self.parameters, self.weighted, self.caller, self.tell = loss, parameters, weighted, caller, tell
        self.modules = list(modules)
        self.tensors = list({id(tensor): tensor for tensor in (*parameters.values(), *others)}.values())
        self.graphs: dict[Any, Callable[..., Tensor]] = {}
        self.texts: dict[Any, str] = {}
        self.replayed_sizes = set[int]()
        self.comparison = Comparison(list(parameters.values()), self.modules)
        self.compile_seconds, self.has_failed = 0.0, False
        self.in_place: list[Tensor] = []  # the last gradients if a CUDA graph computed them, at fixed addresses
        can_capture = optimizer is not None and can_be_captured(optimizer)
        self.captured = CapturedUpdates(optimizer) if optimizer is not None and can_capture else None

    def __call__(self, batch: Batch, kl_weight: float) -> Tensor | float:
        """Return the loss of a batch at a KL weight, and store its gradient in ``.grad`` of the parameters."""
        inputs = (*batch, _as_tensor(kl_weight, batch[0])) if self.weighted else batch
        key = _kind(batch)
        if self.has_failed:
            return self._eager(batch, kl_weight)
        if key not in self.graphs:
            start = time.perf_counter()
            compiled = self._graph(key, batch, inputs)
            self.compile_seconds += time.perf_counter() - start
            if compiled is None:
                self.has_failed = True
                return self._eager(batch, kl_weight)
            self.graphs[key] = compiled
            self.comparison.is_due = True
        if self.comparison.is_due:
            return self._compared(key, batch, kl_weight, inputs)
        self.comparison.calls += 1
        return self.graphs[key](inputs)

    def launch(self, batch: Batch, kl_weight: Tensor) -> Tensor:
        """Return the loss and store its gradient, so that a larger CUDA graph can record this computation.

        The computation's own CUDA graph is therefore not replayed.

        Args:
            batch: Batch of the shape and dtype of an earlier batch.
            kl_weight: Weight of the latent sites, shape ``()``.
        """
        inputs = (*batch, kl_weight.to(_weight_dtype(batch[0]))) if self.weighted else batch
        with self.loss.products():
            return self.graphs[_kind(batch)](inputs, is_recorded=True)

    def replays(self, size: int) -> bool:
        """Return whether a CUDA graph computes the gradients of batches of ``size`` data.

        No CUDA graph is used for programs that read a number from the CPU, because the number may change.
        """
        return size in self.replayed_sizes

    @property
    def is_settled(self) -> bool:
        """Return whether the next call only runs a graph; this assumes that its batch shape has a graph.

        The result is false if the next call compares the graph with the programs, or if the programs run eagerly
        after a failed compilation or comparison.
        """
        return not (self.has_failed or self.comparison.is_due)

    def compare(self) -> None:
        """In the next call, compare the loss with the loss of an eager run.

        Nothing is compared if fewer than 20 calls have passed since the last comparison.
        """
        self.comparison.request()

    def value(self, batch: Batch) -> float:
        """Return the loss of a batch, computed eagerly and without a gradient."""
        return self.loss.value(batch)

    def update(self, step: Callable[[], None]) -> None:
        """Make the optimizer's step.

        If a CUDA graph computed the gradients and the optimizer can be captured, another CUDA graph makes the step.
        """
        if self.captured is not None and self.in_place:
            gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
            if all(map(operator.is_, gradients, self.in_place)):  # false for sums of the gradients of several batches
                self.captured(step, gradients)
                return
        step()

    def sync_buffers(self) -> None:
        """Do nothing, because there is only one process."""

    def _compared(self, key: Any, batch: Batch, kl_weight: float, inputs: Sequence[Tensor]) -> Tensor | float:
        """Run a batch by the graph and by the programs, compare the two losses, and return the loss of the graph.

        Warn and return the loss of the programs instead if the losses differ for one of two reasons: the programs have
        changed since they were recorded, or, on a CPU, the difference is larger than rounding explains.
        """
        before, past = self.comparison.state(), self.comparison.calls
        expected = float(torch.as_tensor(self._eager(batch, kl_weight)).detach())
        self.comparison.restore(before)
        loss = self.graphs[key](inputs)
        if not self.comparison.differ(float(loss), expected, torch.finfo(loss.dtype).eps):
            return loss
        is_same = self._text(batch, inputs) == self.texts[key]
        if is_same and (self.comparison.accept(float(loss), expected) or loss.is_cuda):
            return loss
        self.has_failed = True
        warn_caller(
            f"{self.caller} continues without compilation: a number or a branch that the programs compute in Python "
            f"has changed since they were recorded. The recorded loss is {float(loss):.6g}, and the programs now "
            f"give {expected:.6g}. Up to {past} steps before this one may have used the old value. Store a changing "
            f"number as a tensor and change the tensor in place, for example by beta.fill_(0.5), or pass compile=False."
            if not is_same
            else f"{self.caller} continues without compilation: for the same batch and noise, the compiled loss is "
            f"{float(loss):.6g}, and the programs give {expected:.6g}. The compiler has probably changed the "
            f"computation. Steps before this one may have used wrong gradients, so train again with compile=False."
        )
        self.comparison.restore(before)
        return self._eager(batch, kl_weight)

    def _text(self, batch: Batch, inputs: Sequence[Tensor]) -> str | None:
        """Record the programs again, and return the new graph as text. Return None if the recording fails."""
        gradients = [parameter.grad for parameter in self.parameters.values()]
        self._forget_gradients()
        try:
            with self.loss.products():
                outputs = partial(self._outputs, batch, inputs, [])
                return Graph(outputs, self.tensors, inputs, self.modules).text
        except Exception:  # an error of the programs is raised again when they run
            return None
        finally:
            for parameter, gradient in zip(self.parameters.values(), gradients, strict=True):
                parameter.grad = gradient

    def _outputs(self, batch: Batch, inputs: Sequence[Tensor], receivers: list[Tensor]) -> list[Tensor]:
        """Return a list that holds first the loss and then the gradients.

        The list ``receivers`` is overwritten with the parameters that have a gradient, in the order of the gradients.
        """
        loss = self.loss(batch, inputs[-1] if self.weighted else 1.0)
        receivers[:] = [parameter for parameter in self.parameters.values() if parameter.grad is not None]
        return [torch.as_tensor(loss), *(p.grad for p in receivers if p.grad is not None)]

    def _graph(self, key: Any, batch: Batch, inputs: Sequence[Tensor]) -> Callable[..., Tensor] | None:
        receivers = list[Tensor]()
        start = time.perf_counter()
        outputs = partial(self._outputs, batch, inputs, receivers)
        try:
            with self.loss.products():  # a CUDA graph keeps the kernels with which it was captured
                compiled = compiled_or_none(
                    outputs, self.tensors, inputs, self.modules, caller=self.caller, tell=self.tell
                )
        finally:
            self._forget_gradients()
        if compiled is None:
            return None
        logger.info("compiled for a batch of %d in %.1f s", len(batch[0]), time.perf_counter() - start)
        self.texts[key] = compiled.text
        if compiled.is_replayed:
            self.replayed_sizes.add(len(batch[0]))

        def run(inputs: Sequence[Tensor], is_recorded: bool = False) -> Tensor:
            loss, *gradients = (compiled.launch if is_recorded else compiled)(*inputs)
            for parameter, gradient in zip(receivers, gradients, strict=True):
                parameter.grad = gradient
            self.in_place = gradients if compiled.is_replayed and not is_recorded else []
            return loss

        return run

    def _eager(self, batch: Batch, kl_weight: float) -> Tensor | float:
        self.in_place = []
        return self.loss(batch, kl_weight)

    def _forget_gradients(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None


def _kind(batch: Batch) -> Any:
    """Return the shapes and dtypes of the tensors in a batch. Batches with equal shapes and dtypes share a graph."""
    return tuple((tensor.shape, tensor.dtype) for tensor in batch)


def _as_tensor(number: float, like: Tensor) -> Tensor:
    """Return a number as a floating-point tensor of shape ``()`` on the device of ``like``."""
    return like.new_full((), number, dtype=_weight_dtype(like))


def _weight_dtype(data: Tensor) -> torch.dtype:
    """Return the dtype of the KL weight: the dtype of floating-point data, or torch's default dtype for other data."""
    return data.dtype if data.is_floating_point() else torch.get_default_dtype()
