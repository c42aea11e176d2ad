"""The benchmarks' networks in torch, and how a contender that uses torch states its loss."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from experiments.benchmarks.problem import Problem


def perceptron(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """One hidden layer of softplus units."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Softplus(), nn.Linear(hidden, outputs))


def make(problem: Problem, name: str) -> nn.Sequential:
    """Makes the ``encoder`` or the ``decoder`` with its initial weights, on the device of the problem."""
    weights = {key: torch.from_numpy(value) for key, value in problem.part(name).items()}
    hidden, inputs = weights["0.weight"].shape
    network = perceptron(inputs, hidden, len(weights["2.weight"]))
    network.load_state_dict(weights)
    return network.to(problem.sizes.device)


def to_device(problem: Problem, array: np.ndarray) -> Tensor:
    """An array of the problem, as a tensor on its device."""
    return torch.from_numpy(array).to(problem.sizes.device)


def state(
    problem: Problem, module: nn.Module, loss: Callable[[Tensor], Tensor], generator: str, *, draws: int = 0
) -> dict[str, float]:
    """The loss of the checked batch and the norm of its gradient, of which none is left in the module.

    Args:
        problem: Has data and noise of the batch.
        module: Its parameters are those of the gradient.
        loss: Maps data to the loss, in nats per datum.
        generator: Name of the function of a shape or a tensor, such as ``"torch.randn"``, by which the loss draws its
            noise; the given noise stands in for it.
        draws: Dimension of that noise over the draws per datum.
    """
    noise = to_device(problem, problem.noise).movedim(0, draws).flatten()

    def given(like: Any, *_: Any, **__: Any) -> Tensor:
        shape = torch.Size(getattr(like, "shape", like))
        return noise[: shape.numel()].reshape(shape)  # fewer where a program is first run on one draw per datum

    with mock.patch(generator, given):
        value = loss(to_device(problem, problem.checked))
    value.backward()
    gradient = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
    module.zero_grad()
    return {"loss": value.item(), "gradient": gradient.norm().item()}


def finish(problem: Problem) -> None:
    """Waits for the device, so that all of a turn's work is within it."""
    if problem.sizes.device == "cuda":
        torch.cuda.synchronize()
