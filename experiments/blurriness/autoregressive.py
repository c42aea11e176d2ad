r"""A likelihood whose pixels depend on each other given z: each is conditioned on pixels above it and to its left.

.. math:: p(x \mid z) = \prod_i \mathrm{DiscretizedLogistic}\big(x_i;\, \theta_i(z) + h(x_{N(i)}, \theta_i(z))\big)

Here :math:`\theta_i` are the decoder's location and log-scale, N(i) is a window of pixels before i in reading order,
and the network h has one hidden layer and is the same for all i. Images are drawn pixel by pixel.

Source: *PixelVAE: A Latent Variable Model for Natural Images* (Gulrajani et al., 2017), with a window in place of its
PixelCNN.
"""

from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.nn.functional import pad

from pyrovae.distributions import DiscretizedLogistic, Lattice

REACH = 2
WINDOW = (REACH + 1, 2 * REACH + 1)
BEFORE = REACH * (2 * REACH + 1) + REACH  # number of pixels in the window, all before the current pixel


class Neighbours(nn.Module):
    """Network that adds a function of the preceding pixels to the parameters of a pixel; zero before training.

    Args:
        hidden: Width of the hidden layer.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.pixels, self.context, self.output = nn.Linear(BEFORE, hidden), nn.Linear(2, hidden), nn.Linear(hidden, 2)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, pixels: Tensor, parameters: Tensor) -> Tensor:
        """Map pixels, shape ``(*batch, BEFORE)``, and parameters, ``(*batch, 2)``, to parameters, ``(*batch, 2)``."""
        output: Tensor = parameters + self.output(torch.relu(self.pixels(pixels) + self.context(parameters)))
        return output


class AutoregressiveLogistic(TorchDistribution):
    """Distribution of images with grey levels in [0, 1], drawn pixel by pixel.

    Args:
        parameters: Location and log-scale of each pixel, shape ``(*batch, height, width, 2)``.
        neighbours: Network that adds to the parameters a function of the preceding pixels.
        levels: Number of grey levels.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  # as in torch
    support = constraints.independent(constraints.unit_interval, 2)

    def __init__(self, parameters: Tensor, neighbours: Neighbours, levels: int) -> None:
        self.parameters, self.neighbours, self.levels = parameters, neighbours, levels
        super().__init__(parameters.shape[:-3], parameters.shape[-3:-1], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "AutoregressiveLogistic":
        """Return the same distribution with a larger batch shape."""
        parameters = self.parameters.expand(*batch_shape, *self.parameters.shape[-3:])
        return AutoregressiveLogistic(parameters, self.neighbours, self.levels)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of images, shape ``(*batch, height, width)``, nats."""
        windows = _framed(value).unfold(-2, WINDOW[0], 1).unfold(-2, WINDOW[1], 1)
        return self._pixels(windows, self.parameters).log_prob(value).sum((-2, -1))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Return draws, shape ``sample_shape + batch_shape + event_shape``."""
        height, width = self.event_shape
        image = _framed(self.parameters.new_zeros(self._extended_shape(torch.Size(sample_shape))))
        with torch.no_grad():
            for i in range(height):
                for j in range(width):
                    window = image[..., i : i + WINDOW[0], j : j + WINDOW[1]]
                    pixel = self._pixels(window, self.parameters[..., i, j, :]).sample()
                    image[..., i + REACH, j + REACH] = pixel
        return image[..., REACH:, REACH:-REACH]

    def _pixels(self, windows: Tensor, parameters: Tensor) -> Lattice:
        """Return the distribution of pixels given their windows, shape ``(*batch, *WINDOW)``."""
        loc, log_scale = self.neighbours(windows.flatten(-2)[..., :BEFORE], parameters).unbind(-1)
        return Lattice(DiscretizedLogistic(loc, log_scale.exp(), self.levels), 1 / (self.levels - 1))


def _framed(images: Tensor) -> Tensor:
    """Return images inside a frame of zeros, which is as wide as a window reaches."""
    return pad(images, (REACH, REACH, REACH, 0))


class Autoregressive(nn.Module):
    """Autoregressive likelihood ``z -> p(x | z)``.

    Args:
        network: ``(*batch, latent) -> (*batch, height, 2 * width)``: locations and log-scales side by side.
        levels: Number of grey levels.
        hidden: Width of the hidden layer on the preceding pixels.
    """

    def __init__(self, network: nn.Module, levels: int = 256, hidden: int = 16) -> None:
        super().__init__()
        self.network, self.neighbours, self.levels = network, Neighbours(hidden), levels

    def forward(self, z: Tensor) -> AutoregressiveLogistic:
        """Return p(x | z) for ``z``, shape ``(*batch, latent)``."""
        parameters = torch.stack(self.network(z).chunk(2, -1), -1)
        return AutoregressiveLogistic(parameters, self.neighbours, self.levels)
