r"""The linear-Gaussian VAE (probabilistic PCA), of which everything is known in closed form.

With orthogonal columns in :math:`W`, :math:`W^\top W = \mathrm{diag}(d)`,

.. math::
    p(z) = N(0, I), \quad p(x \mid z) = N(W z + b, \sigma^2 I) \;\Rightarrow\;
    p(x) = N(b, W W^\top + \sigma^2 I), \quad
    p(z \mid x) = N\big(V W^\top (x - b) / \sigma^2,\, V\big), \quad V = \mathrm{diag}(1 + d / \sigma^2)^{-1}.

The posterior is a diagonal normal that is linear in x, so our own components can be exact, or wrong on purpose: with a
scale of c times the true one and a mean shifted by s true standard deviations, per latent dimension

.. math:: \mathrm{KL}(q \,\|\, p(z \mid x)) = \tfrac12 (c^2 + s^2 - 1) - \log c.
"""

import math

import torch
from torch import Tensor

import pyrovae as pv


class Oracle:
    """A linear-Gaussian VAE in float64 whose posterior has ``scale`` times the true scale, shifted by ``shift``."""

    def __init__(self, scale: float = 1.0, shift: float = 0.0, *, latent: int = 2, size: int = 5) -> None:
        generator = torch.Generator().manual_seed(0)
        q, _ = torch.linalg.qr(torch.randn(size, latent, generator=generator, dtype=torch.float64))
        self.w = q * torch.linspace(1.0, 2.0, latent, dtype=torch.float64)
        self.b = torch.randn(size, generator=generator, dtype=torch.float64)
        self.sigma, self.scale, self.shift, self.latent, self.size = 0.7, scale, shift, latent, size

        variance = 1 / (1 + (self.w**2).sum(0) / self.sigma**2)
        decoder, encoder = pv.networks.mlp(latent, size), pv.networks.mlp(size, 2 * latent)
        self.vae = pv.VAE(
            pv.priors.StandardNormal(latent),
            pv.likelihoods.Normal(decoder, scale=self.sigma),
            pv.posteriors.DiagonalNormal(encoder),
        ).double()
        self.vae.likelihood.log_scale.fill_(math.log(self.sigma))  # .double() kept the rounding of float32
        gain = (variance / self.sigma**2)[:, None] * self.w.T
        with torch.no_grad():
            decoder[0].weight.copy_(self.w)
            decoder[0].bias.copy_(self.b)
            encoder[0].weight.copy_(torch.cat([gain, torch.zeros_like(gain)]))
            loc, log_scale = shift * variance.sqrt() - gain @ self.b, (scale * variance.sqrt()).log()
            encoder[0].bias.copy_(torch.cat([loc, log_scale]))

    def data(self, n: int, seed: int = 1) -> Tensor:
        """Draws from p(x), shape ``(n, size)``."""
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(n, self.latent, generator=generator, dtype=torch.float64)
        return z @ self.w.T + self.b + self.sigma * torch.randn(n, self.size, generator=generator, dtype=torch.float64)

    def log_likelihood(self, x: Tensor) -> Tensor:
        """log p(x), shape ``(n,)``."""
        covariance = self.w @ self.w.T + self.sigma**2 * torch.eye(self.size, dtype=torch.float64)
        return torch.distributions.MultivariateNormal(self.b, covariance).log_prob(x)

    def elbo(self, x: Tensor) -> Tensor:
        """log p(x) - KL(q || p(z | x)), shape ``(n,)``."""
        kl = self.latent * (0.5 * (self.scale**2 + self.shift**2 - 1) - math.log(self.scale))
        return self.log_likelihood(x) - kl
