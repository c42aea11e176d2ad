"""The perceptron with a mixture of 200 normal distributions as prior."""

import torch
from torch import Tensor

import pyrovae as pv
from experiments.benchmarks.models import by_hand as algebra
from experiments.benchmarks.models import perceptron
from experiments.benchmarks.problem import Sizes

COMPONENTS = 200

data = perceptron.data


def build(sizes: Sizes, x: Tensor) -> pv.VAE:
    """Return the VAE."""
    return perceptron.build(sizes, x, pv.priors.GaussianMixture(sizes.latent, COMPONENTS))


class by_hand(algebra.ByHand):  # noqa: N801 - the function of this model
    """Loss with a mixture as prior."""

    def __init__(self, vae: pv.VAE) -> None:
        super().__init__(vae)
        self.prior = vae.prior

    def log_prior(self, z: Tensor) -> Tensor:
        """Return log p(z), shape ``(k, N)``."""
        prior = self.prior
        output = torch.cat([prior.loc, prior.log_scale], -1)  # type: ignore[attr-defined]
        return algebra.mixture(z, output, prior.logits.log_softmax(-1))  # type: ignore[attr-defined]
