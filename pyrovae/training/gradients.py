"""The loss of a batch and its gradient: by running the programs, or by graphs that were made of them."""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.graphs import compiled_or_none
from pyrovae.precision import Precision, products
from pyrovae.sites import LatentScale

Batch = tuple[Tensor, ...]


class Gradients:
    """Leaves the gradient of an objective's loss in ``.grad`` of the parameters.

    Args:
        module: Has ``model`` and ``guide``.
        objective: A Pyro ELBO.
        precision: Of the matrix products.
    """

    seconds = 0.0  # for compilation

    def __init__(self, module: Any, objective: Any, precision: Precision | None) -> None:
        self.module, self.objective, self.precision = module, objective, precision

    def __call__(self, batch: Batch, kl_weight: float | Tensor) -> Tensor | float:
        """Returns the loss, with the latent sites weighted; the parameters are to have no gradient yet."""
        untouched = not isinstance(kl_weight, Tensor) and kl_weight == 1
        model, guide = self.module.model, self.module.guide
        with nullcontext() if untouched else LatentScale(kl_weight), products(self.precision):
            if not hasattr(self.objective, "differentiable_loss"):
                return first(self.objective.loss_and_grads(model, guide, *batch))
            loss = self.objective.differentiable_loss(model, guide, *batch)
            if loss.requires_grad:
                loss.backward()
            return loss.detach()


class CompiledGradients:
    """The same by a graph for each shape of batch, from the second call on.

    What cannot be compiled is run as it is, after a warning.

    Args:
        eager: What to compile.
        parameters: Those that get a gradient.
        others: Further tensors that the programs read: frozen parameters, buffers.
        modules: Modules that they run.
        weighted: Whether the weight of the latent sites will ever differ from 1.
    """

    def __init__(
        self,
        eager: Gradients,
        parameters: Sequence[Tensor],
        others: Iterable[Tensor],
        modules: Iterable[nn.Module],
        weighted: bool,
    ) -> None:
        self.eager, self.parameters, self.weighted, self.modules = eager, parameters, weighted, list(modules)
        self.tensors = list({id(tensor): tensor for tensor in (*parameters, *others)}.values())
        self.graphs: dict[Any, Callable[..., Tensor | float]] = {}
        self.seconds, self.is_first = 0.0, True

    def __call__(self, batch: Batch, kl_weight: float) -> Tensor | float:
        """Returns the loss, with the latent sites weighted; the parameters are to have no gradient yet."""
        if self.is_first:  # a run in which objectives find out what they ask a program once, such as its plates' depth
            self.is_first = False
            return self.eager(batch, kl_weight)
        inputs = (*batch, batch[0].new_full((), kl_weight)) if self.weighted else batch
        key = tuple((tensor.shape, tensor.dtype) for tensor in batch)
        if key not in self.graphs:
            start = time.perf_counter()
            self.graphs[key] = self._graph(batch, inputs)
            self.seconds += time.perf_counter() - start
        return self.graphs[key](batch, kl_weight, inputs)

    def _graph(self, batch: Batch, inputs: Sequence[Tensor]) -> Callable[..., Tensor | float]:
        receivers: list[Tensor] = []

        def loss_and_gradients() -> list[Tensor]:
            loss = self.eager(batch, inputs[-1] if self.weighted else 1.0)
            receivers[:] = [parameter for parameter in self.parameters if parameter.grad is not None]
            return [torch.as_tensor(loss), *(p.grad for p in self.parameters if p.grad is not None)]

        try:
            compiled = compiled_or_none(loss_and_gradients, self.tensors, inputs, self.modules, caller="fit")
        finally:
            for parameter in self.parameters:
                parameter.grad = None
        if compiled is None:
            return lambda batch, kl_weight, _: self.eager(batch, kl_weight)

        def run(_: Batch, __: float, inputs: Sequence[Tensor]) -> Tensor:
            with products(self.eager.precision):
                loss, *gradients = compiled(*inputs)
            for parameter, gradient in zip(receivers, gradients, strict=True):
                parameter.grad = gradient
            return loss

        return run


def first(loss: Any) -> Any:
    """A loss; of several (reweighted wake-sleep) the model's."""
    return loss[0] if isinstance(loss, tuple) else loss
