"""The perceptron with a VampPrior of 500 pseudo-inputs."""

import math

from torch import Tensor

import pyrovae as pv
from experiments.benchmarks.models import perceptron
from experiments.benchmarks.models.by_hand import ByHand, mixture
from experiments.benchmarks.problem import Sizes

COMPONENTS = 500

data = perceptron.data


def build(sizes: Sizes, x: Tensor) -> pv.VAE:
    """Return the VAE."""
    return perceptron.build(sizes, x, pv.priors.VampPrior(COMPONENTS, x.shape[1:]))


class by_hand(ByHand):  # noqa: N801 - the function of this model
    """Loss with a VampPrior."""

    def __init__(self, vae: pv.VAE) -> None:
        super().__init__(vae)
        self.pseudo_inputs = vae.prior.pseudo_inputs  # type: ignore[attr-defined]

    def log_prior(self, z: Tensor) -> Tensor:
        """Return log p(z), shape ``(k, N)``."""
        output = self.encoder(self.pseudo_inputs)
        return mixture(z, output, output.new_full((), -math.log(COMPONENTS)))
