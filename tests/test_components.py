"""Every prior, likelihood and posterior keeps the contract; a new member joins by one line."""

import math

import pyro.distributions as dist
import pytest
import torch
import zuko
from torch import nn

from pyrovae import flows, likelihoods, networks, posteriors, priors
from pyrovae.testing import check_likelihood, check_posterior, check_prior


class _OfVAE(nn.Module):
    """A VampPrior as a VAE holds it, with its posterior beside it."""

    def __init__(self, prior: priors.VampPrior, posterior: nn.Module) -> None:
        super().__init__()
        self.prior, self.posterior = prior, posterior

    def forward(self) -> dist.TorchDistribution:
        self.prior.bind_components(posterior=self.posterior)
        return self.prior()


PRIORS = {
    "StandardNormal": priors.StandardNormal(3),
    "Fixed": priors.Fixed(dist.Laplace(torch.zeros(3), 1.0).to_event(1)),
    "GaussianMixture": priors.GaussianMixture(3, components=4),
    "VampPrior": _OfVAE(priors.VampPrior(4, (5,)), posteriors.DiagonalNormal(networks.mlp(5, 2 * 3))),
    "NormalizingFlow": priors.NormalizingFlow(3),
    "NormalizingFlow, autoregressive": priors.NormalizingFlow(3, flows.autoregressive(3, depth=2, hidden=(16,))),
    "NormalizingFlow, spline": priors.NormalizingFlow(3, flows.coupling(3, depth=2, univariate="spline")),
    "NormalizingFlow of a mixture": priors.NormalizingFlow(3, base=priors.GaussianMixture(3)),
    "NormalizingFlow of zuko": priors.NormalizingFlow(3, zuko.flows.NICE(3, transforms=2).transform.inv),
    "a lambda": lambda: dist.Laplace(torch.zeros(3), torch.ones(3)).to_event(1),
}
LIKELIHOODS = {
    "Bernoulli": likelihoods.Bernoulli(networks.mlp(3, 8, (4, 5))),
    "Bernoulli, convolutional": likelihoods.Bernoulli(networks.conv_decoder(3, 4, out_shape=(4, 6))),
    "Normal, fixed": likelihoods.Normal(networks.mlp(3, 8, (4, 5)), scale=0.1),
    "Normal, learned": likelihoods.Normal(networks.mlp(3, 8, (4, 5)), scale=0.1, learn_scale=True),
    "Normal, by network": likelihoods.Normal(networks.mlp(3, 8, (4, 10)), scale=None),
    "Normal, with a floor": likelihoods.Normal(networks.mlp(3, 8, (4, 10)), scale=None, min_scale=0.1),
    "Laplace": likelihoods.Laplace(networks.mlp(3, 8, (4, 5)), scale=0.1),
    "StudentT": likelihoods.StudentT(networks.mlp(3, 8, (4, 10)), scale=None, df=3.0),
    "ContinuousBernoulli": likelihoods.ContinuousBernoulli(networks.mlp(3, 8, (4, 5))),
    "Beta": likelihoods.Beta(networks.mlp(3, 8, (4, 10))),
    "Binomial": likelihoods.Binomial(networks.mlp(3, 8, (4, 5)), 16),
    "Binomial in a unit": likelihoods.Binomial(networks.mlp(3, 8, (4, 5)), 16, unit=1 / 16),
    "Poisson": likelihoods.Poisson(networks.mlp(3, 8, (4, 5))),
    "NegativeBinomial": likelihoods.NegativeBinomial(networks.mlp(3, 8, (4, 10))),
    "Categorical": likelihoods.Categorical(networks.mlp(3, 8, (4, 256 * 5)), unit=1 / 255),
    "DiscretizedLogistic": likelihoods.DiscretizedLogistic(networks.mlp(3, 8, (4, 10)), unit=1 / 255),
    "DiscretizedLogisticMixture": likelihoods.DiscretizedLogisticMixture(networks.mlp(3, 8, (4, 60)), 4, unit=1 / 255),
}
POSTERIORS = {
    "DiagonalNormal": posteriors.DiagonalNormal(networks.mlp((4, 6), 8, 6)),
    "DiagonalNormal, convolutional": posteriors.DiagonalNormal(networks.conv_encoder((4, 6), 4, out_shape=6)),
    "Laplace": posteriors.Laplace(networks.mlp((4, 6), 8, 6)),
    "StudentT": posteriors.StudentT(networks.mlp((4, 6), 8, 6)),
    "MultivariateNormal": posteriors.MultivariateNormal(networks.mlp((4, 6), 8, 9)),
    "MultivariateNormal, low rank": posteriors.MultivariateNormal(networks.mlp((4, 6), 8, 9), rank=1),
    "InverseAutoregressiveFlow": posteriors.InverseAutoregressiveFlow(networks.mlp((4, 6), 8, 6 + 2), 3, context=2),
    "InverseAutoregressiveFlow without context": posteriors.InverseAutoregressiveFlow(networks.mlp((4, 6), 8, 6), 3),
    "NormalizingFlow": posteriors.NormalizingFlow(
        posteriors.StudentT(networks.mlp((4, 6), 8, 6)), flows.coupling(3, context=2), networks.mlp((4, 6), 2)
    ),
}


