"""Components keep their contract at any size, and their densities are right for any output of a network."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import likelihoods, networks, posteriors, priors
from pyrovae.data.splits import make_splits, shuffled
from pyrovae.testing import check_likelihood, check_posterior, check_prior
from tests.refusals import refused

sizes = st.integers(1, 5)


class Given(nn.Module):
    """A network that returns the same parameters for any input."""

    def __init__(self, *parameters: float) -> None:
        super().__init__()
        self.register_buffer("parameters_", torch.tensor(parameters))

    def forward(self, z: Tensor) -> Tensor:
        return self.parameters_.expand(*z.shape[:-1], -1)


@given(latent=sizes, components=sizes)
def test_priors_of_any_size(latent: int, components: int) -> None:
    torch.manual_seed(0)
    check_prior(priors.StandardNormal(latent), latent=latent)
    check_prior(priors.GaussianMixture(latent, components), latent=latent)
    check_prior(priors.NormalizingFlow(latent), latent=latent)


@pytest.mark.parametrize(
    ("make", "width"),
    [
        (likelihoods.Bernoulli, 1),
        (likelihoods.ContinuousBernoulli, 1),
        (lambda network: likelihoods.Normal(network, scale=None, min_scale=0.1), 2),
        (likelihoods.StudentT, 1),
        (likelihoods.Beta, 2),
        (likelihoods.Poisson, 1),
        (likelihoods.NegativeBinomial, 2),
        (lambda network: likelihoods.Binomial(network, 3, unit=1 / 3), 1),
        (lambda network: likelihoods.Categorical(network, 3), 3),
        (lambda network: likelihoods.DiscretizedLogistic(network, 5), 2),
        (lambda network: likelihoods.DiscretizedLogisticMixture(network, 2, 5), 6),
    ],
)
@given(latent=sizes, event=st.lists(sizes, min_size=1, max_size=3))
def test_likelihoods_of_any_size(
    make: Callable[[nn.Module], nn.Module], width: int, latent: int, event: list[int]
) -> None:
    torch.manual_seed(0)
    network = networks.mlp(latent, (*event[:-1], width * event[-1]))
    check_likelihood(make(network), latent=latent, event_shape=event)


@pytest.mark.parametrize(
    ("make", "width"),
    [
        (posteriors.DiagonalNormal, lambda d: 2 * d),
        (posteriors.Laplace, lambda d: 2 * d),
        (posteriors.StudentT, lambda d: 2 * d),
        (posteriors.MultivariateNormal, lambda d: d + d * (d + 1) // 2),
    ],
)
@given(latent=sizes, event=st.lists(sizes, min_size=1, max_size=3))
def test_posteriors_of_any_size(
    make: Callable[[nn.Module], nn.Module], width: Callable[[int], int], latent: int, event: list[int]
) -> None:
    torch.manual_seed(0)
    check_posterior(make(networks.mlp(event, width(latent))), event_shape=event, latent=latent)


counts, logits = st.integers(0, 300), st.floats(-80, 80, width=32)
units = st.floats(0, 1, width=32)


class Laplace:
    """SciPy's Laplace distribution, with a log-density that stays finite beyond 745 scales."""

    def __init__(self, loc: float, scale: float) -> None:
        self.loc, self.scale = loc, scale

    def logpdf(self, x: float) -> float:
        return -abs(x - self.loc) / self.scale - math.log(2 * self.scale)


def scored(likelihood: nn.Module, x: float) -> float:
    """Return the log-density of one number in float32."""
    return likelihood(torch.zeros(1)).log_prob(torch.tensor([float(x)])).item()


