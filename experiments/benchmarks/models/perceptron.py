"""The VAE of the training benchmark: binary digits, and perceptrons with one hidden layer of softplus units."""

from typing import Any

import torch
from torch import Tensor

import pyrovae as pv
from experiments.benchmarks.models.by_hand import ByHand as by_hand  # noqa: N813 - the function of this model
from experiments.benchmarks.networks import perceptron
from experiments.benchmarks.problem import Sizes

__all__ = ["build", "by_hand", "data"]


def data(_: Sizes) -> Tensor:
    """Return binary digits, shape ``(N, 784)``."""
    return torch.cat(list(pv.data.mnist5k("static"))).flatten(1)


def build(sizes: Sizes, x: Tensor, prior: Any = None) -> pv.VAE:
    """Return the VAE, by default with a standard normal prior."""
    pixels = x.shape[1]
    encoder = perceptron(pixels, sizes.hidden, 2 * sizes.latent)
    decoder = perceptron(sizes.latent, sizes.hidden, pixels)
    return pv.VAE(
        pv.priors.StandardNormal(sizes.latent) if prior is None else prior,
        pv.likelihoods.Bernoulli(decoder),
        pv.posteriors.DiagonalNormal(encoder),
    )