@pytest.mark.parametrize("name", PRIORS)
def test_prior(name: str) -> None:
    check_prior(PRIORS[name], latent=3)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_likelihood(name: str) -> None:
    check_likelihood(LIKELIHOODS[name], latent=3, event_shape=(4, 6 if "convolutional" in name else 5))


@pytest.mark.parametrize("name", POSTERIORS)
def test_posterior(name: str) -> None:
    check_posterior(POSTERIORS[name], event_shape=(4, 6), latent=3)


class _Deaf(nn.Module):
    """A likelihood with a parameter that nothing reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.unused = networks.mlp(3, 4), nn.Parameter(torch.zeros(1))

    def forward(self, z: torch.Tensor) -> dist.TorchDistribution:
        return dist.Normal(self.network(z), 1.0).to_event(1)


class _Mixing(nn.Module):
    """A likelihood that mixes data."""

    def forward(self, z: torch.Tensor) -> dist.TorchDistribution:
        return dist.Normal(z - z.mean(0), 1.0).to_event(1)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda z: z, "returned a Tensor"),
        (lambda z: dist.Normal(z, 1.0), r"batch shape is \(3,\), but that of the context is \(\)"),
        (lambda z: dist.Normal(z[..., :2], 1.0).to_event(1), r"event shape is \(2,\), expected \(3,\)"),
        (lambda z: dist.Normal(z.sum() + z, 1.0).to_event(1), "leading dimensions of the context are not independent"),
        (_Mixing(), "leading dimensions of the context are not independent"),
        (_Deaf(), "no gradient of log_prob reaches the parameter unused"),
    ],
)
def test_the_contract_finds_what_is_broken(broken: object, message: str) -> None:
    size = 4 if isinstance(broken, _Deaf) else 3
    with pytest.raises(AssertionError, match=message):
        check_likelihood(broken, latent=3, event_shape=(size,))


def test_normal_with_constant_scale_is_least_squares_plus_a_constant() -> None:
    network, scale = networks.mlp(3, 8, 5).double(), 0.3
    likelihood = likelihoods.Normal(network, scale=scale).double()
    z, x = torch.randn(7, 3, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)
    least_squares = ((x - network(z)) ** 2).sum(-1) / (2 * scale**2)
    constant = 5 * math.log(scale * math.sqrt(2 * math.pi))
    torch.testing.assert_close(-likelihood(z).log_prob(x), least_squares + constant, rtol=1e-6, atol=1e-6)


def test_bernoulli_is_minus_the_sum_of_cross_entropies() -> None:
    likelihood = likelihoods.Bernoulli(networks.mlp(3, 5))
    z, x = torch.randn(7, 3), torch.bernoulli(torch.full((7, 5), 0.5))
    p = likelihood.network(z).sigmoid()
    cross_entropy = -(x * p.log() + (1 - x) * (1 - p).log()).sum(-1)
    torch.testing.assert_close(-likelihood(z).log_prob(x), cross_entropy)


def test_normal_scales() -> None:
    z = torch.zeros(4, 3)
    fixed = likelihoods.Normal(networks.mlp(3, 5), scale=0.25)
    learned = likelihoods.Normal(networks.mlp(3, 5), scale=0.25, learn_scale=True)
    given = likelihoods.Normal(networks.mlp(3, 10), scale=None)
    assert fixed(z).stddev.allclose(torch.tensor(0.25))
    assert learned(z).stddev.allclose(torch.tensor(0.25))
    assert "log_scale" in dict(learned.named_parameters())
    assert "log_scale" not in dict(fixed.named_parameters())
    torch.testing.assert_close(given(z).stddev, given.network(z)[..., 5:].exp())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: priors.StandardNormal(0), "latent=0"),
        (lambda: likelihoods.Normal(networks.mlp(2, 3), scale=0.0), "positive and finite, got 0.0"),
        (lambda: likelihoods.Normal(networks.mlp(2, 3), scale=math.inf), "positive and finite, got inf"),
        (lambda: likelihoods.Normal(networks.mlp(2, 3), scale=None, learn_scale=True), "scale to start from"),
        (
            lambda: likelihoods.Normal(networks.mlp(2, 3), scale=None)(torch.zeros(4, 2)),
            r"likelihoods.Normal.*\(4, 3\)",
        ),
        (lambda: posteriors.DiagonalNormal(networks.mlp(2, 3))(torch.zeros(4, 2)), r"DiagonalNormal.*\(4, 3\)"),
    ],
)
def test_bad_arguments(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
