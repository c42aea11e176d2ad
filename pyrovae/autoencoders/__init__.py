"""Deterministic autoencoders, for comparison with the VAE."""

from pyrovae.autoencoders.corruptions import GaussianNoise, Masking
from pyrovae.autoencoders.models import (
    Autoencoder,
    ContractiveAutoencoder,
    DenoisingAutoencoder,
    SparseAutoencoder,
)
from pyrovae.autoencoders.penalties import L1, Contraction, KLSparsity, squared_jacobian_norm

__all__ = [
    "L1",
    "Autoencoder",
    "Contraction",
    "ContractiveAutoencoder",
    "DenoisingAutoencoder",
    "GaussianNoise",
    "KLSparsity",
    "Masking",
    "SparseAutoencoder",
    "squared_jacobian_norm",
]
