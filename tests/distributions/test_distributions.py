"""Distributions of the package against formulas and against PyTorch."""

import math

import pyro.distributions as dist
import pytest
import torch

from pyrovae import flows, networks, posteriors
from pyrovae.data import dequantize
from pyrovae.distributions import Beta, DiscretizedLogistic, Lattice, MultivariateNormal, NormalizingFlow


def test_discretized_logistic_is_a_difference_of_distribution_functions() -> None:
    loc, scale = torch.tensor([0.3, 0.9, 0.02]).double(), torch.tensor([0.1, 0.03, 0.2]).double()
    n = torch.arange(8).double().unsqueeze(-1)
    logistic = lambda b: torch.sigmoid((b - loc) / scale)  # noqa: E731
    above = torch.where(n == 7, torch.ones(3).double(), logistic((n + 0.5) / 7))
    below = torch.where(n == 0, torch.zeros(3).double(), logistic((n - 0.5) / 7))
    p = DiscretizedLogistic(loc, scale, levels=8)
    torch.testing.assert_close(p.log_prob(n).exp(), above - below)
    torch.testing.assert_close(p.log_prob(n).exp().sum(0), torch.ones(3).double())


def test_discretized_logistic_is_exact_in_the_tails() -> None:
    far = DiscretizedLogistic(torch.tensor(0.0), torch.tensor(1e-3), levels=256).log_prob(torch.tensor(200.0))
    wide = DiscretizedLogistic(torch.tensor(0.0).double(), torch.tensor(1e-3).double(), levels=256)
    assert far.isfinite()
    torch.testing.assert_close(far.double(), wide.log_prob(torch.tensor(200.0).double()), rtol=1e-5, atol=0)


def test_discretized_logistic_draws_have_its_probabilities_mean_and_variance() -> None:
    p = DiscretizedLogistic(torch.tensor([0.3, 0.95]), torch.tensor([0.1, 0.2]), levels=6)
    draws = p.sample((100_000,))
    for n in range(6):
        share = p.log_prob(torch.tensor(float(n))).exp()
        torch.testing.assert_close((draws == n).float().mean(0), share, atol=0.006, rtol=0)
    torch.testing.assert_close(draws.mean(0), p.mean, atol=0.03, rtol=0)
    torch.testing.assert_close(draws.var(0), p.variance, atol=0.05, rtol=0)


def test_multivariate_normal_scores_its_draws_as_pyro_does_where_that_is_accurate() -> None:
    loc, scale_tril = torch.randn(3, 4).double(), torch.randn(3, 4, 4).double().tril(-1) + torch.eye(4).double()
    p = MultivariateNormal(loc, scale_tril=scale_tril.requires_grad_())
    z = p.rsample((5,))
    torch.testing.assert_close(p.log_prob(z), p.log_prob(z.clone()))
    first, second = (
        torch.autograd.grad(p.log_prob(part).sum(), scale_tril, retain_graph=True)[0].tril() for part in (z, z[...])
    )
    torch.testing.assert_close(first, second)
    assert type(p.expand((2, 3))) is MultivariateNormal
    draws = p.sample((50_000,))
    torch.testing.assert_close(draws.mean(0), loc, atol=0.1, rtol=0)


@pytest.mark.parametrize("name", ["MultivariateNormal", "NormalizingFlow"])
def test_values_cached_by_a_draw_are_used_for_this_draw_only(name: str) -> None:
    scale = torch.ones(3).requires_grad_()
    p = (
        MultivariateNormal(torch.zeros(3), scale_tril=torch.diag(scale))
        if name == "MultivariateNormal"
        else NormalizingFlow(dist.Normal(torch.zeros(3), scale).to_event(1), flows.inverse_autoregressive(3)())
    )
    with torch.no_grad():
        z = p.rsample()
    assert p.log_prob(z).requires_grad
    with torch.no_grad():
        z = p.rsample()
        z.mul_(3)
        torch.testing.assert_close(p.log_prob(z), p.log_prob(z.clone()))


@pytest.mark.parametrize("name", ["MultivariateNormal", "InverseAutoregressiveFlow"])
def test_draws_in_inference_mode_are_scored(name: str) -> None:
    network, x = networks.mlp(4, 9 if name == "MultivariateNormal" else 6), torch.randn(5, 4)
    posterior = (
        posteriors.MultivariateNormal(network)
        if name == "MultivariateNormal"
        else posteriors.InverseAutoregressiveFlow(network, 3)
    )
    with torch.inference_mode():
        q = posterior(x)
        z = q.rsample()
        torch.testing.assert_close(q.log_prob(z), q.log_prob(z.clone()))


