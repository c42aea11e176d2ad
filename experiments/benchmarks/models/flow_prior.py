"""The perceptron with a flow of four affine coupling layers as prior. The layers are zuko's in all contenders."""

from torch import Tensor

import pyrovae as pv
from experiments.benchmarks.models import perceptron
from experiments.benchmarks.models.by_hand import ByHand, standard_normal
from experiments.benchmarks.problem import Sizes

data = perceptron.data


def build(sizes: Sizes, x: Tensor) -> pv.VAE:
    """Return the VAE."""
    return perceptron.build(sizes, x, pv.priors.NormalizingFlow(sizes.latent))


class by_hand(ByHand):  # noqa: N801 - the function of this model
    """Loss with a flow as prior."""

    def __init__(self, vae: pv.VAE) -> None:
        super().__init__(vae)
        self.flow = vae.prior.flow  # type: ignore[attr-defined]

    def log_prior(self, z: Tensor) -> Tensor:
        """Return log p(z), shape ``(k, N)``."""
        noise, log_derivative = self.flow().inv.call_and_ladj(z)
        return standard_normal(noise) + log_derivative
