"""Neural networks that keep leading dimensions: ``(*batch, *in) -> (*batch, *out)``.

A network knows nothing of priors, likelihoods or posteriors. It maps the trailing *event* dimensions of its input and
leaves all leading dimensions alone, because a likelihood is called with ``z`` of shape ``(num_samples, N, latent)`` as
often as with ``(N, latent)``.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn

Shape = int | Sequence[int]


def mlp(*shapes: Shape, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Builds a multilayer perceptron through the given shapes: ``mlp(784, 200, 200, 100)``.

    Args:
        *shapes: Event shape of the input, widths of the hidden layers (none for a linear map), event shape of the
            output. Input and output may be images: ``mlp(50, 200, 200, (28, 28))``.
        activation: Makes the nonlinearity behind every hidden layer; there is none behind the output.

    Returns:
        A network ``(*batch, *shapes[0]) -> (*batch, *shapes[-1])``.

    Raises:
        ValueError: If there are fewer than two shapes, or one of them is empty or not positive.

    Example:
        >>> import torch, pyrovae as pv
        >>> decoder = pv.networks.mlp(50, 200, 200, (28, 28), activation=torch.nn.Tanh)
        >>> decoder(torch.zeros(7, 3, 50)).shape
        torch.Size([7, 3, 28, 28])
    """
    if len(shapes) < 2:
        raise ValueError(f"an mlp needs an input and an output shape, got {shapes}")
    events = [_event(shape) for shape in shapes]
    layers: list[nn.Module] = [nn.Flatten(-len(events[0]), -1)] if len(events[0]) > 1 else []
    for width_in, width_out in pairwise(map(math.prod, events)):
        layers += [nn.Linear(width_in, width_out), activation()]
    layers.pop()  # no nonlinearity behind the output: it is a parameter on the real line
    if len(events[-1]) > 1:
        layers.append(nn.Unflatten(-1, events[-1]))
    return nn.Sequential(*layers)


class Batched(nn.Module):
    """Lets a network that takes exactly one batch dimension take any number of them.

    Args:
        network: Maps ``(B, *in) -> (B, *out)``; convolutions are of this kind.
        event_dim: Number of dimensions of ``in``.

    Example:
        >>> import torch, pyrovae as pv
        >>> blur = pv.networks.Batched(torch.nn.Conv2d(1, 1, 3, padding=1), event_dim=3)
        >>> blur(torch.zeros(7, 2, 1, 28, 28)).shape
        torch.Size([7, 2, 1, 28, 28])
    """

    def __init__(self, network: nn.Module, event_dim: int) -> None:
        super().__init__()
        self.network = network
        self.event_dim = event_dim

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``x``, shape ``(*batch, *in)``, to shape ``(*batch, *out)``."""
        batch, event = x.shape[: x.ndim - self.event_dim], x.shape[x.ndim - self.event_dim :]
        y: Tensor = self.network(x.reshape(math.prod(batch), *event))
        return y.reshape(*batch, *y.shape[1:])


def conv_encoder(
    in_shape: Sequence[int],
    *channels: int,
    out_shape: int,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> nn.Module:
    """Builds a convolutional encoder that halves height and width at every layer.

    Args:
        in_shape: ``(height, width)`` or ``(channels, height, width)``; for 28 x 28 images two layers fit.
        *channels: Output channels of each 4 x 4 convolution of stride 2.
        out_shape: Number of outputs of the final linear layer.
        activation: Makes the nonlinearity behind every convolution.

    Returns:
        A network ``(*batch, *in_shape) -> (*batch, out_shape)``.

    Raises:
        ValueError: If height or width cannot be halved that often.

    Example:
        >>> import torch, pyrovae as pv
        >>> pv.networks.conv_encoder((28, 28), 32, 64, out_shape=100)(torch.zeros(7, 3, 28, 28)).shape
        torch.Size([7, 3, 100])
    """
    depth, height, width = _image(in_shape, len(channels))
    layers: list[nn.Module] = [nn.Unflatten(-2, (1, -1))] if len(in_shape) == 2 else []
    for c_in, c_out in pairwise((depth, *channels)):
        layers += [nn.Conv2d(c_in, c_out, kernel_size=4, stride=2, padding=1), activation()]
    layers += [nn.Flatten(-3, -1), nn.Linear(channels[-1] * height * width, out_shape)]
    return Batched(nn.Sequential(*layers), event_dim=len(in_shape))


def conv_decoder(
    in_shape: int,
    *channels: int,
    out_shape: Sequence[int],
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> nn.Module:
    """Builds a convolutional decoder that doubles height and width at every layer: the encoder's mirror image.

    Args:
        in_shape: Number of inputs, the latent size.
        *channels: Input channels of each 4 x 4 transposed convolution of stride 2.
        out_shape: ``(height, width)`` or ``(channels, height, width)`` of the output.
        activation: Makes the nonlinearity before every transposed convolution.

    Returns:
        A network ``(*batch, in_shape) -> (*batch, *out_shape)``.

    Raises:
        ValueError: If height or width is not divisible by two that often.

    Example:
        >>> import torch, pyrovae as pv
        >>> pv.networks.conv_decoder(50, 64, 32, out_shape=(28, 28))(torch.zeros(7, 3, 50)).shape
        torch.Size([7, 3, 28, 28])
    """
    depth, height, width = _image(out_shape, len(channels))
    layers: list[nn.Module] = [
        nn.Linear(in_shape, channels[0] * height * width),
        nn.Unflatten(-1, (channels[0], height, width)),
    ]
    for c_in, c_out in pairwise((*channels, depth)):
        layers += [activation(), nn.ConvTranspose2d(c_in, c_out, kernel_size=4, stride=2, padding=1)]
    if len(out_shape) == 2:
        layers.append(nn.Flatten(-3, -2))
    return Batched(nn.Sequential(*layers), event_dim=1)


def split(parameters: Tensor, count: int, owner: str) -> tuple[Tensor, ...]:
    """Cuts a network's output, shape ``(*batch, count * size)``, into ``count`` tensors ``(*batch, size)``.

    Raises:
        ValueError: If the last dimension cannot be cut into equal parts; ``owner`` names the component.
    """
    if parameters.shape[-1] % count:
        raise ValueError(
            f"{owner}: the network's output has shape {tuple(parameters.shape)}, but {count} parameters side by side "
            f"need a last dimension divisible by {count}; give the network an output {count} times as wide as its event"
        )
    return parameters.chunk(count, dim=-1)


def _event(shape: Shape) -> tuple[int, ...]:
    event = (shape,) if isinstance(shape, int) else tuple(shape)
    if not event or min(event) < 1:
        raise ValueError(f"an event shape or a width must be positive, got {shape}")
    return event


def _image(shape: Sequence[int], halvings: int) -> tuple[int, int, int]:
    """Channels of an image, and its height and width after so many halvings."""
    if len(shape) not in (2, 3):
        raise ValueError(f"an image has shape (height, width) or (channels, height, width), got {tuple(shape)}")
    if not halvings:
        raise ValueError("a convolutional network needs the channels of at least one layer")
    depth, height, width = (1, *shape) if len(shape) == 2 else tuple(shape)
    if height % 2**halvings or width % 2**halvings:
        raise ValueError(
            f"an image of {height} x {width} cannot be halved {halvings} times; use fewer layers or pad the image"
        )
    return depth, height // 2**halvings, width // 2**halvings
