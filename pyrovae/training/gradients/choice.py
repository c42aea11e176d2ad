"""The choice between eager, compiled and distributed gradients."""

import warnings

import torch
from torch import Tensor

from pyrovae import parallel
from pyrovae._warnings import find_stack_level
from pyrovae.isolation import isolated
from pyrovae.training.batches import Batches
from pyrovae.training.gradients import Gradients
from pyrovae.training.gradients.eager import EagerGradients
from pyrovae.training.losses import Loss
from pyrovae.training.state import Tensors


def choose_gradients(
    loss: Loss,
    tensors: Tensors,
    parameters: dict[str, Tensor],
    batches: Batches,
    *,
    is_compiled: bool,
    weighted: bool,
    optimizer: torch.optim.Optimizer | None,
) -> Gradients:
    """Return the object that computes the gradients of a run.

    Args:
        loss: Loss to differentiate.
        tensors: Tensors of the module.
        parameters: Trained parameters by name.
        batches: Batches of the training data.
        is_compiled: If true, gradients are compiled.
        weighted: If true, the weight of the latent sites changes during the run.
        optimizer: The optimizer, if a compiled gradient may capture its step.

    Warns:
        UserWarning: If compilation is requested in several processes, where it is not supported.
    """
    module = tensors.module
    if parallel.size() > 1:
        from pyrovae.training.gradients.distributed import DistributedGradients

        if is_compiled and parallel.is_first():
            warnings.warn("several processes train without compilation", stacklevel=find_stack_level())
        with isolated(*loss.programs, seed=0):
            batch = next(iter(batches))
        return DistributedGradients(loss, tensors, parameters, batch)
    if not is_compiled:
        return EagerGradients(loss, parameters)
    from pyrovae.training.gradients.compiled import CompiledGradients

    return CompiledGradients(
        loss,
        parameters,
        (*module.parameters(), *module.buffers()),
        module.modules(),
        weighted=weighted,
        optimizer=optimizer,
    )