@given(logit=logits, n=counts)
def test_densities_of_one_parameter(logit: float, n: int) -> None:
    bit, log_rate = n % 2, logit / 10
    assert scored(likelihoods.Bernoulli(Given(logit)), bit) == pytest.approx(
        -np.logaddexp(0, -logit if bit else logit), rel=1e-5, abs=1e-7 * (1 + abs(logit))
    )
    poisson = scipy.stats.poisson(math.exp(log_rate)).logpmf(n)
    assert scored(likelihoods.Poisson(Given(log_rate)), n) == pytest.approx(poisson, rel=1e-4, abs=1e-3)
    # Over all levels, as SciPy has no Binomial of logits
    levels = np.arange(17)
    mass = [scored(likelihoods.Binomial(Given(logit), 16), float(level)) for level in levels]
    assert np.logaddexp.reduce(mass) == pytest.approx(0, abs=1e-4)
    assert np.diff(mass) == pytest.approx(logit + np.log((16 - levels[:-1]) / (levels[:-1] + 1)), rel=1e-3, abs=1e-3)


@given(logit=logits, x=units)
@example(logit=-80.0, x=0.0)  # the constant was that of -16, and the mass 0.2
@example(logit=80.0, x=1.0)
@example(logit=1e-4, x=0.5)
def test_continuous_bernoulli(logit: float, x: float) -> None:
    t, y = abs(logit), 1 - x if logit > 0 else x  # a truncated exponential distribution
    constant = math.log(t / -math.expm1(-t)) if t > 1e-6 else 0.0
    likelihood = likelihoods.ContinuousBernoulli(Given(logit))
    assert scored(likelihood, x) == pytest.approx(constant - t * y, rel=1e-4, abs=1e-4)
    p = likelihood(torch.zeros(1)).base_dist
    reference = scipy.stats.truncexpon(t, scale=1 / t) if t > 0.01 else scipy.stats.uniform()
    mean = 1 - reference.mean() if logit > 0 else reference.mean()
    assert p.mean.item() == pytest.approx(mean, abs=1e-3)
    assert p.variance.item() == pytest.approx(reference.var(), abs=1e-3)
    quantile = 1 - reference.ppf(1 - x) if logit > 0 else reference.ppf(x)
    assert p.icdf(torch.tensor([x])).item() == pytest.approx(quantile, abs=5e-3)


@given(log_mean=st.floats(-8, 5, width=32), log_dispersion=st.floats(-5, 30, width=32), n=counts)
@example(log_mean=1.0, log_dispersion=14.0, n=3)  # the difference of two log-gammas was off by nats
def test_negative_binomial(log_mean: float, log_dispersion: float, n: int) -> None:
    mean, r = math.exp(log_mean), math.exp(log_dispersion)
    rising = sum(math.log1p(i / r) for i in range(n))  # log Gamma(r + n) - log Gamma(r) - n log r
    expected = -(r + n) * math.log1p(mean / r) + n * log_mean + rising - math.lgamma(n + 1)
    score = scored(likelihoods.NegativeBinomial(Given(log_mean, log_dispersion)), n)
    assert score == pytest.approx(expected, rel=1e-4, abs=1e-3 + 2e-6 * n * abs(log_dispersion))


@given(loc=st.floats(-1, 2, width=32), log_scale=st.floats(-12, 8, width=32), levels=st.integers(2, 40))
def test_discretized_logistic_has_mass_one(loc: float, log_scale: float, levels: int) -> None:
    likelihood = likelihoods.DiscretizedLogistic(Given(loc, log_scale), levels)
    mass = [scored(likelihood, float(level)) for level in range(levels)]
    assert np.logaddexp.reduce(mass) == pytest.approx(0, abs=1e-3)


@given(loc=st.floats(-1e6, 1e6, width=32), log_scale=st.floats(-20, 20, width=32), x=st.floats(-1e6, 1e6, width=32))
def test_densities_of_location_and_scale(loc: float, log_scale: float, x: float) -> None:
    scale = math.exp(np.float32(log_scale))
    for likelihood, reference in (
        (likelihoods.Normal, scipy.stats.norm),
        (likelihoods.Laplace, Laplace),
        (likelihoods.StudentT, lambda loc, scale: scipy.stats.t(4.0, loc, scale)),
    ):
        density = scored(likelihood(Given(loc, log_scale), scale=None), x)
        assert density == pytest.approx(reference(loc, scale).logpdf(x), rel=1e-3, abs=1e-3)


