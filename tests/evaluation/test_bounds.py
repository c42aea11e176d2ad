"""Statistics of log-weights use every draw equally often and keep the order of the bounds."""

import math

import numpy as np
import pytest
import torch

from pyrovae.evaluation import psis
from pyrovae.evaluation.bounds import effective_sample_size, elbo, iwae, log_likelihood


@pytest.mark.parametrize("scale", [3, 3000])  # at the larger scale, most weights are zero relative to the largest
@pytest.mark.parametrize("num_samples", [1, 2, 3, 7, 12, 60])
def test_iwae_uses_every_draw_equally_often_and_keeps_the_order(num_samples: int, scale: float) -> None:
    log_w = scale * torch.randn(num_samples, 4, dtype=torch.float64)
    lowest, highest = elbo(log_w)[0], log_likelihood(log_w)[0]
    for k in range(1, num_samples + 1):
        by_hand = torch.stack(
            [log_w.roll(-start, 0)[:k].logsumexp(0) - math.log(k) for start in range(num_samples)]
        ).mean(0)
        bound = iwae(log_w, k)[0]
        torch.testing.assert_close(bound, by_hand)
        assert (lowest <= bound + 1e-12).all()
        assert (bound <= highest + 1e-12).all()


def test_iwae_refuses_more_draws_than_there_are() -> None:
    with pytest.raises(ValueError, match="between 1 and the number of draws, 3"):
        iwae(torch.zeros(3, 2), 4)


def test_effective_sample_size() -> None:
    log_w = torch.tensor([[0.0, 0.0], [0.0, -math.inf], [0.0, -math.inf]], dtype=torch.float64) - 1000
    torch.testing.assert_close(effective_sample_size(log_w), torch.tensor([3.0, 1.0], dtype=torch.float64))


def test_one_draw_has_no_error() -> None:
    log_w = torch.randn(1, 3)
    for statistic in (elbo, log_likelihood):
        value, error = statistic(log_w)
        torch.testing.assert_close(value, log_w[0])
        assert error.isnan().all()


def test_psis_smooths_and_normalizes() -> None:
    one = torch.ones((), dtype=torch.float64)
    pareto = torch.distributions.Pareto(one, one / 0.6).sample((4000, 5)).log()
    smoothed, pareto_k = psis(pareto)
    assert smoothed.shape == pareto.shape
    torch.testing.assert_close(smoothed.exp().sum(0), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(pareto_k, torch.full((5,), 0.6, dtype=torch.float64), atol=0.25, rtol=0)
    small = pareto < pareto.quantile(0.5, dim=0)
    spread = (smoothed - pareto)[small[:, 0].nonzero().flatten()[:2], 0]
    assert spread[0] == pytest.approx(spread[1].item())  # weights outside the tail are normalized only


def test_psis_leaves_its_argument_as_it_is() -> None:
    log_w = torch.randn(1000, 1, dtype=torch.float64)  # NumPy would not copy the transpose of this shape
    before = log_w.clone()
    psis(log_w)
    assert torch.equal(log_w, before)


def test_psis_of_few_draws_and_of_flat_tails() -> None:
    assert psis(torch.randn(20, 3))[1].tolist() == [np.inf] * 3
    assert psis(torch.zeros(1, 3))[1].tolist() == [-np.inf] * 3
    bounded = torch.randn(1000, 2).clamp(max=0.0)  # half of the weights are the largest
    smoothed, pareto_k = psis(bounded)
    assert pareto_k.tolist() == [-np.inf] * 2
    torch.testing.assert_close(smoothed, (bounded - bounded.logsumexp(0)).double())
