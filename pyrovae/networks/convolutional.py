"""Convolutional networks for images of one or more channels, plain and residual."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn

from pyrovae.arguments import check_whole
from pyrovae.networks.inputs import Batched


def conv_encoder(
    in_shape: Sequence[int],
    *channels: int,
    out_shape: int,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> nn.Module:
    """Build a convolutional encoder that halves height and width at every layer.

    Args:
        in_shape: ``(height, width)`` or ``(channels, height, width)``. 28 x 28 images can be halved twice.
        *channels: Output channels of each 4 x 4 convolution of stride 2.
        out_shape: Number of outputs of the final linear layer.
        activation: Function that returns the nonlinearity after every convolution.

    Returns:
        A network ``(*batch, *in_shape) -> (*batch, out_shape)``.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If a size is not positive, or height or width cannot be halved once for each convolution.

    Example:
        >>> import torch, pyrovae as pv
        >>> pv.networks.conv_encoder((28, 28), 32, 64, out_shape=100)(torch.zeros(7, 3, 28, 28)).shape
        torch.Size([7, 3, 100])
    """
    depth, height, width = _image(in_shape, channels, out_shape)
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
    """Build a convolutional decoder that doubles height and width at every layer: :func:`conv_encoder` in reverse.

    Args:
        in_shape: Number of inputs, the latent size.
        *channels: Input channels of each 4 x 4 transposed convolution of stride 2.
        out_shape: ``(height, width)`` or ``(channels, height, width)`` of the output.
        activation: Function that returns the nonlinearity before every transposed convolution.

    Returns:
        A network ``(*batch, in_shape) -> (*batch, *out_shape)``.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If a size is not positive, or height or width cannot be halved once for each convolution.

    Example:
        >>> import torch, pyrovae as pv
        >>> pv.networks.conv_decoder(50, 64, 32, out_shape=(28, 28))(torch.zeros(7, 3, 50)).shape
        torch.Size([7, 3, 28, 28])

        Two parameters for each pixel of colour images, for a likelihood with ``dim=-3``:

        >>> pv.networks.conv_decoder(50, 64, 32, out_shape=(2 * 3, 32, 32))(torch.zeros(7, 50)).shape
        torch.Size([7, 6, 32, 32])
    """
    depth, height, width = _image(out_shape, channels, in_shape)
    layers: list[nn.Module] = [
        nn.Linear(in_shape, channels[0] * height * width),
        nn.Unflatten(-1, (int(channels[0]), height, width)),
    ]
    for c_in, c_out in pairwise((*channels, depth)):
        layers += [activation(), nn.ConvTranspose2d(c_in, c_out, kernel_size=4, stride=2, padding=1)]
    if len(out_shape) == 2:
        layers.append(nn.Flatten(-3, -2))
    return Batched(nn.Sequential(*layers), event_dim=1)


def residual_encoder(
    in_shape: Sequence[int], *channels: int, out_shape: int, activation: Callable[[], nn.Module] = nn.ReLU
) -> nn.Module:
    """Build a residual encoder that halves height and width, rounding up, before each residual block.

    Args:
        in_shape: ``(height, width)`` or ``(channels, height, width)``.
        *channels: Channels of each block.
        out_shape: Number of outputs of the final linear layer.
        activation: Function that returns a nonlinearity, called once for each nonlinearity of the network.

    Returns:
        A network ``(*batch, *in_shape) -> (*batch, out_shape)``.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If the image's shape does not have 2 or 3 entries, a size is not positive, or no block is given.

    Source:
        *Identity Mappings in Deep Residual Networks* (He et al., 2016).

    Example:
        >>> import torch, pyrovae as pv
        >>> pv.networks.residual_encoder((28, 20), 16, 32, 64, out_shape=100)(torch.zeros(7, 3, 28, 20)).shape
        torch.Size([7, 3, 100])
    """
    depth, sizes = _sizes(in_shape, channels, out_shape)
    layers: list[nn.Module] = [nn.Unflatten(-2, (1, -1))] if len(in_shape) == 2 else []
    for c_in, c_out in pairwise((depth, *channels)):
        layers += [nn.Conv2d(c_in, c_out, kernel_size=3, stride=2, padding=1), _Residual(c_out, activation)]
    layers += [activation(), nn.Flatten(-3, -1), nn.Linear(channels[-1] * math.prod(sizes[-1]), out_shape)]
    return Batched(nn.Sequential(*layers), event_dim=len(in_shape))


def residual_decoder(
    in_shape: int, *channels: int, out_shape: Sequence[int], activation: Callable[[], nn.Module] = nn.ReLU
) -> nn.Module:
    """Build a residual decoder that doubles height and width after each block: :func:`residual_encoder` in reverse.

    Args:
        in_shape: Number of inputs, the latent size.
        *channels: Channels of each block.
        out_shape: ``(height, width)`` or ``(channels, height, width)`` of the output, of any size.
        activation: Function that returns a nonlinearity, called once for each nonlinearity of the network.

    Returns:
        A network ``(*batch, in_shape) -> (*batch, *out_shape)``.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If the image's shape does not have 2 or 3 entries, a size is not positive, or no block is given.

    Source:
        *Identity Mappings in Deep Residual Networks* (He et al., 2016).

    Example:
        >>> import torch, pyrovae as pv
        >>> pv.networks.residual_decoder(50, 64, 32, out_shape=(28, 20))(torch.zeros(7, 3, 50)).shape
        torch.Size([7, 3, 28, 20])
    """
    depth, sizes = _sizes(out_shape, channels, in_shape)
    layers: list[nn.Module] = [
        nn.Linear(in_shape, channels[0] * math.prod(sizes[-1])),
        nn.Unflatten(-1, (int(channels[0]), *sizes[-1])),
    ]
    for (c_in, c_out), (height, width) in zip(pairwise((*channels, depth)), reversed(sizes[:-1]), strict=True):
        odd = (1 - height % 2, 1 - width % 2)  # two sizes have the same half when it is rounded up
        layers += [
            _Residual(c_in, activation),
            activation(),
            nn.ConvTranspose2d(c_in, c_out, kernel_size=3, stride=2, padding=1, output_padding=odd),
        ]
    if len(out_shape) == 2:
        layers.append(nn.Flatten(-3, -2))
    return Batched(nn.Sequential(*layers), event_dim=1)


class _Residual(nn.Module):
    """Residual block ``x + f(x)``, where f has two 3 x 3 convolutions."""

    def __init__(self, channels: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            activation(),
            nn.Conv2d(channels, channels, kernel_size=3, padding=1),
            activation(),
            nn.Conv2d(channels, channels, kernel_size=3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x``, shape ``(B, channels, height, width)``, to the same shape."""
        output: Tensor = x + self.branch(x)
        return output


