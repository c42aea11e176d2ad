"""A single step as ``fit`` makes it."""

from functools import partial

import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from pyrovae.isolation import isolated
from pyrovae.training.gradients.compiled import CompiledGradients
from pyrovae.training.losses import Bound
from pyrovae.training.optimizers import TorchOptimizer
from pyrovae.training.steps import Step


def compiled_step(
    module: nn.Module, batch: tuple[Tensor, ...], weighted: bool, clip_norm: float | None = None
) -> tuple[Step, CompiledGradients]:
    """Return a step by compiled gradients and a fused Adam, and its gradients."""
    loss, parameters = Bound(module, Trace_ELBO()), dict(module.named_parameters())
    with isolated(module, seed=0):
        loss.check(batch, len(batch[0]))
    optimizer = TorchOptimizer(partial(torch.optim.Adam, fused=True), parameters, clip_norm)
    gradients = CompiledGradients(
        loss, parameters, module.buffers(), module.modules(), weighted=weighted, optimizer=optimizer.optimizer
    )
    return Step(gradients, optimizer, None, ("module", loss.name)), gradients
