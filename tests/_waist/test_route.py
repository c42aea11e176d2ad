"""All log-weights are computed on the same path: guide, model, sum per datum. Few runs precede the first draw."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae._waist import summation
from pyrovae._waist.sites import Site
from tests.conftest import small_vae
from tests.oracle import Oracle

E = pv.evaluation
X = (torch.arange(72).reshape(12, 6) * 7 % 5 < 2).float()


def result_of(dataset: Any, *names: str) -> np.ndarray:
    return np.concatenate([dataset[name].values.ravel() for name in names])


ESTIMATORS: dict[str, Callable[[pv.VAE, Tensor], np.ndarray]] = {
    "evaluate": lambda v, x: result_of(E.evaluate(v.model, v.guide, x, 30, seed=0), "log_likelihood", "elbo"),
    "log_weights": lambda v, x: E.log_weights(v.model, v.guide, x, 3, seed=0).numpy(),
    "one by one": lambda v, x: E.log_weights(v.model, v.guide, x, 3, seed=0, vectorize=False).numpy(),
    "rqmc": lambda v, x: result_of(E.rqmc(v.model, v.guide, x, 64, seed=0), "log_likelihood"),
    "ais": lambda v, x: result_of(E.ais(v.model, v.guide, x, 4, num_temperatures=3, seed=0), "log_likelihood"),
    "bdmc": lambda v, x: result_of(E.bdmc(v.model, v.guide, x, 4, num_temperatures=3, seed=0), "lower", "upper"),
    "elbo_surgery": lambda v, x: result_of(E.elbo_surgery(v.model, v.guide, x, seed=0), "reconstruction", "kl"),
    "predictive": lambda v, x: result_of(
        E.posterior_predictive_check(v.model, v.guide, x, lambda x: x.mean(-1), 50, num_draws=5, seed=0), "ess"
    ),
    "inference data": lambda v, x: result_of(
        E.to_inference_data(v.model, v.guide, x, 50, num_draws=5, seed=0)["sample_stats"], "log_weights"
    ),
}
OBJECTIVES = {
    "IWAE": pv.objectives.IWAE(3),
    "MIWAE": pv.objectives.MIWAE(2, 2),
    "CIWAE": pv.objectives.CIWAE(3),
    "PIWAE": pv.objectives.PIWAE(2, 2),
    "Renyi": pv.objectives.Renyi(0.5, 3),
    "FreeBits": pv.objectives.FreeBits(0.1),
    "MMD": pv.objectives.MMD(1.0),
    "ReweightedWakeSleep": pv.objectives.ReweightedWakeSleep(2),
}


@pytest.fixture
def heavier(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Make the function that sums per datum return 1% more."""
    right = summation._reduce

    def wrong(log_prob: Tensor, draws_dim: int | None, data_dim: int) -> Tensor:
        return 1.01 * right(log_prob, draws_dim, data_dim)

    return lambda: monkeypatch.setattr(summation, "_reduce", wrong)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_sums_in_one_place(name: str, heavier: Callable[[], None]) -> None:
    vae = small_vae()
    before = ESTIMATORS[name](vae, X)
    heavier()
    assert not np.isclose(ESTIMATORS[name](vae, X), before, rtol=1e-4).any() or name in ("ais", "predictive")
    assert not np.allclose(ESTIMATORS[name](vae, X), before, rtol=1e-4)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_sums_in_one_place(name: str, heavier: Callable[[], None]) -> None:
    vae = small_vae()
    objective = OBJECTIVES[name]
    losses = []
    for change in (None, heavier):
        if change is not None:
            change()
        pyro.set_rng_seed(0)
        loss = objective.loss(vae.model, vae.guide, X)
        losses.append(loss[0] if isinstance(loss, tuple) else loss)
    assert abs(losses[1] / losses[0] - 1) > 2e-3


class Counted:
    """A program that counts its runs and records the number of draws in each."""

    def __init__(self, program: Callable[..., Any]) -> None:
        self.program, self.runs = program, 0

    def __call__(self, *args: Any) -> Any:
        self.runs += 1
        return self.program(*args)


@pytest.mark.parametrize(("size", "most"), [(1, 4), (3, 7), (11, 9), (12, 3), (3000, 3)])
def test_three_runs_before_the_first_draw_that_counts(size: int, most: int) -> None:
    oracle = Oracle()
    model, guide = Counted(oracle.vae.model), Counted(oracle.vae.guide)
    with E.Problem(model, guide, oracle.data(size), seed=0, memory=2**20):
        assert model.runs <= most
        assert guide.runs <= most


def test_a_discrete_site_of_the_model_leaves_two_densities() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.ones(3) / 3), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(y.to(x.dtype), torch.ones_like(x)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    x = torch.linspace(-3, 3, 7, dtype=torch.float64)
    with E.Problem(model, guide, x, seed=0) as problem:
        batch = next(problem.batches(7))
        drawn = problem.draw(batch, 5)
        log_joint = problem.log_joint(batch, drawn.values, 5)
    z = drawn.values["z"]
    by_hand = torch.stack([dist.Normal(float(y), 1.0).log_prob(z) - np.log(3) for y in range(3)]).logsumexp(0)
    torch.testing.assert_close(log_joint, by_hand + dist.Normal(z, 1.0).log_prob(x))
    torch.testing.assert_close(drawn.log_q, dist.Normal(x / 2, 1.0).log_prob(z))


def test_only_sums_have_draws_and_data_left() -> None:
    site: Site = {"infer": {}}
    term = torch.arange(24.0).reshape(2, 3, 4)  # draws, data, an inner plate
    total = summation.sum_per_datum([(site, term), (site, torch.ones(4))], -3, -2)
    torch.testing.assert_close(total, term.sum(-1) + 4)
    assert summation.sum_per_datum([], None, -1).shape == (1, 1)
