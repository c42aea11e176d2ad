"""Penalties of autoencoders against closed forms and finite differences."""

import copy
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.autoencoders import (
    Autoencoder,
    Contraction,
    ContractiveAutoencoder,
    KLSparsity,
    SparseAutoencoder,
    squared_jacobian_norm,
)
from tests.autoencoding import array, bounded_encoder, decoder, encoder, mlp

fit = partial(pv.fit, progress=False)


def penalty_of(autoencoder: Autoencoder, x: Tensor) -> float:
    """Return the loss minus the reconstruction error."""
    return (autoencoder.loss(x) - autoencoder.errors(x).mean()).item()


def test_l1_is_the_sum_of_absolute_values(x: Tensor) -> None:
    autoencoder, x = SparseAutoencoder(encoder(), decoder(), weight=0.7).double(), x.double()
    expected = 0.7 * np.abs(array(autoencoder.encode(x))).sum(1).mean()
    assert penalty_of(autoencoder, x) == pytest.approx(expected, rel=1e-12)


def test_kl_sparsity_compares_the_mean_activity_with_the_target(x: Tensor) -> None:
    autoencoder = SparseAutoencoder(bounded_encoder(), decoder(), weight=0.7, sparsity="kl", target=0.1).double()
    x = x.double()
    activity = array(autoencoder.encode(x)).mean(0)
    expected = 0.7 * (0.1 * np.log(0.1 / activity) + 0.9 * np.log(0.9 / (1 - activity))).sum()
    assert penalty_of(autoencoder, x) == pytest.approx(expected, rel=1e-12)
    at_target = torch.full((5, 3), 0.1, dtype=torch.float64)
    torch.testing.assert_close(KLSparsity(0.7, 0.1)(None, None, at_target), torch.zeros(5, dtype=torch.float64))


def test_the_contraction_of_a_sigmoid_layer_is_its_closed_form(x: Tensor) -> None:
    layer = nn.Linear(6, 3)
    autoencoder = ContractiveAutoencoder(nn.Sequential(layer, nn.Sigmoid()), decoder(), weight=0.7).double()
    x = x.double()
    h, w = array(autoencoder.encode(x)), array(layer.weight)
    expected = ((h * (1 - h)) ** 2 * (w**2).sum(1)).sum(1)
    np.testing.assert_allclose(array(squared_jacobian_norm(autoencoder.encoder, x)), expected, rtol=1e-12)
    assert penalty_of(autoencoder, x) == pytest.approx(0.7 * expected.mean(), rel=1e-12)


DEEP: dict[str, Callable[[], nn.Module]] = {
    "dense": lambda: mlp((4, 6), 8, 7, 3),
    "overcomplete": lambda: mlp((4, 6), 8, 30),
    "convolutional": lambda: pv.networks.conv_encoder((4, 6), 2, out_shape=3),
    "layer norm": lambda: nn.Sequential(mlp((4, 6), 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3)),
    "batch norm, trained": lambda: nn.Sequential(mlp((4, 6), 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).eval(),
    "posterior mean": lambda: PosteriorMean(pv.posteriors.DiagonalNormal(mlp((4, 6), 8, 2 * 3))),
}


class PosteriorMean(nn.Module):
    def __init__(self, posterior: nn.Module) -> None:
        super().__init__()
        self.posterior = posterior

    def forward(self, x: Tensor) -> Tensor:
        return self.posterior(x).mean


@pytest.mark.parametrize("make", DEEP.values(), ids=DEEP)
def test_the_contraction_of_a_deep_network_is_that_of_finite_differences(make: Callable[[], nn.Module]) -> None:
    network, x = make().double(), torch.rand(3, 4, 6, dtype=torch.float64)
    expected, step = torch.zeros(3, dtype=torch.float64), 1e-5
    with torch.no_grad():
        for direction in torch.eye(24, dtype=torch.float64).reshape(24, 4, 6):
            slope = (network(x + step * direction) - network(x - step * direction)) / (2 * step)
            expected += slope.square().sum(1)
        torch.testing.assert_close(squared_jacobian_norm(network, x), expected, rtol=1e-7, atol=1e-9)


def test_the_gradient_of_the_contraction_is_that_of_finite_differences(x: Tensor) -> None:
    layers = [nn.Linear(6, 4).double(), nn.Linear(4, 2).double()]
    x = x.double()[:3]

    def penalty(*parameters: Tensor) -> Tensor:
        w1, b1, w2, b2 = parameters
        return Contraction(1.0)(lambda x: (x @ w1.T + b1).tanh() @ w2.T + b2, x, None)

    parameters = [parameter for layer in layers for parameter in (layer.weight, layer.bias)]
    assert torch.autograd.gradcheck(penalty, parameters)


def test_the_contraction_has_a_gradient_where_the_jacobian_is_zero(x: Tensor) -> None:
    network = nn.Linear(6, 3)
    nn.init.zeros_(network.weight)
    Contraction(1.0)(network, x, None).sum().backward()
    assert torch.equal(network.weight.grad, torch.zeros(3, 6))


def test_dropout_is_drawn_in_the_jacobian_for_each_datum() -> None:
    network = nn.Sequential(nn.Dropout(0.5), nn.Linear(40, 1, bias=False))
    nn.init.ones_(network[1].weight)
    found = squared_jacobian_norm(network, torch.ones(500, 40))
    assert torch.equal(found / 4, (found / 4).round())  # the number of entries kept, each with a slope of 2
    assert len(found.unique()) > 5
    assert (found / 4).mean().item() == pytest.approx(20, abs=5 * 10**0.5 / 500**0.5)
    torch.testing.assert_close(squared_jacobian_norm(network.eval(), torch.ones(5, 40)), torch.full((5,), 40.0))


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False).eval()], ids=repr)
def test_batch_statistics_have_no_jacobian_of_a_datum(layer: nn.Module, x: Tensor) -> None:
    network = nn.Sequential(nn.Linear(6, 3), layer)
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(ValueError, match=r"BatchNorm1d makes the code of a datum depend on the whole batch.*LayerNorm"):
        squared_jacobian_norm(network, x)
    autoencoder = ContractiveAutoencoder(network.train(), decoder())
    with pytest.raises(ValueError, match="BatchNorm1d makes the code"):
        fit(autoencoder, x, epochs=1)
    assert all(torch.equal(before[name], parameter) for name, parameter in network.named_parameters())