def test_multivariate_normal_stays_accurate_where_the_inverse_does_not() -> None:
    scale_tril = torch.ones(40, 40).mul(-1.5).tril(-1) + torch.eye(40)
    p = MultivariateNormal(torch.zeros(40), scale_tril=1e-3 * scale_tril)
    z = p.rsample((100,))
    entropy = 20 * (1 + math.log(2 * math.pi)) + 40 * math.log(1e-3)
    assert (-p.log_prob(z).mean() - entropy).abs() < 2.0
    assert (-p.log_prob(z.clone()).mean() - entropy).abs() > 100.0  # why the draws' noise is used


@pytest.mark.parametrize(
    "base",
    [
        dist.Categorical(logits=torch.randn(3, 5)),
        dist.Binomial(4, logits=torch.randn(3)),
        DiscretizedLogistic(torch.rand(3), torch.ones(3), levels=5),
        dist.MixtureSameFamily(
            dist.Categorical(logits=torch.randn(3, 2)),
            DiscretizedLogistic(torch.rand(3, 2), torch.ones(3, 2), levels=5),
        ),
    ],
)
def test_lattice_scores_levels_in_their_unit(base: dist.TorchDistribution) -> None:
    p = Lattice(base, unit=1 / 4)
    levels = torch.arange(5.0).unsqueeze(-1).expand(5, 3)
    probabilities = p.log_prob(levels / 4).exp()
    torch.testing.assert_close(probabilities, base.log_prob(levels).exp())
    torch.testing.assert_close(probabilities.sum(0), torch.ones(3))
    mean = (probabilities * levels / 4).sum(0)
    torch.testing.assert_close(p.mean, mean)
    torch.testing.assert_close(p.variance, (probabilities * (levels / 4 - mean) ** 2).sum(0))
    assert set((p.sample((50,)) * 4).unique().tolist()) <= {0.0, 1.0, 2.0, 3.0, 4.0}
    assert p.expand((2, 3)).sample().shape == (2, 3)


def test_small_variances_keep_their_digits() -> None:
    loc = torch.linspace(0, 1, 2001)
    narrow = DiscretizedLogistic(loc, torch.tensor(2e-4))
    exact = DiscretizedLogistic(loc.double(), torch.tensor(2e-4).double())
    torch.testing.assert_close(narrow.variance.double(), exact.variance, atol=1e-2, rtol=0)
    certain = Lattice(dist.Categorical(logits=25 * torch.eye(256)), unit=1 / 255)
    assert (certain.variance >= 0).all()


@pytest.mark.parametrize("value", [0.3, -0.25, 1.25])
def test_lattice_refuses_values_between_its_levels(value: float) -> None:
    p = Lattice(dist.Binomial(4, logits=torch.zeros(1)), unit=1 / 4)
    with pytest.raises(ValueError, match=r"multiples of 0.25"):
        p.log_prob(torch.tensor([value]))


def test_open_beta_refuses_the_ends_of_the_interval() -> None:
    p = Beta(torch.tensor(2.0), torch.tensor(3.0))
    torch.testing.assert_close(p.log_prob(torch.tensor(0.3)), dist.Beta(2.0, 3.0).log_prob(torch.tensor(0.3)))
    for end in (0.0, 1.0):
        with pytest.raises(ValueError, match="support"):
            p.log_prob(torch.tensor(end))


def test_dequantized_values_stay_in_their_level_and_fill_it() -> None:
    x = torch.arange(256).float().repeat(2000, 1) / 255
    y = dequantize(x)
    assert (y > 0).all()
    assert (y < 1).all()
    assert (y * 256).floor().equal((x * 255).round())
    torch.testing.assert_close((y * 256 % 1).mean(), torch.tensor(0.5), atol=0.002, rtol=0)
    torch.testing.assert_close((y * 256 % 1).var(), torch.tensor(1 / 12), atol=0.001, rtol=0)


def test_dequantize_refuses_other_values() -> None:
    with pytest.raises(ValueError, match="multiples of 1/255 in"):
        dequantize(torch.tensor([0.5, 1.0]))
    with pytest.raises(ValueError, match="multiples of 1/16 in"):
        dequantize(torch.tensor([0.53125]), levels=17)
    with pytest.raises(ValueError, match="between 2 and 512, got 1000"):
        dequantize(torch.zeros(1), levels=1000)
