"""Parameters along any dimension, excess zeros, masks and counts."""

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyrovae as pv
from pyrovae.testing import check_likelihood

likelihoods, networks = pv.likelihoods, pv.networks
SEVERAL: dict[str, tuple[Callable[..., Any], int]] = {
    "Normal": (lambda n, **k: likelihoods.Normal(n, scale=None, **k), 2),
    "Laplace": (lambda n, **k: likelihoods.Laplace(n, scale=None, **k), 2),
    "StudentT": (lambda n, **k: likelihoods.StudentT(n, scale=None, df=3.0, **k), 2),
    "Beta": (likelihoods.Beta, 2),
    "Poisson with excess zeros": (lambda n, **k: likelihoods.Poisson(n, zero_inflated=True, **k), 2),
    "NegativeBinomial": (likelihoods.NegativeBinomial, 2),
    "NegativeBinomial with excess zeros": (lambda n, **k: likelihoods.NegativeBinomial(n, zero_inflated=True, **k), 3),
    "Categorical": (lambda n, **k: likelihoods.Categorical(n, levels=4, **k), 4),
    "DiscretizedLogistic": (lambda n, **k: likelihoods.DiscretizedLogistic(n, levels=4, **k), 2),
    "DiscretizedLogisticMixture": (lambda n, **k: likelihoods.DiscretizedLogisticMixture(n, 2, levels=4, **k), 6),
}


class Fixed(nn.Module):
    """A network that returns the same output for each row of z."""

    def __init__(self, output: torch.Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.output.expand(*z.shape[:-1], *self.output.shape)


@pytest.mark.parametrize("name", SEVERAL)
def test_parameters_along_the_channels(name: str) -> None:
    """They give the density of the same parameters along the last dimension."""
    make, count = SEVERAL[name]
    parts = [torch.randn(3, 4, 5) for _ in range(count)]
    z = torch.zeros(2, 7, 1)
    last, channels = make(Fixed(torch.cat(parts, -1))), make(Fixed(torch.cat(parts, -3)), dim=-3)
    x = last(z).sample()
    assert x.shape == (2, 7, 3, 4, 5)
    torch.testing.assert_close(channels(z).log_prob(x), last(z).log_prob(x))


@pytest.mark.parametrize("name", SEVERAL)
def test_a_convolutional_decoder_with_several_outputs_per_pixel(name: str) -> None:
    torch.manual_seed(0)
    make, count = SEVERAL[name]
    likelihood = make(networks.conv_decoder(3, 4, out_shape=(count * 3, 4, 4)), dim=-3)
    check_likelihood(likelihood, latent=3, event_shape=(3, 4, 4))


@pytest.mark.parametrize("dim", [0, 1, 3])
def test_dimensions_are_counted_from_the_right(dim: int) -> None:
    with pytest.raises(ValueError, match=f"dim={dim} must be negative"):
        likelihoods.NegativeBinomial(networks.mlp(2, 4), dim=dim)


def test_unknown_dimensions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"dim=-3.*has only 1 event dimensions.*dim from -1 to -1"):
        likelihoods.Beta(networks.mlp(2, 4), dim=-3)(torch.zeros(6, 5, 2))
    with pytest.raises(ValueError, match=r"divisible by 2 in dimension -3"):
        likelihoods.Beta(networks.mlp(2, (3, 4, 4)), dim=-3)(torch.zeros(5, 2))


@pytest.mark.parametrize("gate", [0.05, 0.5, 0.95])
def test_excess_zeros(gate: float) -> None:
    logit, n = torch.tensor(gate).logit(), torch.arange(6.0)
    found = likelihoods.Poisson(Fixed(torch.tensor([0.7, logit])), zero_inflated=True)(torch.zeros(6, 1))
    rate = torch.tensor(0.7).exp()
    expected = (1 - gate) * dist.Poisson(rate).log_prob(n).exp() + gate * (n == 0)
    torch.testing.assert_close(found.log_prob(n[:, None]).exp(), expected)
    torch.testing.assert_close(found.mean[0, 0], (1 - gate) * rate)
    output = torch.tensor([0.7, 1.2, logit])
    found = likelihoods.NegativeBinomial(Fixed(output), zero_inflated=True, unit=0.5)(torch.zeros(6, 1))
    counts = dist.NegativeBinomial(output[1].exp(), logits=output[0] - output[1])
    expected = (1 - gate) * counts.log_prob(n).exp() + gate * (n == 0)
    torch.testing.assert_close(found.log_prob(0.5 * n[:, None]).exp(), expected)


