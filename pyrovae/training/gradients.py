"""The gradient of a loss by graphs that were made of it."""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae._compilation.graphs import compiled_or_none
from pyrovae._compilation.precision import products
from pyrovae.training.losses import Batch, Criterion

logger = logging.getLogger(__name__)


class CompiledGradients:
    """A criterion's gradient by a graph for each shape of batch; the criterion has checked one before.

    What cannot be compiled is run as it is, after a warning.

    Args:
        eager: The criterion.
        parameters: Those that get a gradient.
        others: Further tensors that the programs read: frozen parameters, buffers.
        modules: Modules that they run.
        weighted: Whether the weight of the latent sites will ever differ from 1.

    Attributes:
        in_place: Whether the last gradients are the output of a CUDA graph, whose addresses do not change.
    """

    def __init__(
        self,
        eager: Criterion,
        parameters: Sequence[Tensor],
        others: Iterable[Tensor],
        modules: Iterable[nn.Module],
        weighted: bool,
    ) -> None:
        self.eager, self.parameters, self.weighted, self.modules = eager, parameters, weighted, list(modules)
        self.tensors = list({id(tensor): tensor for tensor in (*parameters, *others)}.values())
        self.graphs: dict[Any, Callable[..., Tensor | float]] = {}
        self.seconds, self.in_place = 0.0, False

    def __call__(self, batch: Batch, kl_weight: float) -> Tensor | float:
        """Returns the loss, with the latent sites weighted; the parameters are to have no gradient yet."""
        inputs = (*batch, batch[0].new_full((), kl_weight)) if self.weighted else batch
        key = tuple((tensor.shape, tensor.dtype) for tensor in batch)
        if key not in self.graphs:
            start = time.perf_counter()
            self.graphs[key] = self._graph(batch, inputs)
            self.seconds += time.perf_counter() - start
        return self.graphs[key](batch, kl_weight, inputs)

    def _graph(self, batch: Batch, inputs: Sequence[Tensor]) -> Callable[..., Tensor | float]:
        receivers: list[Tensor] = []
        start = time.perf_counter()

        def loss_and_gradients() -> list[Tensor]:
            loss = self.eager(batch, inputs[-1] if self.weighted else 1.0)
            receivers[:] = [parameter for parameter in self.parameters if parameter.grad is not None]
            return [torch.as_tensor(loss), *(p.grad for p in self.parameters if p.grad is not None)]

        try:
            with products(self.eager.precision):  # a CUDA graph keeps the kernels that it was captured with
                compiled = compiled_or_none(loss_and_gradients, self.tensors, inputs, self.modules, caller="fit")
        finally:
            for parameter in self.parameters:
                parameter.grad = None
        if compiled is None:
            return self._as_it_is
        logger.info("compiled for a batch of %d in %.1f s", len(batch[0]), time.perf_counter() - start)

        def run(_: Batch, __: float, inputs: Sequence[Tensor]) -> Tensor:
            loss, *gradients = compiled(*inputs)
            for parameter, gradient in zip(receivers, gradients, strict=True):
                parameter.grad = gradient
            self.in_place = loss.is_cuda
            return loss

        return run

    def _as_it_is(self, batch: Batch, kl_weight: float, _: Sequence[Tensor]) -> Tensor | float:
        self.in_place = False
        return self.eager(batch, kl_weight)
