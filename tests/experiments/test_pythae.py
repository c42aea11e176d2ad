"""pythae's estimate of log p(x) equals that of pyrovae for the same weights: its trained modules as components."""

import math
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrovae as pv

pytestmark = pytest.mark.slow
LATENT, DRAWS = 4, 2000


class Likelihood(nn.Module):
    """p(x | z) of pythae's decoder, which takes ``(n, latent)`` and returns probabilities ``(n, 1, 8, 8)``."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, z: Tensor) -> dist.Distribution:
        probabilities = self.decoder(z.reshape(-1, LATENT)).reconstruction
        return dist.Bernoulli(probabilities.reshape(*z.shape[:-1], 1, 8, 8)).to_event(3)


class Posterior(nn.Module):
    """q(z | x) of pythae's encoder, whose log-covariance is the logarithm of the variances."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> dist.Distribution:
        output = self.encoder(x)
        return dist.Normal(output.embedding, (output.log_covariance / 2).exp()).to_event(1)


def test_pythae_estimates_the_same_log_likelihood(tmp_path: Path) -> None:
    pytest.importorskip("pythae")
    train, _, test = (x.unsqueeze(1) for x in pv.data.digits("static"))
    theirs, test = trained(train, tmp_path), test[:100]
    ours = pv.VAE(pv.priors.StandardNormal(LATENT), Likelihood(theirs.decoder), Posterior(theirs.encoder))
    results = pv.evaluation.evaluate(ours.model, ours.guide, test, DRAWS, seed=0, k=[1])
    # get_nll of 0.1.2 returns log p(x), not its negative, averaged over the data it is given: here one at a time. It
    # makes batch_size draws where fewer are asked for, and drops what is left of n_samples after whole batches; so
    # the one is a multiple of the other here.
    with torch.no_grad():
        values = [theirs.get_nll(x[None], n_samples=DRAWS, batch_size=DRAWS // 4) for x in test]

    both = math.sqrt(2) * results.mcse  # error of the difference of two independent estimates
    difference = results.log_likelihood - values
    error = float((both**2).sum()) ** 0.5 / len(test)
    print(f"ours {float(results.log_likelihood.mean()):.4f}, theirs {sum(values) / len(test):.4f}, error {error:.4f}")
    assert error < 0.01
    assert abs(float(difference.mean())) < 3 * error
    # Not the largest deviation: a few data have a k-hat above 0.7, and there mcse is too small.
    assert 0.85 < float((abs(difference) < 1.96 * both).mean()) < 0.995


def trained(train: Tensor, folder: Path) -> Any:
    """Return a VAE of pythae, trained by pythae for some epochs."""
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    model = VAE(VAEConfig(input_dim=(1, 8, 8), latent_dim=LATENT, reconstruction_loss="bce"))
    config = BaseTrainerConfig(output_dir=str(folder), num_epochs=20, learning_rate=1e-3, no_cuda=True)
    BaseTrainer(model, BaseDataset(train, torch.zeros(len(train))), training_config=config).train()
    return model.eval()
