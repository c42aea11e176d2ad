"""A VAE of counts in 2,000 columns, with a negative binomial likelihood."""

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

import pyrovae as pv
from experiments.benchmarks.models.by_hand import ByHand
from experiments.benchmarks.networks import perceptron
from experiments.benchmarks.problem import Sizes

COLUMNS = 2000


def data(sizes: Sizes) -> Tensor:
    """Return counts with a mean of 1 whose logarithms depend on four factors, shape ``(N, 2000)``."""
    generator = torch.Generator().manual_seed(sizes.seed)
    factors = torch.randn(1000, 4, generator=generator) @ torch.randn(4, COLUMNS, generator=generator)
    return torch.poisson((0.5 * factors - 0.5).exp(), generator=generator)


def build(sizes: Sizes, x: Tensor) -> pv.VAE:
    """Return the VAE."""
    encoder = pv.networks.log1p(perceptron(x.shape[1], sizes.hidden, 2 * sizes.latent))
    decoder = perceptron(sizes.latent, sizes.hidden, 2 * x.shape[1])
    return pv.VAE(
        pv.priors.StandardNormal(sizes.latent),
        pv.likelihoods.NegativeBinomial(decoder),
        pv.posteriors.DiagonalNormal(encoder),
    )


class by_hand(ByHand):  # noqa: N801 - the function of this model
    """Loss with a negative binomial likelihood, by differences of log-gammas."""

    def log_likelihood(self, x: Tensor, output: Tensor) -> Tensor:
        """Return log p(x | z) for the decoder's output, shape ``(k, N)``."""
        log_mean, log_dispersion = output.chunk(2, -1)
        r, logits = log_dispersion.exp(), log_mean - log_dispersion
        choices = torch.lgamma(r + x) - torch.lgamma(r) - torch.lgamma(1 + x)
        return (choices + r * F.logsigmoid(-logits) + x * F.logsigmoid(logits)).sum(-1)
