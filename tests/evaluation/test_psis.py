"""The batched Pareto smoothing agrees with ArviZ, and ArviZ computes the data that the batched fit does not cover."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pyrovae.evaluation import psis
from pyrovae.evaluation.diagnostics import psis as module
from pyrovae.evaluation.diagnostics.generalized_pareto import fit


def arviz(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the results of ArviZ, datum by datum."""
    rows, pareto_k = module._psislw(log_weights.T.contiguous().double().numpy().copy())
    return torch.from_numpy(rows).T, torch.from_numpy(np.asarray(pareto_k))


@pytest.mark.parametrize("num_samples", [25, 30, 100, 301, 2000, 5000])
@pytest.mark.parametrize("scale", [0.01, 0.3, 1.0, 3.0, 30.0, 300.0])
def test_the_batched_fit_is_that_of_arviz(num_samples: int, scale: float) -> None:
    log_weights = scale * torch.randn(num_samples, 40, dtype=torch.float64)
    smoothed, pareto_k = psis(log_weights)
    expected, expected_k = arviz(log_weights)
    torch.testing.assert_close(pareto_k, expected_k, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(smoothed, expected, rtol=1e-9, atol=1e-9)


def test_single_precision_and_a_datum_alone_give_the_same_numbers() -> None:
    log_weights = 3 * torch.randn(2000, 50)
    smoothed, pareto_k = psis(log_weights)
    torch.testing.assert_close(pareto_k, arviz(log_weights)[1], rtol=1e-9, atol=1e-9)
    for i in (0, 17, 49):
        alone, k = psis(log_weights[:, i : i + 1])
        assert torch.equal(alone[:, 0], smoothed[:, i])
        assert k[0] == pareto_k[i]


def coarse(log_weights: Tensor) -> Tensor:
    """Round to multiples of 1/4, so that many of the largest weights equal the next weight."""
    return (4 * log_weights).round() / 4


@pytest.mark.parametrize(
    "log_weights",
    [
        coarse(torch.randn(1000, 8, dtype=torch.float64)),
        torch.cat([torch.zeros(1, 8), -800 - torch.rand(999, 8)]).double(),  # all but one weight underflow
        torch.randn(1000, 8, dtype=torch.float64).clamp(min=2.0),  # the tail is longer than the set of unequal weights
    ],
    ids=["ties", "underflow", "clamped"],
)
def test_ties_and_underflow_are_left_to_arviz(log_weights: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    original = module._psislw
    monkeypatch.setattr(module, "_psislw", lambda rows: taken.append(len(rows)) or original(rows))
    mixed = torch.cat([log_weights, torch.randn(1000, 2, dtype=torch.float64)], dim=1)
    smoothed, pareto_k = psis(mixed)
    assert 0 < sum(taken) <= 8
    expected, expected_k = arviz(mixed)
    torch.testing.assert_close(pareto_k, expected_k, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(smoothed, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [-0.4, 0.0, 0.3, 0.8])
def test_the_fit_finds_shape_and_scale(shape: float) -> None:
    """The estimate of the shape is shrunk towards 1/2 by ten weights of 4,000."""
    uniform = torch.rand(20, 4000, dtype=torch.float64)
    draws = -uniform.log() if shape == 0 else (uniform**-shape - 1) / shape
    k, scale = fit(2.5 * draws.sort(1).values)
    expected = (4000 * shape + 5) / 4010
    for found, true, error in ((k, expected, (1 + shape) / math.sqrt(4000)), (scale, 2.5, 2.5 * math.sqrt(2 / 4000))):
        assert abs(float(found.mean()) - true) < 5 * error / math.sqrt(20) + 0.005


def test_a_datum_without_weights_is_uniform_and_the_argument_stays() -> None:
    log_weights = torch.cat([torch.full((200, 1), -math.inf), torch.randn(200, 2)], dim=1).double()
    before = log_weights.clone()
    smoothed, pareto_k = psis(log_weights)
    assert torch.equal(log_weights, before)
    assert pareto_k[0] == math.inf
    torch.testing.assert_close(smoothed[:, 0], torch.full((200,), -math.log(200), dtype=torch.float64))
