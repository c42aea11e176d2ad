"""A convolutional VAE of binary digits, 28 x 28."""

import torch
from torch import Tensor

import pyrovae as pv
from experiments.benchmarks.models.by_hand import ByHand as by_hand  # noqa: N813 - the function of this model
from experiments.benchmarks.problem import Sizes

__all__ = ["build", "by_hand", "data"]

CHANNELS = 32, 64


def data(_: Sizes) -> Tensor:
    """Return binary digits, shape ``(N, 28, 28)``."""
    return torch.cat(list(pv.data.mnist5k("static")))


def build(sizes: Sizes, x: Tensor) -> pv.VAE:
    """Return the VAE."""
    encoder = pv.networks.conv_encoder(x.shape[1:], *CHANNELS, out_shape=2 * sizes.latent)
    decoder = pv.networks.conv_decoder(sizes.latent, *CHANNELS[::-1], out_shape=x.shape[1:])
    return pv.VAE(
        pv.priors.StandardNormal(sizes.latent),
        pv.likelihoods.Bernoulli(decoder),
        pv.posteriors.DiagonalNormal(encoder),
    )
