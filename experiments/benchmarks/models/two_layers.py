"""A VAE with two latent layers and bottom-up inference."""

from torch import Tensor, nn

import pyrovae as pv
from experiments.benchmarks.models import perceptron
from experiments.benchmarks.models.by_hand import bernoulli, normal, normal_draw, standard_normal
from experiments.benchmarks.networks import perceptron as network
from experiments.benchmarks.problem import Sizes

data = perceptron.data


def build(sizes: Sizes, x: Tensor) -> pv.HierarchicalVAE:
    """Return the VAE. The lower layer has twice as many dimensions as the upper layer."""
    pixels, lower, upper = x.shape[1], sizes.latent, sizes.latent // 2
    normals = pv.posteriors.DiagonalNormal
    return pv.HierarchicalVAE(
        priors=(normals(network(upper, sizes.hidden, 2 * lower)), pv.priors.StandardNormal(upper)),
        likelihood=pv.likelihoods.Bernoulli(network(lower, sizes.hidden, pixels)),
        posteriors=(
            normals(network(pixels, sizes.hidden, 2 * lower)),
            normals(network(lower, sizes.hidden, 2 * upper)),
        ),
    )


class by_hand(nn.Module):  # noqa: N801 - the function of this model
    """Loss with two latent layers."""

    def __init__(self, vae: pv.HierarchicalVAE) -> None:
        super().__init__()
        self.encoder, self.encoder2 = (posterior.network for posterior in vae.posteriors)  # type: ignore[attr-defined]
        self.decoder = vae.likelihood.network  # type: ignore[attr-defined]
        self.decoder2 = vae.priors[0].network  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        """Return minus the ELBO, in nats per datum."""
        z1, log_q1 = normal_draw(self.encoder(x), 1)
        z2, log_q2 = normal_draw(self.encoder2(z1[0]), 1)
        log_p = bernoulli(x, self.decoder(z1)) + normal(z1, self.decoder2(z2)) + standard_normal(z2)
        return (log_q1 + log_q2 - log_p).mean()
