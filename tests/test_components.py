"""Every prior, likelihood and posterior keeps the contract of its kind."""

import copy
import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyrovae as pv
from pyrovae import likelihoods, networks, posteriors, priors
from pyrovae.testing import check_likelihood, check_posterior, check_prior
from tests.components import LIKELIHOODS, POSTERIORS, PRIORS


@pytest.mark.filterwarnings(
    "ignore:it could not be checked that all tensors of NormalizingFlow"
)  # zuko's splines need values
@pytest.mark.parametrize("name", PRIORS)
def test_prior(name: str) -> None:
    check_prior(PRIORS[name], latent=3)


def test_a_plain_distribution_keeps_the_contract_of_a_prior() -> None:
    check_prior(dist.Normal(torch.zeros(3), 1.0).to_event(1), latent=3)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_likelihood(name: str) -> None:
    check_likelihood(LIKELIHOODS[name], latent=3, event_shape=(4, 6 if "convolutional" in name else 5))


@pytest.mark.parametrize("name", POSTERIORS)
def test_posterior(name: str) -> None:
    check_posterior(POSTERIORS[name], event_shape=(4, 6), latent=3)


def _entropy_gap(draws: torch.Tensor, log_prob: torch.Tensor, entropy: torch.Tensor) -> torch.Tensor:
    """Return the difference between the mean of -log p over draws and the entropy, in standard errors."""
    surprise = -log_prob
    return (surprise.mean() - entropy).abs() / (surprise.std() / len(draws) ** 0.5)


torch.manual_seed(0)  # networks are made at import, before a test sets a seed

CONTINUOUS = {
    "Normal": likelihoods.Normal(networks.mlp(2, 2), scale=None, min_scale=0.1),
    "Laplace": likelihoods.Laplace(networks.mlp(2, 1), scale=0.3),
    "StudentT": likelihoods.StudentT(networks.mlp(2, 1), scale=0.3, df=5.0, learn_scale=True),
    "ContinuousBernoulli": likelihoods.ContinuousBernoulli(networks.mlp(2, 1)),
    "Beta": likelihoods.Beta(networks.mlp(2, 2), min_concentration=1.0),
}
DISCRETE = {
    "Bernoulli": (likelihoods.Bernoulli(networks.mlp(2, 1)), 2, 1.0),
    "Binomial": (likelihoods.Binomial(networks.mlp(2, 1), 16), 17, 1.0),
    "Binomial in a unit": (likelihoods.Binomial(networks.mlp(2, 1), 16, unit=1 / 16), 17, 1 / 16),
    "Poisson": (likelihoods.Poisson(networks.mlp(2, 1)), 100, 1.0),
    "NegativeBinomial": (likelihoods.NegativeBinomial(networks.mlp(2, 2)), 1000, 1.0),
    "Categorical": (likelihoods.Categorical(networks.mlp(2, 256), unit=1 / 255), 256, 1 / 255),
    "DiscretizedLogistic": (likelihoods.DiscretizedLogistic(networks.mlp(2, 2), unit=1 / 255), 256, 1 / 255),
    "DiscretizedLogisticMixture": (likelihoods.DiscretizedLogisticMixture(networks.mlp(2, 12), 4), 256, 1.0),
}


