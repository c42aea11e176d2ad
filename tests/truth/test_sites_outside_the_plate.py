"""A log-weight belongs to one datum, so no term of log p(x) may lie outside of the data plate."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy import stats
from torch import Tensor

import pyrovae as pv
from tests.truth.programs import Program, check_close, exact_normal, normal_guide, normal_model

X = torch.tensor([0.3, 1.2, 2.0, 0.7, 3.0])


def latent(x: Tensor) -> Tensor:
    with pyro.plate("data", len(x)):
        return pyro.sample("z", dist.Normal(0.0, 1.0))


def of_an_event(x: Tensor) -> None:
    pyro.sample("x", dist.Normal(latent(x), 1.0).to_event(1), obs=x)


def in_another_plate(x: Tensor) -> None:
    z = latent(x)
    with pyro.plate("others", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def one_by_one(x: Tensor) -> None:
    z = latent(x)
    for i in pyro.plate("others", len(x)):
        pyro.sample(f"x{i}", dist.Normal(z[..., i], 1.0), obs=x[i])


def with_factor(x: Tensor) -> None:
    normal_model(x)
    pyro.factor("penalty", torch.where(x > 100, 1.0, -1.0).sum())


def latent_and_data(x: Tensor) -> Tensor:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    return z


def with_factor_of_the_latent(x: Tensor) -> None:
    z = latent_and_data(x)
    pyro.factor("penalty", -0.5 * z.square().sum(-1))


def with_independent_observation(x: Tensor) -> None:
    normal_model(x)
    pyro.sample("y", dist.Normal(torch.zeros(len(x)), 1.0).to_event(1), obs=x)


def sum_of_all(x: Tensor) -> None:
    pyro.sample("total", dist.Normal(latent_and_data(x).sum(-1), 1.0), obs=torch.tensor(7.0))


OUTSIDE: dict[str, tuple[Program, str]] = {
    "event": (of_an_event, "observed site 'x'"),
    "another plate": (in_another_plate, "observed site 'x'"),
    "sequential plate": (one_by_one, "observed site 'x0'"),
    "factor": (with_factor, "factor 'penalty'"),
    "factor of the latent": (with_factor_of_the_latent, "factor 'penalty'"),
    "independent observation": (with_independent_observation, "observed site 'y'"),
    "sum": (sum_of_all, "observed site 'total'"),
}
E, objectives = pv.evaluation, pv.objectives
TOOLS: dict[str, Callable[[Program, Program, Tensor], Any]] = {
    "evaluate": lambda model, guide, x: E.evaluate(model, guide, x, 50, seed=0),
    "one by one": lambda model, guide, x: E.log_weights(model, guide, x, 2, seed=0, vectorize=False),
    "log_likelihood": lambda model, guide, x: E.log_likelihood(model, guide, x, seed=0),
    "ais": lambda model, guide, x: E.ais(model, guide, x, 4, num_temperatures=3, seed=0),
    "nuts": lambda model, guide, x: E.nuts(model, guide, x, 8, seed=0),
    "rqmc": lambda model, guide, x: E.rqmc(model, guide, x, 64, seed=0),
    "elbo_surgery": lambda model, guide, x: E.elbo_surgery(model, guide, x, 4, seed=0),
    "IWAE": lambda model, guide, x: objectives.IWAE(4).loss(model, guide, x),
    "CIWAE": lambda model, guide, x: objectives.CIWAE(4).loss_and_grads(model, guide, x),
    "one particle": lambda model, guide, x: objectives.Renyi(0.5, 2, vectorize_particles=False).loss(model, guide, x),
    "FreeBits": lambda model, guide, x: objectives.FreeBits(0.1).loss(model, guide, x),
    "MMD": lambda model, guide, x: objectives.MMD(1.0).loss(model, guide, x),
    "ReweightedWakeSleep": lambda model, guide, x: objectives.ReweightedWakeSleep(2).loss(model, guide, x),
}


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("name", OUTSIDE)
def test_a_term_outside_of_the_data_plate_is_refused(name: str, tool: str) -> None:
    model, site = OUTSIDE[name]
    with pytest.raises(ValueError, match=f"{site} lies outside the data plate 'data'"):
        TOOLS[tool](model, normal_guide, X)


def test_the_advice_of_a_factor_works() -> None:
    with pytest.raises(ValueError, match=r"poutine\.block\(program, hide=\['penalty'\]\)"):
        E.evaluate(with_factor, normal_guide, X, 50, seed=0)
    check_close(
        E.evaluate(poutine.block(with_factor, hide=["penalty"]), normal_guide, X, 2000, seed=0), exact_normal(X)
    )


def test_the_advice_of_another_plate_works() -> None:
    def model(x: Tensor) -> None:
        outer, data = pyro.plate("outer", 1, dim=-2), pyro.plate("data", len(x), dim=-1)
        with outer, data:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with data:
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("outer", 1, dim=-2), pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x / 2, 0.8))

    with pytest.raises(ValueError, match=r"lies outside the data plate 'outer'.*pass plate='data'"):
        E.evaluate(model, guide, X, 50, seed=0)
    check_close(E.evaluate(model, guide, X, 2000, plate="data", seed=0), exact_normal(X))


def shifted(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(loc, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def chained(x: Tensor) -> None:
    scale = pyro.sample("scale", dist.Gamma(2.0, 2.0))
    loc = pyro.sample("loc", dist.Normal(0.0, scale))
    pyro.deterministic("twice", 2 * loc)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(loc, 1.0))
        pyro.sample("x", dist.Normal(z, scale), obs=x)


def in_a_plate_of_its_own(x: Tensor) -> None:
    with pyro.plate("classes", 3):
        locs = pyro.sample("loc", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(locs[2], 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def as_trace(model: Program, values: dict[str, Tensor]) -> Program:
    trace = poutine.trace(pyro.condition(model, data=values)).get_trace(X)
    return pyro.condition(model, data={name: trace.nodes[name]["value"] for name in values})


GIVEN: dict[str, tuple[Program, dict[str, Tensor], float, float]] = {
    "loc": (shifted, {"loc": torch.tensor(0.5)}, 0.5, 1.0),
    "two": (chained, {"loc": torch.tensor(-0.5), "scale": torch.tensor(0.7)}, -0.5, 0.7),
    "plate": (in_a_plate_of_its_own, {"loc": torch.tensor([5.0, -5.0, 0.5])}, 0.5, 1.0),
}


@pytest.mark.parametrize("condition", [lambda model, values: pyro.condition(model, data=values), as_trace])
@pytest.mark.parametrize("name", GIVEN)
def test_latents_with_a_given_value_may_lie_outside(name: str, condition: Callable[..., Program]) -> None:
    model, values, loc, scale = GIVEN[name]
    exact = stats.norm.logpdf(X, loc, np.hypot(1.0, scale))
    given = condition(model, values)
    check_close(E.evaluate(given, normal_guide, X, 3000, seed=0), exact)
    check_close(E.log_likelihood(given, normal_guide, X, seed=0), exact)
    losses = [objectives.IWAE(200).loss(given, normal_guide, X) for _ in range(10)]
    assert abs(np.mean(losses) + exact.sum()) < 5 * np.std(losses) / 10**0.5 + 0.05


def unobserved_event(x: Tensor) -> None:
    pyro.sample("y", dist.Normal(latent_and_data(x), 1.0).to_event(1))


def unobserved_plate(x: Tensor) -> None:
    z = latent_and_data(x)
    with pyro.plate("others", len(x)):
        pyro.sample("y", dist.Normal(z, 1.0))


def unobserved_choice(x: Tensor) -> None:
    pyro.sample("y", dist.Normal((latent_and_data(x) > 0).float().sum(-1), 1.0))


def unobserved_statistic(x: Tensor) -> None:
    pyro.sample("y", dist.Normal(x.sum(), 1.0))
    normal_model(x)


CONDITIONED: dict[str, tuple[Program, Tensor | None]] = {
    "event": (unobserved_event, None),
    "plate": (unobserved_plate, None),
    "choice": (unobserved_choice, torch.tensor(2.0)),
    "statistic": (unobserved_statistic, torch.tensor(2.0)),
}


@pytest.mark.parametrize(
    ("name", "size"), [(name, size) for name in ("event", "plate", "choice") for size in (1, 5, 30)]
)
def test_a_given_value_that_is_no_condition_is_refused(name: str, size: int) -> None:
    x = torch.randn(size, generator=torch.Generator().manual_seed(0))
    program, value = CONDITIONED[name]

    def model(x: Tensor) -> None:
        pyro.condition(program, data={"y": x if value is None else value})(x)

    for tool in ("evaluate", "log_likelihood", "rqmc", "IWAE", "FreeBits"):
        with pytest.raises(ValueError, match=r"'y' is given a value.*depends on the data or on latent sites"):
            TOOLS[tool](model, normal_guide, x)


@pytest.mark.parametrize("size", [2, 5, 30])
def test_a_given_value_that_depends_on_the_data_is_no_condition(size: int) -> None:
    test_a_given_value_that_is_no_condition_is_refused("statistic", size)
