"""Losses written by hand in torch: the parts that several models share."""

import math

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

import pyrovae as pv

LOG_2PI = math.log(2 * math.pi)


class ByHand(nn.Module):
    """Loss of a VAE with a normal posterior, a standard normal prior and a Bernoulli likelihood.

    Subclasses replace the prior, the likelihood or the posterior.

    Args:
        vae: VAE whose networks the module shares.
        k: Draws per datum.
    """

    def __init__(self, vae: pv.VAE, k: int = 1) -> None:
        super().__init__()
        self.k = k
        self.encoder: nn.Module = vae.posterior.network  # type: ignore[attr-defined]
        self.decoder: nn.Module = vae.likelihood.network  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        """Return minus the bound, in nats per datum."""
        z, log_q = self.draw(x)
        log_weights = self.log_likelihood(x, self.decoder(z)) + self.log_prior(z) - log_q
        bound = log_weights[0] if self.k == 1 else log_weights.logsumexp(0) - math.log(self.k)
        return -bound.mean()

    def draw(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return draws of the posterior, shape ``(k, N, latent)``, and their log-densities, shape ``(k, N)``."""
        return normal_draw(self.encoder(x), self.k)

    def log_prior(self, z: Tensor) -> Tensor:
        """Return log p(z), shape ``(k, N)``."""
        return standard_normal(z)

    def log_likelihood(self, x: Tensor, output: Tensor) -> Tensor:
        """Return log p(x | z) for the decoder's output, shape ``(k, N)``."""
        return bernoulli(x, output)


def normal_draw(output: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return draws of a normal distribution, given a network's output, and their log-densities."""
    loc, log_scale = output.chunk(2, -1)
    noise = torch.randn((k, *loc.shape), device=loc.device)
    return loc + log_scale.exp() * noise, -(0.5 * (noise**2 + LOG_2PI) + log_scale).sum(-1)


def normal(z: Tensor, output: Tensor) -> Tensor:
    """Return the log-density of a normal distribution, given a network's output."""
    loc, log_scale = output.chunk(2, -1)
    return -(0.5 * (((z - loc) * (-log_scale).exp()) ** 2 + LOG_2PI) + log_scale).sum(-1)


def standard_normal(z: Tensor) -> Tensor:
    """Return the log-density of the standard normal distribution."""
    return -0.5 * (z**2 + LOG_2PI).sum(-1)


def mixture(z: Tensor, output: Tensor, log_weights: Tensor) -> Tensor:
    """Return the log-density of a mixture of normal distributions, with one row of ``output`` for each component."""
    return (normal(z.unsqueeze(-2), output) + log_weights).logsumexp(-1)


def bernoulli(x: Tensor, logits: Tensor) -> Tensor:
    """Return the log-density of binary data, summed over all dimensions but those of draws and data."""
    return -F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").flatten(2).sum(-1)
