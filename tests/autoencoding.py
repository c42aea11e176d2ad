"""Autoencoders of six bits, one of each kind, and data for them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.autoencoders import (
    L1,
    Autoencoder,
    Contraction,
    ContractiveAutoencoder,
    DenoisingAutoencoder,
    GaussianNoise,
    KLSparsity,
    Masking,
    SparseAutoencoder,
)

mlp = partial(pv.networks.mlp, activation=nn.Tanh)


def encoder(code: int = 3) -> nn.Module:
    return mlp(6, 8, code)


def bounded_encoder(code: int = 3) -> nn.Module:
    return nn.Sequential(mlp(6, 8, code), nn.Sigmoid())


def decoder(code: int = 3) -> nn.Module:
    return mlp(code, 8, 6)


@dataclass(frozen=True)
class Summed:
    """A custom penalty."""

    penalties: tuple[Any, ...]

    def __call__(self, *arguments: Any) -> Any:
        return sum(penalty(*arguments) for penalty in self.penalties)


KINDS: dict[str, Callable[[], Autoencoder]] = {
    "Autoencoder": lambda: Autoencoder(encoder(), decoder()),
    "Autoencoder, overcomplete": lambda: Autoencoder(encoder(9), decoder(9)),
    "Autoencoder, squared": lambda: Autoencoder(encoder(), decoder(), error="squared"),
    "SparseAutoencoder": lambda: SparseAutoencoder(encoder(), decoder()),
    "SparseAutoencoder, KL": lambda: SparseAutoencoder(bounded_encoder(), decoder(), weight=0.3, sparsity="kl"),
    "DenoisingAutoencoder": lambda: DenoisingAutoencoder(encoder(), decoder()),
    "DenoisingAutoencoder, Gaussian": lambda: DenoisingAutoencoder(
        encoder(), decoder(), corruption=GaussianNoise(0.3), error="squared"
    ),
    "ContractiveAutoencoder": lambda: ContractiveAutoencoder(encoder(), decoder()),
    "all at once": lambda: Autoencoder(
        bounded_encoder(),
        decoder(),
        corruption=Masking(0.3),
        penalty=Summed((L1(0.1), KLSparsity(0.2), Contraction(0.3))),
    ),
}


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def bits(n: int = 25) -> Tensor:
    """Six bits, two of which determine the others."""
    return torch.bernoulli(torch.full((n, 2), 0.5)).repeat_interleave(3, dim=1)
