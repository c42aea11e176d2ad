"""Losses of fit are in nats per datum for plates and scales of all kinds."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

import pyrovae as pv

fit = partial(pv.fit, progress=False)


def plain(inside: Callable[[], None], x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        inside()


def without_size(inside: Callable[[], None], x: Tensor) -> None:
    with pyro.plate("data"):
        inside()


def subsampled(inside: Callable[[], None], x: Tensor) -> None:
    with pyro.plate("data", 600, subsample_size=len(x)):
        inside()


def scaled(inside: Callable[[], None], x: Tensor) -> None:
    with pyro.plate("data", len(x)), poutine.scale(scale=600 / len(x)):
        inside()


def divided(inside: Callable[[], None], x: Tensor) -> None:
    with poutine.scale(scale=1 / len(x)), pyro.plate("data", len(x)):
        inside()


def scaled_by_a_tensor(inside: Callable[[], None], x: Tensor) -> None:
    with pyro.plate("data", len(x)), poutine.scale(scale=torch.tensor([7.0])):
        inside()


def in_two(inside: Callable[[], None], x: Tensor) -> None:
    with poutine.scale(scale=0.1), pyro.plate("data", 600, subsample_size=len(x)), poutine.scale(scale=3.0):
        inside()


PLATES = [plain, without_size, subsampled, scaled, divided, scaled_by_a_tensor, in_two]


class Plated(nn.Module):
    """The exact posterior of a conjugate model in several kinds of plates, so that every bound is log p(x)."""

    def __init__(self, plate: Callable[[Callable[[], None], Tensor], None], beta: float | Tensor = 1.0) -> None:
        super().__init__()
        self.plate, self.beta = plate, beta
        self.slope = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def model(self, x: Tensor) -> None:
        def inside() -> None:
            with poutine.scale(scale=self.beta):
                z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        self.plate(inside, x)

    def guide(self, x: Tensor) -> None:
        def inside() -> None:
            with poutine.scale(scale=self.beta):
                pyro.sample("z", dist.Normal(self.slope * x, 0.5**0.5))

        self.plate(inside, x)


@pytest.mark.parametrize("plate", PLATES, ids=lambda plate: plate.__name__)
@pytest.mark.parametrize("objective", [None, pv.objectives.IWAE(2)], ids=["Trace_ELBO", "IWAE"])
def test_a_history_is_in_nats_per_datum_for_any_scale(plate: Any, objective: Any) -> None:
    x = torch.randn(50, dtype=torch.float64)
    exact = dist.Normal(torch.zeros(()).double(), 2**0.5).log_prob(x)
    history = fit(Plated(plate), x, x[:30], objective=objective, epochs=1, batch_size=20, learning_rate=1e-300, seed=0)
    assert history.train == pytest.approx([exact.mean().item()], rel=1e-9)
    assert history.valid == pytest.approx([exact[:30].mean().item()], rel=1e-9)


@pytest.mark.parametrize("plate", [plain, scaled, subsampled], ids=lambda plate: plate.__name__)
def test_the_likelihood_counts_in_full_where_latents_are_scaled(plate: Any) -> None:
    """The KL divergence has the factor beta, and its mean has a closed form for the exact posterior."""
    x = torch.randn(400, dtype=torch.float64)
    kl = 0.5 * (0.25 * x.square() + 0.5 - 1 - math.log(0.5))
    exact = dist.Normal(torch.zeros(()).double(), 2**0.5).log_prob(x) + 0.75 * kl
    with pytest.warns(UserWarning, match="not a bound on log p"):
        history = fit(Plated(plate, 0.25), x, epochs=1, batch_size=200, learning_rate=1e-300, seed=0)
    noise = 0.75 * math.sqrt(kl.var().item() + 1) / math.sqrt(400)  # error of the mean log-ratio of guide and prior
    assert history.train[0] == pytest.approx(exact.mean().item(), abs=5 * noise)


@pytest.mark.cuda
def test_a_scale_that_is_a_tensor_on_cuda_is_compared_with_numbers() -> None:
    x = torch.randn(40, dtype=torch.float64)
    with pytest.warns(UserWarning, match="not a bound on log p"):
        history = fit(Plated(plain, torch.full((1,), 0.25, device="cuda")), x, epochs=1, device="cuda")
    assert math.isfinite(history.train[0])


def test_an_inner_plate_that_is_subsampled_is_not_counted_as_data() -> None:
    class Pixels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(()).double())

        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x), dim=-2), pyro.plate("pixels", 8, subsample=torch.arange(4), dim=-1):
                pyro.sample("x", dist.Normal(self.loc, 1.0), obs=x[:, :4])

        def guide(self, x: Tensor) -> None: ...

    x = torch.randn(20, 4, dtype=torch.float64).repeat(1, 2)
    exact = dist.Normal(torch.zeros(()).double(), 1.0).log_prob(x).sum(-1).mean().item()
    assert fit(Pixels(), x, epochs=1, batch_size=7, learning_rate=1e-300).train == pytest.approx([exact], rel=1e-9)
