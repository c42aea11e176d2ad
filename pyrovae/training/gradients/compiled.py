"""The gradient of a loss by compiled graphs, the only place where training depends on ``_compilation``."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae._compilation.graphs import compiled_or_none
from pyrovae._compilation.precision import Precision, check_precision, products
from pyrovae.training.batches import Batch
from pyrovae.training.captured_step import CapturedUpdates, can_be_captured
from pyrovae.training.losses import LossAndGradient, Products

logger = logging.getLogger(__name__)


def products_in(precision: Precision, device: torch.device) -> Products:
    """Return a function that returns a context manager for the precision of matrix products.

    Raises:
        ValueError: If the precision is unknown or the device does not support it.
    """
    check_precision(precision, device)
    return partial(products, precision)


class CompiledGradients:
    """The gradient of a loss by one graph for each batch shape.

    The loss must have checked a batch before the first gradient. A program that cannot be compiled runs eagerly after a
    warning that names the cause.

    Args:
        loss: Loss to differentiate.
        parameters: Trained parameters by name.
        others: Further tensors that the programs read: frozen parameters and buffers.
        modules: Modules that the programs run.
        weighted: If true, the weight of the latent sites may differ from 1.
        optimizer: Optimizer whose steps are captured as a CUDA graph if possible; ``None`` captures no steps.
        caller: Name of the caller, for warnings.
    """

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
    ) -> None:
        self.loss, self.parameters, self.weighted, self.caller = loss, parameters, weighted, caller
        self.modules = list(modules)
        self.tensors = list({id(tensor): tensor for tensor in (*parameters.values(), *others)}.values())
        self.graphs: dict[Any, Callable[..., Tensor | float]] = {}
        self.compile_seconds, self.has_failed = 0.0, False
        self.is_in_place = False  # true if the last gradients are outputs of a CUDA graph, whose addresses are fixed
        can_capture = optimizer is not None and can_be_captured(optimizer)
        self.captured = CapturedUpdates(optimizer) if optimizer is not None and can_capture else None

    def __call__(self, batch: Batch, kl_weight: float) -> Tensor | float:
        """Return the loss at a KL weight, and store its gradient."""
        inputs = (*batch, batch[0].new_full((), kl_weight)) if self.weighted else batch
        key = tuple((tensor.shape, tensor.dtype) for tensor in batch)
        if key not in self.graphs:
            start = time.perf_counter()
            self.graphs[key] = self._graph(batch, inputs)
            self.compile_seconds += time.perf_counter() - start
        return self.graphs[key](batch, kl_weight, inputs)

    def value(self, batch: Batch) -> float:
        """Return the loss of a batch without a gradient, eagerly."""
        return self.loss.value(batch)

    def update(self, step: Callable[[], None]) -> None:
        """Make the optimizer's step, as a CUDA graph if the gradients are outputs of a graph."""
        if self.captured is not None and self.is_in_place:
            self.captured(step, [p.grad for p in self.parameters.values() if p.grad is not None])
        else:
            step()

    def sync_buffers(self) -> None:
        """Do nothing, because there is only one process."""

    def _graph(self, batch: Batch, inputs: Sequence[Tensor]) -> Callable[..., Tensor | float]:
        parameters, receivers = list(self.parameters.values()), list[Tensor]()
        start = time.perf_counter()

        def loss_and_gradients() -> list[Tensor]:
            loss = self.loss(batch, inputs[-1] if self.weighted else 1.0)
            receivers[:] = [parameter for parameter in parameters if parameter.grad is not None]
            return [torch.as_tensor(loss), *(p.grad for p in parameters if p.grad is not None)]

        try:
            with self.loss.products():  # a CUDA graph keeps the kernels with which it was captured
                compiled = compiled_or_none(loss_and_gradients, self.tensors, inputs, self.modules, caller=self.caller)
        finally:
            for parameter in parameters:
                parameter.grad = None
        if compiled is None:
            self.has_failed = True
            return self._eager
        logger.info("compiled for a batch of %d in %.1f s", len(batch[0]), time.perf_counter() - start)

        def run(_: Batch, __: float, inputs: Sequence[Tensor]) -> Tensor:
            loss, *gradients = compiled(*inputs)
            for parameter, gradient in zip(receivers, gradients, strict=True):
                parameter.grad = gradient
            self.is_in_place = loss.is_cuda
            return loss

        return run

    def _eager(self, batch: Batch, kl_weight: float, _: Sequence[Tensor]) -> Tensor | float:
        self.is_in_place = False
        return self.loss(batch, kl_weight)