def _sizes(shape: Sequence[int], channels: Sequence[int], features: int) -> tuple[int, list[tuple[int, int]]]:
    """Return the number of channels of an image, and a list of sizes ``(height, width)``.

    The list begins with the size of the image. One size per layer follows, each half of the size before it, rounded up.
    """
    depth, height, width = _channels(shape, channels, features)
    sizes = [(height, width)]
    for _ in channels:
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return depth, sizes


def _channels(shape: Sequence[int], channels: Sequence[int], features: int) -> tuple[int, int, int]:
    """Return channels, height and width of an image, after checking all sizes of the image and its network."""
    if not isinstance(shape, Sequence) or len(shape) not in (2, 3):
        raise ValueError(f"an image must have shape (height, width) or (channels, height, width), got {shape}")
    if not channels:
        raise ValueError("a convolutional network needs at least one layer. Pass the number of channels of each layer.")
    for size in (*shape, *channels, features):
        check_whole(size=size)
        if size < 1:
            raise ValueError(f"sizes of a convolutional network must be positive, got {size}")
    depth, height, width = (1, *shape) if len(shape) == 2 else tuple(shape)
    return int(depth), int(height), int(width)


def _image(shape: Sequence[int], channels: Sequence[int], features: int) -> tuple[int, int, int]:
    """Return three integers: the number of channels of an image, and its height and width after the last layer.

    Each layer halves the height and the width.
    """
    depth, height, width = _channels(shape, channels, features)
    halvings = len(channels)
    if height % 2**halvings or width % 2**halvings:
        raise ValueError(
            f"an image of {height} x {width} cannot be halved {halvings} times. Use fewer layers, pad the image, or "
            f"use residual_encoder and residual_decoder."
        )
    return depth, height // 2**halvings, width // 2**halvings