@given(
    batch=st.lists(st.integers(0, 3), max_size=3),
    shapes=st.lists(st.one_of(sizes, st.lists(sizes, min_size=1, max_size=3)), min_size=2, max_size=4),
    gated=st.booleans(),
)
def test_perceptrons_of_any_shape(batch: list[int], shapes: list[int | list[int]], gated: bool) -> None:
    torch.manual_seed(0)
    network = (networks.gated_mlp if gated else networks.mlp)(*shapes)
    event_in, event_out = (tuple(np.atleast_1d(shape)) for shape in (shapes[0], shapes[-1]))
    x = torch.randn(*batch, *event_in)
    assert network(x).shape == (*batch, *event_out)


@given(
    batch=st.lists(st.integers(1, 3), max_size=2),
    image=st.tuples(st.integers(1, 11), st.integers(1, 11)),
    depth=st.sampled_from([(), (1,), (3,)]),
    channels=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    features=sizes,
)
def test_residual_networks_of_any_image(
    batch: list[int], image: tuple[int, int], depth: tuple[int, ...], channels: list[int], features: int
) -> None:
    torch.manual_seed(0)
    encoder = networks.residual_encoder((*depth, *image), *channels, out_shape=features)
    decoder = networks.residual_decoder(features, *channels, out_shape=(*depth, *image))
    x = torch.randn(*batch, *depth, *image)
    code = encoder(x)
    assert code.shape == (*batch, features)
    assert decoder(code).shape == x.shape
    if batch:
        torch.testing.assert_close(encoder(x)[0], encoder(x[0]), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(decoder(code)[0], decoder(code[0]), atol=1e-5, rtol=1e-4)
    for network, datum in ((encoder, x[(0,) * len(batch)]), (decoder, code[(0,) * len(batch)])):
        with refused():
            network(datum[0])


@given(
    size=sizes,
    code=sizes,
    event=st.lists(sizes, min_size=1, max_size=3),
    error=st.sampled_from(["cross_entropy", "squared"]),
    fill=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_autoencoder_losses_are_their_formula(size: int, code: int, event: list[int], error: str, fill: float) -> None:
    torch.manual_seed(0)
    model = pv.autoencoders.Autoencoder(networks.mlp(event, code), networks.mlp(code, event), error=error)
    x = torch.full((size, *event), fill)
    with torch.no_grad():
        found = model.reconstruct(x).double().numpy()
        loss = model.loss(x).item()
    y = x.double().numpy()
    errors = (y - found) ** 2 if error == "squared" else -(y * np.log(found) + (1 - y) * np.log1p(-found))
    assert loss == pytest.approx(errors.reshape(size, -1).sum(1).mean(), rel=1e-4)


@given(
    levels=st.integers(2, 512),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    shape=st.lists(st.integers(0, 5), max_size=3),
)
def test_dequantized_values_stay_in_their_level(levels: int, dtype: torch.dtype, shape: list[int]) -> None:
    torch.manual_seed(levels)
    n = torch.randint(levels, shape)
    y = pv.data.dequantize((n / (levels - 1)).to(dtype), levels)
    assert y.dtype == dtype
    assert torch.equal((y * levels).floor().long(), n)


@given(size=st.integers(1, 40), cuts=st.tuples(st.integers(0, 20), st.integers(0, 20)), seed=st.integers(0, 2**32 - 1))
def test_splits_hold_every_datum_once(size: int, cuts: tuple[int, int], seed: int) -> None:
    first, second = sorted(min(cut, size) for cut in cuts)
    parts = shuffled(size, (first, second), seed)
    assert [len(part) for part in parts] == [first, second - first, size - second]
    assert sorted(np.concatenate(parts).tolist()) == list(range(size))
    images = tuple(np.linspace(0, 1, len(part) * 4).reshape(-1, 2, 2) for part in parts)
    static, grey = make_splits("x", images, "static", seed), make_splits("x", images, "none", seed)
    for drawn, part in zip(static, grey, strict=True):
        assert drawn.shape == part.shape
        assert ((drawn == 0) | (drawn == 1)).all()
        assert (drawn[(part == 0) | (part == 1)] == part[(part == 0) | (part == 1)]).all()
