"""Autoencoders: losses and corruptions against independent computations, unsupported methods, and invalid input."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.autoencoders import (
    Autoencoder,
    Contraction,
    DenoisingAutoencoder,
    GaussianNoise,
    KLSparsity,
    Masking,
    SparseAutoencoder,
    squared_jacobian_norm,
)
from tests.autoencoding import KINDS, array, decoder, encoder, mlp

fit = partial(pv.fit, progress=False)


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def autoencoder(request: pytest.FixtureRequest) -> Autoencoder:
    made: Autoencoder = request.param().double()
    return made


def test_the_cross_entropy_is_that_of_bernoulli_bits(x: Tensor) -> None:
    autoencoder, x = Autoencoder(encoder(), decoder()).double(), x.double()
    bits, found = array(x), array(autoencoder.decode(autoencoder.encode(x)))
    expected = -(bits * np.log(found) + (1 - bits) * np.log(1 - found)).sum(1)
    np.testing.assert_allclose(array(autoencoder.errors(x)), expected, rtol=1e-12)
    np.testing.assert_allclose(autoencoder.loss(x).item(), expected.mean(), rtol=1e-12)
    likelihood = pv.likelihoods.Bernoulli(autoencoder.decoder)
    np.testing.assert_allclose(array(likelihood(autoencoder.encode(x)).log_prob(x)), -expected, rtol=1e-12)


def test_the_squared_error_is_summed_over_an_image() -> None:
    autoencoder = Autoencoder(mlp((4, 5), 3), mlp(3, (4, 5)), error="squared").double()
    x = torch.randn(7, 4, 5, dtype=torch.float64)
    expected = ((array(x) - array(autoencoder.decode(autoencoder.encode(x)))) ** 2).sum((1, 2))
    np.testing.assert_allclose(array(autoencoder.errors(x)), expected, rtol=1e-12)
    np.testing.assert_allclose(autoencoder.loss(x).item(), expected.mean(), rtol=1e-12)
    assert torch.equal(autoencoder.reconstruct(x), autoencoder.decoder(autoencoder.encoder(x)))


def test_masking_sets_a_random_subset_to_zero() -> None:
    x, u = torch.randn(2000, 7, 5), 0.3
    seen = Masking(u)(x)
    kept = seen != 0
    assert torch.equal(seen[kept], x[kept])
    error = 5 * (u * (1 - u)) ** 0.5
    shares = 1 - kept.double()
    assert abs(shares.mean() - u) < error / x.numel() ** 0.5
    assert ((shares.mean(0) - u).abs() < error / 2000**0.5).all()  # at every place
    counts = shares.sum((1, 2))
    assert counts.var().item() == pytest.approx(35 * u * (1 - u), rel=0.2)  # each entry by itself
    assert torch.equal(Masking(0.0)(x), x)
    assert not Masking(1.0)(x).any()


def test_gaussian_noise_has_its_scale() -> None:
    x = torch.full((4000, 10), 2.0)
    noise = GaussianNoise(0.5)(x) - x
    assert abs(noise.mean()) < 5 * 0.5 / 200
    assert noise.std().item() == pytest.approx(0.5, abs=5 * 0.5 / 2**0.5 / 200)
    assert abs(torch.corrcoef(noise.T)[0, 1]) < 5 / 4000**0.5


@pytest.mark.parametrize("training", [True, False])
def test_the_loss_compares_the_clean_data_with_reconstructions_of_corrupted_data(x: Tensor, training: bool) -> None:
    seen = 1 - x
    autoencoder = DenoisingAutoencoder(encoder(), decoder(), corruption=lambda x: 1 - x).double().train(training)
    x, seen = x.double(), seen.double()
    found = array(autoencoder.decode(autoencoder.encode(seen)))
    expected = -(array(x) * np.log(found) + (1 - array(x)) * np.log(1 - found)).sum(1)
    assert autoencoder.loss(x).item() == pytest.approx(expected.mean(), rel=1e-12)
    np.testing.assert_allclose(array(autoencoder.errors(x, seen=seen)), expected, rtol=1e-12)
    assert (autoencoder.errors(x) - autoencoder.errors(x, seen=seen)).abs().min() > 1e-6


def test_the_penalty_is_that_of_the_corrupted_data(x: Tensor) -> None:
    given: list[Any] = []

    def watch(*arguments: Any) -> Tensor:
        given.extend(arguments)
        return torch.full((len(x),), 2.5)

    autoencoder = Autoencoder(encoder(), decoder(), corruption=torch.zeros_like, penalty=watch)
    loss = autoencoder.loss(x)
    assert given[0] is autoencoder.encoder
    assert torch.equal(given[1], torch.zeros_like(x))
    torch.testing.assert_close(given[2], autoencoder.encode(torch.zeros_like(x)))
    torch.testing.assert_close(loss, autoencoder.errors(x, seen=torch.zeros_like(x)).mean() + 2.5)


def test_parts_are_exchanged_by_assignment(x: Tensor) -> None:
    autoencoder = DenoisingAutoencoder(encoder(), decoder())
    autoencoder.corruption, autoencoder.penalty = None, Contraction(0.5)
    expected = autoencoder.errors(x).mean() + 0.5 * squared_jacobian_norm(autoencoder.encoder, x).mean()
    torch.testing.assert_close(autoencoder.loss(x), expected)
    autoencoder.penalty = lambda encoder, x, code: code.sum(1)
    torch.testing.assert_close(autoencoder.loss(x), (autoencoder.errors(x) + autoencoder.encode(x).sum(1)).mean())


NOT_THERE = "Autoencoder has no '{}', because an autoencoder has no density p\\(x\\) and thus no ELBO"


@pytest.mark.parametrize("name", ["model", "guide", "prior", "likelihood", "posterior", "generate"])
def test_methods_that_need_a_density_name_the_reason(autoencoder: Autoencoder, name: str) -> None:
    assert not hasattr(autoencoder, name)
    with pytest.raises(AttributeError, match=NOT_THERE.format(name)):
        getattr(autoencoder, name)


@pytest.mark.parametrize(
    "ask",
    [
        lambda ae, x: pv.evaluation.evaluate(ae.model, ae.guide, x),
        lambda ae, x: pv.evaluation.log_weights(ae.model, ae.guide, x, 5),
        lambda ae, x: Trace_ELBO().loss(ae.model, ae.guide, x),
        lambda ae, x: pyro.infer.SVI(ae.model, ae.guide, pyro.optim.Adam({}), Trace_ELBO()),
    ],
)
def test_there_is_no_elbo(ask: Callable[[Any, Tensor], Any], x: Tensor) -> None:
    with pytest.raises(AttributeError, match=NOT_THERE.format("model")):
        ask(KINDS["ContractiveAutoencoder"](), x)


def test_other_missing_attributes_raise_the_usual_error(autoencoder: Autoencoder) -> None:
    with pytest.raises(AttributeError, match="has no attribute 'densities'"):
        _ = autoencoder.densities


X = torch.zeros(12, 6)
SQUARED = {"error": "squared"}


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        (
            lambda: Autoencoder(encoder(), decoder(), error="mse"),
            ValueError,
            r"error='mse' must be one of",
        ),
        (
            lambda: SparseAutoencoder(encoder(), decoder(), sparsity="l0"),
            ValueError,
            "sparsity='l0' must be",
        ),
        (
            lambda: SparseAutoencoder(encoder(), decoder(), weight=-1.0),
            ValueError,
            "weight=-1.0 must be at least 0",
        ),
        (lambda: Contraction(float("nan")), ValueError, "weight=nan must be at least 0"),
        (lambda: KLSparsity(1.0, target=1.0), ValueError, "target=1.0 must lie strictly"),
        (lambda: KLSparsity(-1.0), ValueError, "weight=-1.0 must be at least 0"),
        (lambda: Masking(1.5), ValueError, "u=1.5 must be a probability"),
        (lambda: GaussianNoise(-0.1), ValueError, "scale=-0.1 must be at least 0"),
        (lambda: fit(KINDS["Autoencoder"](), X + 2), ValueError, "between 0 and 1, got values from 2 to 2.*'squared'"),
        (lambda: KINDS["Autoencoder"]().loss(X - 1), ValueError, "got values from -1 to -1"),
        (lambda: fit(KINDS["Autoencoder"](), X, X - 1), ValueError, "got values from -1 to -1"),
        (
            lambda: fit(SparseAutoencoder(encoder(), decoder(), sparsity="kl"), torch.rand(12, 6)),
            ValueError,
            r"codes must lie .* got -.* to .*\. Use torch.nn.Sigmoid\(\)",
        ),
        (
            lambda: fit(KINDS["Autoencoder"](), X[:, :5]),
            ValueError,
            r"the encoder cannot take a tensor of shape \(12, 5\), torch.float32 \(.*that its network takes",
        ),
        (
            lambda: fit(Autoencoder(encoder(), decoder(4)), X),
            ValueError,
            r"the decoder cannot take a tensor of shape \(12, 3\)",
        ),
        (
            lambda: fit(Autoencoder(encoder(), mlp(3, (2, 3))), X),
            ValueError,
            r"the decoder returned shape \(12, 2, 3\) for data of shape \(12, 6\)\. Return .* event shape \(6,\)",
        ),
        (
            lambda: fit(Autoencoder(nn.Unflatten(1, (2, 3)), decoder()), X),
            ValueError,
            r"the encoder returned shape \(12, 2, 3\) for data of shape \(12, 6\)\. .* shape \(12, code\)",
        ),
        (lambda: KINDS["Autoencoder"]().encode(X.double()), ValueError, "the encoder cannot take .* torch.float64"),
        (
            lambda: fit(Autoencoder(pv.posteriors.DiagonalNormal(encoder(6)), decoder()), X),
            TypeError,
            "the encoder returned a Independent, not a tensor",
        ),
        (lambda: fit(KINDS["Autoencoder"](), X, objective=Trace_ELBO()), ValueError, "Omit objective= and kl_war"),
        (lambda: fit(KINDS["Autoencoder"](), X, kl_warmup=1), ValueError, "Omit objective= and kl_warmup="),
        (lambda: fit(KINDS["Autoencoder"]().requires_grad_(False), X), ValueError, "has no trainable parameter"),
        (lambda: fit(KINDS["Autoencoder"](), X / 0), ValueError, "12 of 12 data in train hold NaN"),
    ],
)
def test_bad_input_is_an_error(ask: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ask()