@pytest.mark.parametrize("extreme", [-1e4, -100.0, 60.0, 88.0, 1e4])
def test_the_gradient_in_an_extreme_log_dispersion_is_finite(extreme: float) -> None:
    output = torch.tensor([2.0, extreme], requires_grad=True)
    log_prob = likelihoods.NegativeBinomial(Fixed(output))(torch.zeros(1)).log_prob(torch.tensor([7.0]))
    (slope,) = torch.autograd.grad(log_prob, output)
    assert slope.isfinite().all()
    if extreme > 0:
        torch.testing.assert_close(log_prob, dist.Poisson(torch.tensor(2.0).exp()).log_prob(torch.tensor(7.0)))
        torch.testing.assert_close(slope, torch.tensor([7 - torch.tensor(2.0).exp(), 0.0]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bad", [torch.full((4, 3), 0.1), torch.tensor([1.0, 0.0, 2.0]), -torch.ones(4, 3)])
def test_masks_that_are_weights_are_refused(bad: torch.Tensor) -> None:
    masked = likelihoods.Masked(likelihoods.Normal(networks.mlp(2, 3)))
    with pytest.raises(ValueError, match=r"likelihoods\.Masked: a mask holds 1"):
        masked(torch.zeros(4, 2), bad)
    with pytest.raises(ValueError, match=r"networks\.ZeroFilled: a mask holds 1"):
        networks.ZeroFilled(networks.mlp((2, 3), 2), event_dim=1)(torch.zeros(4, 3), bad.expand(4, 3))


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.int64])
def test_masks_of_any_type_select_entries(dtype: torch.dtype) -> None:
    plain = likelihoods.Normal(networks.mlp(2, 3))
    mask = torch.tensor([[1, 0, 1], [0, 0, 0]]).to(dtype)
    x, z = torch.randn(2, 3), torch.randn(2, 2)
    expected = (plain(z).base_dist.log_prob(x) * mask).sum(-1)
    torch.testing.assert_close(likelihoods.Masked(plain)(z, mask).log_prob(x), expected)


def test_zero_filled_takes_nan_for_missing() -> None:
    network = networks.ZeroFilled(networks.mlp((2, 3), 2), event_dim=1)
    x = torch.tensor([[0.5, torch.nan, 1.0]])
    torch.testing.assert_close(network(x), network(torch.tensor([[0.5, 9.0, 1.0]]), torch.tensor([[1, 0, 1]])))


def test_log1p_is_applied_to_the_data_only() -> None:
    inner = networks.ZeroFilled(networks.mlp((2, 3), 2), event_dim=1)
    x, mask = torch.rand(4, 3) * 1e4, torch.rand(4, 3) < 0.5
    torch.testing.assert_close(networks.log1p(inner)(x, mask), inner((1 + x).log(), mask))


@pytest.mark.parametrize("name", ["Poisson", "NegativeBinomial"])
def test_raw_counts_are_an_error_with_a_remedy(name: str) -> None:
    """The first remedy that the message names works."""
    torch.manual_seed(0)
    x = torch.poisson(torch.rand(60, 50) * 5e4)
    width = 50 if name == "Poisson" else 100

    def build(log1p: bool) -> pv.VAE:
        encoder = networks.mlp(50, 32, 2 * 4)
        likelihood = getattr(likelihoods, name)(networks.mlp(4, 32, width))
        encoder = networks.log1p(encoder) if log1p else encoder
        return pv.VAE(pv.priors.StandardNormal(4), likelihood, pv.posteriors.DiagonalNormal(encoder))

    with pytest.raises(ValueError, match=r"posterior .*scale.*networks\.log1p\(network\)"):
        pv.fit(build(False), x, epochs=1, seed=0, progress=False)
    history = pv.fit(build(True), x, epochs=3, seed=0, progress=False)
    assert history.train[-1] > history.train[0]
