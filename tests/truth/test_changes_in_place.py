"""A program that changes a tensor of a site in place, after the site, is refused. The error names the site."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from torch import Tensor, nn

import pyrovae as pv
from tests.truth.programs import Program, check_close, exact_normal, normal_guide, normal_model
from tests.truth.summed_out import HISTORIES, RECAPTURE, SURVIVAL, capture_recapture, probability_of

E = pv.evaluation
X = torch.randn(5, generator=torch.Generator().manual_seed(0))


class Survival(nn.Module):
    """Pyro's unmodified example of capture and recapture, which marks animals as known in place."""

    def __init__(self) -> None:
        super().__init__()
        self.survival = nn.Parameter(torch.tensor(SURVIVAL))

    def model(self, captured: Tensor) -> None:
        pyro.module("survival", self)
        with pyro.plate("animals", len(captured)):
            alive, known = torch.ones(len(captured)), torch.zeros(len(captured)).bool()
            for t in pyro.markov(range(captured.shape[1])):
                with poutine.mask(mask=known):
                    probability = known.float() * self.survival * alive + (1 - known.float())
                    alive = pyro.sample(f"alive_{t}", dist.Bernoulli(probability), infer={"enumerate": "parallel"})
                    pyro.sample(f"seen_{t}", dist.Bernoulli(RECAPTURE * alive), obs=captured[:, t])
                known |= captured[:, t].bool()

    def guide(self, captured: Tensor) -> None: ...


CALLS: dict[str, Callable[[Any], Any]] = {
    "evaluate": lambda own: E.evaluate(own.model, own.guide, HISTORIES, 2, seed=0),
    "rqmc": lambda own: E.rqmc(own.model, own.guide, HISTORIES, 64, seed=0),
    "fit": lambda own: pv.fit(
        own, HISTORIES, objective=TraceEnum_ELBO(max_plate_nesting=1), epochs=1, batch_size=6, progress=False
    ),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_mask_that_is_changed_in_place(call: str) -> None:
    with pytest.raises(ValueError, match="changes the mask of site 'alive_0' in place"):
        CALLS[call](Survival())


def test_the_same_program_with_a_new_mask_in_each_step() -> None:
    exact = np.log([probability_of(history) for history in HISTORIES.numpy()])
    found = E.evaluate(capture_recapture, lambda captured: None, HISTORIES, 2, seed=0).log_likelihood
    np.testing.assert_allclose(found, exact, atol=1e-5)


def loc(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        mean = torch.zeros(len(x))
        z = pyro.sample("z", dist.Normal(mean, 1.0))
        mean += z
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def value(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(nn.functional.relu(z, inplace=True), 1.0), obs=x)


def value_of_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x / 2, 0.8))
        z.clamp_(-1, 1)


@pytest.mark.parametrize(
    ("model", "guide", "what"),
    [
        (loc, normal_guide, "the parameter 'loc' of site 'z'"),
        (value, normal_guide, "the value of site 'z'"),
        (normal_model, value_of_guide, "the value of site 'z'"),
    ],
)
def test_parameters_and_values_that_are_changed_in_place(model: Program, guide: Program, what: str) -> None:
    for call in (lambda: E.evaluate(model, guide, X, 20, seed=0), lambda: pv.objectives.IWAE(2).loss(model, guide, X)):
        with pytest.raises(ValueError, match=f"changes {what} in place"):
            call()


def test_changes_of_other_tensors_are_allowed() -> None:
    def model(x: Tensor) -> None:
        total = torch.zeros(len(x))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            recorded = pyro.deterministic("recorded", 1 * z)
            total = total + z
            total += 1
            recorded.mul_(2)
            pyro.sample("x", dist.Normal(total - 1, 1.0), obs=x)

    check_close(E.evaluate(model, normal_guide, X, 1000, seed=0), exact_normal(X))
