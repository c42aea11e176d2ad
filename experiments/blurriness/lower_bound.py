r"""Third explanation: the bound. Do samples blur because training maximizes a lower bound instead of log p(x)?

The importance-weighted bound and a semi-amortized posterior close a part of the gap between ELBO and log p(x). A linear
decoder permits to close it completely: p(x) is then a normal density, whose maximum likelihood estimate from data with
mean b and covariance S is

.. math:: W = U (\Lambda - \sigma^2 I)^{1/2}, \qquad \sigma^2 = \frac{1}{D - L} \sum_{d > L} \lambda_d,

for the L largest eigenvalues of S in :math:`\Lambda` and their eigenvectors in U. The columns of W are orthogonal, so
the exact posterior is a diagonal normal density whose mean is linear in x,

.. math:: p(z \mid x) = N\big(V W^\top (x - b) / \sigma^2,\, V\big), \qquad V = \sigma^2 \Lambda^{-1},

and the ELBO equals log p(x).

Source: *Probabilistic Principal Component Analysis* (Tipping and Bishop, 1999); *Don't Blame the ELBO! A Linear VAE
Perspective on Posterior Collapse* (Lucas, Tucker, Grosse and Norouzi, 2019).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import pyrovae as pv
from experiments.blurriness.setting import Setting, Trained


def ways(setting: Setting) -> dict[str, Callable[[], Trained]]:
    """Return functions that train the base VAE with tighter bounds, and a linear VAE with the ELBO and exactly."""
    options = setting.options

    def importance_weighted() -> Trained:
        vae, objective = setting.vae(), pv.objectives.IWAE(options.num_particles, gradient="doubly_reparameterized")
        return Trained(vae, setting.train(vae, objective=objective))

    def semi_amortized() -> Trained:
        def posterior() -> nn.Module:
            amortized = pv.posteriors.DiagonalNormal(setting.encoder(2 * options.latent))
            return pv.posteriors.SemiAmortized(amortized, options.num_particles, num_particles=1)

        vae = setting.vae(posterior=posterior)
        return Trained(vae, setting.train(vae))

    def linear_elbo() -> Trained:
        vae = linear_vae(setting)
        return Trained(vae, setting.train(vae, learning_rate=1e-2))

    def linear_exact() -> Trained:
        vae = linear_vae(setting)
        maximize_likelihood(vae, setting.dequantize(setting.grey.train))
        return Trained(vae, pv.History("exact"))

    return {
        f"IWAE, K = {options.num_particles}": importance_weighted,
        "semi-amortized": semi_amortized,
        "linear, ELBO": linear_elbo,
        "linear, exact likelihood": linear_exact,
    }


def linear_vae(setting: Setting) -> pv.VAE:
    """Return the base VAE with linear networks: probabilistic PCA."""
    image, latent = (setting.height, setting.width), setting.options.latent
    return setting.vae(
        likelihood=lambda: pv.likelihoods.Normal(pv.networks.mlp(latent, image), 0.2, learn_scale=True),
        posterior=lambda: pv.posteriors.DiagonalNormal(pv.networks.mlp(image, 2 * latent)),
    )


@torch.no_grad()
def maximize_likelihood(vae: pv.VAE, x: Tensor) -> None:
    """Set a linear VAE to its maximum likelihood estimate from data, ``(N, *event)``, with the exact posterior."""
    flat = x.flatten(1).double()
    likelihood: Any = vae.likelihood
    posterior: Any = vae.posterior
    decoder, encoder = (
        next(part for part in component.network if isinstance(part, nn.Linear)) for component in (likelihood, posterior)
    )
    latent, mean = decoder.in_features, flat.mean(0)
    values, vectors = torch.linalg.eigh((flat - mean).T @ (flat - mean) / len(flat))
    variance, values, vectors = values[:-latent].mean(), values[-latent:], vectors[:, -latent:]
    weight = vectors * (values - variance).sqrt()
    gain = weight.T / values[:, None]
    decoder.weight.copy_(weight)
    decoder.bias.copy_(mean)
    encoder.weight.copy_(torch.cat([gain, torch.zeros_like(gain)]))
    encoder.bias.copy_(torch.cat([-gain @ mean, (variance / values).log() / 2]))
    likelihood.log_scale.copy_(variance.log() / 2)
