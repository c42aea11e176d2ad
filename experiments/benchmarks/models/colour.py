"""A convolutional VAE of colour images, 32 x 32, with discretized logistic densities of 256 levels."""

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

import pyrovae as pv
from experiments import colour
from experiments.benchmarks.models.by_hand import ByHand
from experiments.benchmarks.problem import Sizes

CHANNELS = 16, 32, 64


def data(_: Sizes) -> Tensor:
    """Return patches of photographs, shape ``(N, 3, 32, 32)``."""
    return colour.photographs(stride=16).train


def build(sizes: Sizes, _: Tensor) -> pv.VAE:
    """Return the VAE of the experiment on colour images."""
    return colour.build(sizes.latent, CHANNELS)


class by_hand(ByHand):  # noqa: N801 - the function of this model
    """Loss with a discretized logistic likelihood."""

    def log_likelihood(self, x: Tensor, output: Tensor) -> Tensor:
        """Return log p(x | z) for the decoder's output, shape ``(k, N)``."""
        loc, log_scale = output.chunk(2, -3)
        precision = (-log_scale).exp()
        middle, half = (x - loc) * precision, precision / 510
        above, below = F.logsigmoid(middle + half), F.logsigmoid(half - middle)
        between = above + below + torch.log(-torch.expm1(-2 * half))
        return torch.where(x == 0, above, torch.where(x == 1, below, between)).flatten(2).sum(-1)
