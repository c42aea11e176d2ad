"""Fully connected networks: multilayer perceptrons with ordinary layers and with gated layers."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn

from pyrovae.arguments import check_whole

Shape = int | Sequence[int]


def mlp(*shapes: Shape, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Build a multilayer perceptron from the shapes of its layers, as in ``mlp(784, 200, 200, 100)``.

    Args:
        *shapes: Event shape of the input, widths of the hidden layers (none for a linear map), event shape of the
            output. Input and output may be images: ``mlp(50, 200, 200, (28, 28))``.
        activation: Function without arguments that returns a nonlinearity. It is called for every hidden layer; the
            output layer is linear.

    Returns:
        A network ``(*batch, *shapes[0]) -> (*batch, *shapes[-1])``.

    Raises:
        TypeError: If a width is not an integer.
        ValueError: If there are fewer than two shapes, or one of them is empty or not positive.

    Example:
        >>> import torch, pyrovae as pv
        >>> decoder = pv.networks.mlp(50, 200, 200, (28, 28), activation=torch.nn.Tanh)
        >>> decoder(torch.zeros(7, 3, 50)).shape
        torch.Size([7, 3, 28, 28])
    """
    return _through(shapes, lambda width_in, width_out: [nn.Linear(width_in, width_out), activation()])


def gated_mlp(*shapes: Shape) -> nn.Sequential:
    r"""Build a perceptron of gated layers, :math:`h \mapsto (A h + b) \odot \sigma(C h + d)`, and a linear last layer.

    Args:
        *shapes: See :func:`mlp`.

    Returns:
        A network ``(*batch, *shapes[0]) -> (*batch, *shapes[-1])``.

    Raises:
        TypeError: See :func:`mlp`.
        ValueError: See :func:`mlp`.

    Source:
        *Language Modeling with Gated Convolutional Networks* (Dauphin et al., 2017); used by *VAE with a VampPrior*
        (Tomczak and Welling, 2018).

    Example:
        >>> import torch, pyrovae as pv
        >>> pv.networks.gated_mlp((28, 28), 300, 300, 2 * 40)(torch.zeros(7, 3, 28, 28)).shape
        torch.Size([7, 3, 80])
    """
    return _through(shapes, lambda width_in, width_out: [nn.Linear(width_in, 2 * width_out), nn.GLU(-1)])


def _through(shapes: Sequence[Shape], layer: Callable[[int, int], list[nn.Module]]) -> nn.Sequential:
    """Return a network with the given input, hidden and output shapes. Its last layer is linear."""
    if len(shapes) < 2:
        raise ValueError(f"networks: shapes={tuple(shapes)} must hold an input and an output shape")
    events = [_event(shape) for shape in shapes]
    widths = [math.prod(event) for event in events]
    layers: list[nn.Module] = [nn.Flatten(-len(events[0]), -1)] if len(events[0]) > 1 else []
    for width_in, width_out in pairwise(widths[:-1]):
        layers += layer(width_in, width_out)
    layers.append(nn.Linear(widths[-2], widths[-1]))
    if len(events[-1]) > 1:
        layers.append(nn.Unflatten(-1, events[-1]))
    return nn.Sequential(*layers)


def _event(shape: Shape) -> tuple[int, ...]:
    event = tuple(shape) if isinstance(shape, Sequence) else (shape,)
    for width in event:
        check_whole(width=width)
    if not event or min(event) < 1:
        raise ValueError(f"widths and entries of event shapes must be at least 1, got {shape}")
    return tuple(map(int, event))  # torch does not accept NumPy integers everywhere
