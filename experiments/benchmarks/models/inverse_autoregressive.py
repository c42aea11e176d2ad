"""The perceptron with an inverse autoregressive flow as posterior. The layers are zuko's in all contenders."""

from torch import Tensor

import pyrovae as pv
from experiments.benchmarks.models import perceptron
from experiments.benchmarks.models.by_hand import ByHand, normal_draw
from experiments.benchmarks.networks import perceptron as network
from experiments.benchmarks.problem import Sizes

CONTEXT = 32

data = perceptron.data


def build(sizes: Sizes, x: Tensor) -> pv.VAE:
    """Return the VAE."""
    pixels = x.shape[1]
    encoder = network(pixels, sizes.hidden, 2 * sizes.latent + CONTEXT)
    return pv.VAE(
        pv.priors.StandardNormal(sizes.latent),
        pv.likelihoods.Bernoulli(network(sizes.latent, sizes.hidden, pixels)),
        pv.posteriors.InverseAutoregressiveFlow(encoder, sizes.latent, context=CONTEXT),
    )


class by_hand(ByHand):  # noqa: N801 - the function of this model
    """Loss with a flow as posterior."""

    def __init__(self, vae: pv.VAE) -> None:
        super().__init__(vae)
        self.flow = vae.posterior.flow  # type: ignore[attr-defined]

    def draw(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return draws of the posterior, shape ``(k, N, latent)``, and their log-densities, shape ``(k, N)``."""
        output = self.encoder(x)
        noise, log_q = normal_draw(output[..., :-CONTEXT], self.k)
        z, log_derivative = self.flow(output[..., -CONTEXT:]).call_and_ladj(noise)
        return z, log_q - log_derivative
