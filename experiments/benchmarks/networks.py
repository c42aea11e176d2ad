"""Torch networks of the benchmarks, and the report of the loss by a contender that uses torch."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from experiments.benchmarks.models import model
from experiments.benchmarks.problem import Problem


def perceptron(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Return a network with one hidden layer of softplus units."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Softplus(), nn.Linear(hidden, outputs))


def make(problem: Problem, name: str) -> nn.Sequential:
    """Make the ``encoder`` or the ``decoder`` with its initial weights, on the device of the problem."""
    weights = {key: torch.from_numpy(value) for key, value in problem.part(name).items()}
    hidden, inputs = weights["0.weight"].shape
    network = perceptron(inputs, hidden, len(weights["2.weight"]))
    network.load_state_dict(weights)
    return network.to(problem.sizes.device)


def build(problem: Problem) -> tuple[Any, nn.Module]:
    """Return the model of pyrovae and the loss by hand, which share the initial weights, on the problem's device."""
    made = model(problem.sizes.model)
    programs = made.build(problem.sizes, torch.from_numpy(problem.x))
    loss: nn.Module = made.by_hand(programs)
    loss.load_state_dict({name: torch.from_numpy(value) for name, value in problem.weights.items()})
    return programs.to(problem.sizes.device), loss.to(problem.sizes.device)


def to_device(problem: Problem, array: np.ndarray) -> Tensor:
    """Return an array of the problem as a tensor on its device."""
    return torch.from_numpy(array).to(problem.sizes.device)


def state(
    problem: Problem, module: nn.Module, loss: Callable[[Tensor], Tensor], generator: str, *, draws: int = 0
) -> dict[str, float]:
    """Return the loss of the checked batch and the norm of its gradient. The module keeps no gradient.

    Args:
        problem: Problem with the data and the noise of the batch.
        module: Module whose parameters the gradient refers to.
        loss: Function that maps data to the loss, in nats per datum.
        generator: Name of the function of a shape or a tensor, such as ``"torch.randn"``, from which the loss draws its
            noise. It is replaced by the given noise.
        draws: Dimension of the noise that runs over the draws per datum.
    """
    noise = to_device(problem, problem.noise).movedim(0, draws).flatten()

    def given(like: Any, *_: Any, **__: Any) -> Tensor:
        shape = torch.Size(getattr(like, "shape", like))
        return noise[: shape.numel()].reshape(shape)  # fewer numbers if a program first runs with one draw per datum

    with mock.patch(generator, given):
        value = loss(to_device(problem, problem.checked))
    value.backward()
    gradients = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
    gradient = torch.cat(gradients).double()  # in float32, the sum of a million squares is wrong by 2e-4
    module.zero_grad()
    return {"loss": value.item(), "gradient": gradient.norm().item()}


def finish(problem: Problem) -> None:
    """Wait for the device, so that the time of a turn contains all of its work."""
    if problem.sizes.device == "cuda":
        torch.cuda.synchronize()
