"""A value that a program records with ``pyro.deterministic`` is not an observation."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrovae as pv
from tests.truth.programs import check_close, exact_normal, normal_guide

E = pv.evaluation
X = torch.randn(6, generator=torch.Generator().manual_seed(0))


class OnlyRecorded(nn.Module):
    """Pyro's conditional VAE without its targets, which it records instead of observing them."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, self.scale))
            pyro.deterministic("y", 2 * z)

    guide = staticmethod(normal_guide)


CALLS: dict[str, Callable[[Any], Any]] = {
    "evaluate": lambda own: E.evaluate(own.model, own.guide, X, 20, seed=0),
    "log_likelihood": lambda own: E.log_likelihood(own.model, own.guide, X, seed=0),
    "IWAE": lambda own: pv.objectives.IWAE(2).loss(own.model, own.guide, X),
    "fit": lambda own: pv.fit(own, X, epochs=1, progress=False),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_model_that_records_and_observes_nothing_is_refused(call: str) -> None:
    with pytest.raises(ValueError, match="the model observes nothing"):
        CALLS[call](OnlyRecorded())


class Recording(nn.Module):
    """A program that records values of its parameters in a plate of their own, and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.rates = nn.Parameter(torch.tensor([1.0, 2.0]))

    def model(self, x: Tensor) -> None:
        with pyro.plate("classes", 2):
            pyro.deterministic("doubled", 2 * self.rates)
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(0.3))
            rate = pyro.deterministic("rate", self.rates[y.long()])
            pyro.sample("x", dist.Poisson(rate), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(0.5))


def test_recorded_values_have_no_part_in_plates_and_base_measures() -> None:
    own, x = Recording(), torch.tensor([0.0, 2.0, 1.0, 5.0])
    assert len(pv.fit(own, x, epochs=1, progress=False).train) == 1
    found = E.evaluate(own.model, own.guide, x, 2000, seed=0)
    with torch.no_grad():
        each = dist.Poisson(own.rates).log_prob(x.unsqueeze(-1)).exp()
    check_close(found, (each @ torch.tensor([0.7, 0.3])).log().numpy())
    assert found.attrs["observed_sites"] == "x"
    assert found.attrs["base_measure"] == "counting"


def test_recorded_values_leave_the_estimate_as_it_is() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(pyro.deterministic("mean", 1 * z), 1.0), obs=x)
        pyro.deterministic("total", z.sum())

    check_close(E.evaluate(model, normal_guide, X, 1000, seed=0), exact_normal(X))
