"""A VAE in float64 with an encoder to choose, and the outcome of training in a process."""

from torch import Tensor, nn

import pyrovae as pv
from tests.conftest import small_vae

# Tensors and learning curves, or the message of an error.
Outcome = tuple[dict[str, Tensor], dict[str, list[float]]] | str


def vae_with(encoder: nn.Module) -> pv.VAE:
    vae = small_vae()
    vae.posterior = pv.posteriors.DiagonalNormal(encoder)
    return vae.double()


def layers() -> list[nn.Module]:
    return [nn.Linear(6, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 4)]
