"""On a VAE of real digits, all estimates that are marked as reliable agree."""

import numpy as np
import pyro
import pytest
import torch
from torch import nn

import pyrovae as pv

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained() -> tuple[pv.VAE, torch.Tensor]:
    """A VAE of five latent dimensions, and 40 test digits."""
    splits = pv.data.mnist5k(binarization="dynamic")
    pyro.set_rng_seed(0)
    vae = pv.VAE(
        pv.priors.StandardNormal(5),
        pv.likelihoods.Bernoulli(pv.networks.mlp(5, 200, 200, (28, 28), activation=nn.Softplus)),
        pv.posteriors.DiagonalNormal(pv.networks.mlp((28, 28), 200, 200, 2 * 5, activation=nn.Softplus)),
    )
    pv.fit(vae, splits.train, splits.valid, transform=splits.transform, epochs=60, learning_rate=2e-3, seed=0)
    return vae, splits.test[:40]


def test_annealing_agrees_with_importance_sampling_that_is_reliable(trained: tuple[pv.VAE, torch.Tensor]) -> None:
    vae, x = trained
    annealed = pv.evaluation.ais(vae.model, vae.guide, x, 32, num_temperatures=200, seed=0)
    weighted = pv.evaluation.evaluate(vae.model, vae.guide, x, 50_000, seed=0)
    reliable = (pv.evaluation.diagnose(weighted).verdict == "reliable").values
    error = np.hypot(annealed.mcse, weighted.mcse)
    z = ((annealed.log_likelihood - weighted.log_likelihood) / error).values
    difference = (annealed.log_likelihood - weighted.log_likelihood).values
    print(f"{reliable.sum()} reliable: {difference[reliable].mean():.3f}, z {z[reliable]}; others z {z[~reliable]}")
    assert reliable.sum() >= 8
    assert (abs(z[reliable]) < 3.5).all()
    assert abs(z[reliable].mean()) < 3 / reliable.sum() ** 0.5
    assert difference[~reliable].mean() > difference[reliable].mean()  # unreliable estimates are too low


def test_the_sandwich_is_narrow(trained: tuple[pv.VAE, torch.Tensor]) -> None:
    vae, x = trained
    bounds = pv.evaluation.bdmc(vae.model, vae.guide, x, 16, num_temperatures=200, seed=0)
    width = bounds.upper - bounds.lower
    print(f"sandwich {float(bounds.lower.mean()):.3f} to {float(bounds.upper.mean()):.3f}")
    assert abs(float(width.mean())) < 0.5
    assert float(width.mean()) > -3 * float(width.std()) / 40**0.5


def test_annealing_agrees_with_nuts(trained: tuple[pv.VAE, torch.Tensor]) -> None:
    vae, x = trained
    annealed = pv.evaluation.ais(vae.model, vae.guide, x[:5], 64, num_temperatures=300, seed=0)
    reference = pv.evaluation.nuts(vae.model, vae.guide, x[:5], 500, warmup_steps=300, seed=0, progress=False)
    z = (annealed.log_likelihood - reference.log_likelihood) / np.hypot(annealed.mcse, reference.mcse)
    print(f"z {z.values}, r_hat {reference.r_hat.values}")
    assert (reference.r_hat < 1.05).all()
    assert (abs(z) < 4).all()
