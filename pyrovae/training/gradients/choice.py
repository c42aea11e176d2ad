"""The choice between eager, compiled and distributed gradients."""

import logging
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

WORTH_STEPS = 10_000  # a step of a small perceptron gains 2 ms, and compilation takes 10 to 20 s

logger = logging.getLogger(__name__)


def choose_gradients(
    loss: Loss,
    tensors: Tensors,
    parameters: dict[str, Tensor],
    batches: Batches,
    *,
    is_compiled: bool | None,
    steps: int,
    weighted: bool,
    optimizer: torch.optim.Optimizer | None,
) -> Gradients:
    """Return the object that computes the gradients of a run.

    Args:
        loss: Loss to differentiate.
        tensors: Tensors of the module.
        parameters: Trained parameters by name.
        batches: Batches of the training data.
        is_compiled: If true, gradients are compiled. If ``None``, gradients are compiled if the run has at least
            ``WORTH_STEPS`` steps and its device is a CPU or a CUDA device.
        steps: Number of steps of the run.
        weighted: If true, the weight of the latent sites changes during the run.
        optimizer: Optimizer whose steps may be captured as a CUDA graph if gradients are compiled. If ``None``, no
            steps are captured.

    Warns:
        UserWarning: If compilation is requested in several processes, where it is not supported.
    """
    module = tensors.module
    if parallel.size() > 1:
        from pyrovae.training.gradients.distributed import DistributedGradients

        if is_compiled and parallel.is_first():
            warnings.warn(
                "compile=True has no effect, because several processes always train without compilation",
                stacklevel=find_stack_level(),
            )
        with isolated(*loss.programs, seed=0):
            batch = next(iter(batches))
        return DistributedGradients(loss, tensors, parameters, batch)
    is_worth_it = steps >= WORTH_STEPS and batches.source.device.type in ("cpu", "cuda")
    if not (is_worth_it if is_compiled is None else is_compiled):
        return EagerGradients(loss, parameters)
    from pyrovae._compilation.graphs import warn_caller
    from pyrovae.training.gradients.compiled import CompiledGradients

    return CompiledGradients(
        loss,
        parameters,
        (*module.parameters(), *module.buffers()),
        module.modules(),
        weighted=weighted,
        optimizer=optimizer,
        tell=logger.info if is_compiled is None else warn_caller,  # a choice of the package needs no warning
    )