@pytest.mark.parametrize("name", CONTINUOUS)
def test_density_integrates_to_one_and_draws_follow_it(name: str) -> None:
    p = copy.deepcopy(CONTINUOUS[name]).double()(torch.tensor([[0.4, -0.7]]).double())
    unit = name in ("ContinuousBernoulli", "Beta")
    grid = torch.linspace(*((1e-9, 1 - 1e-9) if unit else (-60.0, 60.0)), 400_001, dtype=torch.float64)
    log_density = p.log_prob(grid.reshape(-1, 1, 1)).squeeze(-1)
    total, entropy = (torch.trapezoid(part, grid) for part in (log_density.exp(), -log_density.exp() * log_density))
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-5, rtol=0)
    draws = p.sample((20_000,))
    assert _entropy_gap(draws, p.log_prob(draws), entropy) < 4
    mean = torch.trapezoid(log_density.exp() * grid, grid)
    assert (draws.mean() - mean).abs() < 4 * draws.std() / len(draws) ** 0.5
    torch.testing.assert_close(p.mean.squeeze(), mean, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", DISCRETE)
def test_probabilities_sum_to_one_and_draws_follow_them(name: str) -> None:
    likelihood, levels, unit = DISCRETE[name]
    p = copy.deepcopy(likelihood).double()(torch.tensor([[0.4, -0.7]]).double())
    values = unit * torch.arange(levels).double()
    log_probability = p.log_prob(values.reshape(-1, 1, 1)).squeeze(-1)
    torch.testing.assert_close(log_probability.exp().sum(), torch.ones(()).double(), atol=1e-6, rtol=0)
    draws = p.sample((20_000,))
    entropy = -(log_probability.exp() * log_probability).nan_to_num().sum()
    assert _entropy_gap(draws, p.log_prob(draws), entropy) < 4
    mean = (log_probability.exp() * values).sum()
    torch.testing.assert_close(p.mean.squeeze(), mean, atol=1e-6, rtol=1e-6)
    assert (draws.double().mean() - mean).abs() < 4 * draws.double().std() / len(draws) ** 0.5


@pytest.mark.parametrize("name", [*PRIORS, *POSTERIORS])
def test_latents_have_a_density_of_mass_one_that_their_draws_follow(name: str) -> None:
    # For any density r, the mean of r(z) / p(z) over draws z from p is one: if p has mass one, and draws are from p.
    component, context = (PRIORS[name], ()) if name in PRIORS else (POSTERIORS[name], (torch.rand(3, 4, 6),))
    with torch.no_grad():
        p = component(*context)
        few = p.sample((200,))
        centre = few[p.log_prob(few).argmax(0), torch.arange(3)] if context else few[p.log_prob(few).argmax()]
        draws = p.sample((50_000,))
        r = dist.Normal(centre, 0.3 * draws.std(0)).to_event(1)
        ratios = (r.log_prob(draws) - p.log_prob(draws)).exp()
    assert (ratios.mean() - 1).abs() < 4 * ratios.std() / len(ratios) ** 0.5 < 0.2


class _Deaf(nn.Module):
    """A likelihood with a parameter that does not affect the density."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.unused = networks.mlp(3, 4), nn.Parameter(torch.zeros(1))

    def forward(self, z: torch.Tensor) -> dist.TorchDistribution:
        return dist.Normal(self.network(z), 1.0).to_event(1)


class _Stuck(nn.Module):
    """A likelihood with a tensor that ``to`` does not move."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.shift = networks.mlp(3, 3), torch.ones(3)

    def forward(self, z: torch.Tensor) -> dist.TorchDistribution:
        return dist.Normal(self.network(z) + self.shift, 1.0).to_event(1)


@pytest.mark.parametrize(
    ("likelihood", "message"),
    [
        (likelihoods.Beta(networks.mlp(2, 8)), r"by a Beta .*strictly between 0 and 1: dequantize grey levels"),
        (likelihoods.Binomial(networks.mlp(2, 4), 16, unit=1 / 16), "scores multiples of unit=0.0625 by a Binomial"),
        (
            likelihoods.DiscretizedLogistic(networks.mlp(2, 8)),
            "scores multiples of unit=1 by a DiscretizedLogistic: pass",
        ),
    ],
)
def test_data_outside_the_support_are_refused_with_a_hint(likelihood: nn.Module, message: str) -> None:
    x = torch.rand(50, 4)
    x[0, 0] = 0
    vae = pv.VAE(priors.StandardNormal(2), likelihood, posteriors.DiagonalNormal(networks.mlp(4, 4)))
    with pytest.raises(ValueError, match=message):
        pv.fit(vae, x, epochs=1)


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
        (_Stuck(), r"after .to\(device\), a tensor is not on the device"),
        (_Deaf(), "no gradient of log_prob reaches the parameter unused"),
    ],
)
def test_the_contract_finds_broken_components(broken: object, message: str) -> None:
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


def test_a_floor_lies_under_the_scale() -> None:
    z, network = torch.randn(4, 3), networks.mlp(3, 10)
    for likelihood in (likelihoods.Normal, likelihoods.Laplace, likelihoods.StudentT):
        p = likelihood(network, scale=None, min_scale=0.25)(z).base_dist
        torch.testing.assert_close(p.scale, 0.25 + network(z)[..., 5:].exp())
    learned = likelihoods.Normal(networks.mlp(3, 5), scale=0.3, learn_scale=True, min_scale=0.25)
    torch.testing.assert_close(learned(z).stddev, torch.full((4, 5), 0.3))
    with torch.no_grad():
        learned.log_scale.fill_(-50)
    torch.testing.assert_close(learned(z).stddev, torch.full((4, 5), 0.25))


def test_counts_have_the_mean_and_the_variance_of_their_network() -> None:
    z, network = torch.randn(4, 3), networks.mlp(3, 10)
    mean, dispersion = network(z).exp().chunk(2, -1)
    p = likelihoods.NegativeBinomial(network, unit=0.5)(z)
    torch.testing.assert_close(p.mean, 0.5 * mean)
    torch.testing.assert_close(p.variance, 0.25 * (mean + mean**2 / dispersion))
    torch.testing.assert_close(likelihoods.Poisson(network)(z).mean, network(z).exp())
    torch.testing.assert_close(likelihoods.Binomial(network, 16)(z).mean, 16 * network(z).sigmoid())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: priors.StandardNormal(0), "latent=0"),
        (lambda: likelihoods.Normal(networks.mlp(2, 3), scale=0.0), "scale=0.0 must be positive and finite"),
        (lambda: likelihoods.Normal(networks.mlp(2, 3), scale=math.inf), "scale=inf must be positive and finite"),
        (lambda: likelihoods.Normal(networks.mlp(2, 3), scale=None, learn_scale=True), "starting value"),
        (
            lambda: likelihoods.Normal(networks.mlp(2, 3), scale=None)(torch.zeros(4, 2)),
            r"likelihoods.Normal.*\(4, 3\)",
        ),
        (
            lambda: likelihoods.Laplace(networks.mlp(2, 3), scale=-1.0),
            r"Laplace: scale=-1.0 must be positive",
        ),
        (lambda: likelihoods.Normal(networks.mlp(2, 3), scale=0.1, min_scale=0.2), "must exceed min_scale=0.2"),
        (lambda: likelihoods.Normal(networks.mlp(2, 3), min_scale=-0.2), "min_scale=-0.2 must be"),
        (lambda: likelihoods.StudentT(networks.mlp(2, 3), df=0.0), "df=0.0, the degrees of freedom"),
        (lambda: likelihoods.Beta(networks.mlp(2, 4), min_concentration=-1.0), "min_concentration=-1.0 must be"),
        (lambda: likelihoods.Binomial(networks.mlp(2, 3), 0), "likelihoods.Binomial: total_count=0 must be"),
        (lambda: likelihoods.Poisson(networks.mlp(2, 3), unit=0.0), "likelihoods.Poisson: unit=0.0 must be"),
        (lambda: likelihoods.DiscretizedLogistic(networks.mlp(2, 4), levels=1), "levels=1 must be at least 2"),
        (
            lambda: likelihoods.Categorical(networks.mlp(2, 7), levels=4)(torch.zeros(3, 2)),
            r"likelihoods.Categorical.*\(3, 7\).*divisible by 4",
        ),
        (lambda: posteriors.StudentT(networks.mlp(2, 4), df=-1.0), "df=-1.0, the degrees of freedom"),
        (lambda: posteriors.MultivariateNormal(networks.mlp(2, 4), rank=0), "rank=0 must be at least 1"),
        (lambda: posteriors.MultivariateNormal(networks.mlp(2, 4))(torch.zeros(3, 2)), r"4 wide.*latent \* \(latent"),
        (lambda: posteriors.MultivariateNormal(networks.mlp(2, 4), 3)(torch.zeros(3, 2)), r"4 wide.*rank 3 needs"),
        (
            lambda: posteriors.InverseAutoregressiveFlow(networks.mlp(2, 4), 2, context=3)(torch.zeros(3, 2)),
            r"\(3, 4\).*2 latent dimensions and a context of 3 need a last dimension of 7",
        ),
        (lambda: posteriors.DiagonalNormal(networks.mlp(2, 3))(torch.zeros(4, 2)), r"DiagonalNormal.*\(4, 3\)"),
    ],
)
def test_bad_arguments(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
