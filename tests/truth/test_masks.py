"""The mask of a latent site is compared in model and guide for every datum and every entry of an event."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

import pyrovae as pv
from tests.truth.programs import Program, check_close, exact_normal

E = pv.evaluation
DIFFERS = "'z' has different masks in guide and model"


def by_handler(fn: Any, mask: Tensor) -> Tensor:
    with poutine.mask(mask=mask):
        return pyro.sample("z", fn)


def by_distribution(fn: Any, mask: Tensor) -> Tensor:
    return pyro.sample("z", fn.mask(mask))


def programs(sample: Callable[[Any, Tensor], Tensor], in_model: bool, in_guide: bool) -> tuple[Program, Program]:
    def model(x: Tensor, mask: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = sample(dist.Normal(torch.zeros(len(x)), 1.0), mask | (not in_model))
            pyro.sample("x", dist.Normal(z, 1.0).mask(mask), obs=x)

    def guide(x: Tensor, mask: Tensor) -> None:
        with pyro.plate("data", len(x)):
            sample(dist.Normal(x / 2, 0.8), mask | (not in_guide))

    return model, guide


def data(size: int, masked: int) -> tuple[Tensor, Tensor]:
    return torch.randn(size, generator=torch.Generator().manual_seed(1)), torch.arange(size) != masked


TOOLS: dict[str, Callable[..., Any]] = {
    "evaluate": lambda *args: E.evaluate(*args, 20, seed=0),
    "one by one": lambda *args: E.log_weights(*args, 2, seed=0, vectorize=False),
    "small batches": lambda *args: E.evaluate(*args, 20, seed=0, memory=10_000),
    "compiled": lambda *args: E.evaluate(*args, 20, seed=0, compile=True),
    "log_likelihood": lambda *args: E.log_likelihood(*args, seed=0),
    "rqmc": lambda *args: E.rqmc(*args, 64, seed=0),
    "predictive": lambda *args: E.posterior_predictive_check(*args, lambda x: x, 20, num_draws=5, seed=0),
    "IWAE": lambda model, guide, x: pv.objectives.IWAE(2).loss(model, guide, *x),
}


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize(("size", "masked"), [(1, 0), (5, 0), (5, 2), (5, 4), (700, 0), (700, 350), (700, 699)])
@pytest.mark.parametrize("where", ["model", "guide"])
def test_a_mask_of_one_program_is_found_in_every_position(where: str, size: int, masked: int, tool: str) -> None:
    model, guide = programs(by_handler, where == "model", where == "guide")
    with pytest.raises(ValueError, match=DIFFERS):
        TOOLS[tool](model, guide, data(size, masked))


@pytest.mark.parametrize("sample", [by_handler, by_distribution])
@pytest.mark.parametrize("tool", ["evaluate", "one by one", "small batches", "compiled"])
def test_a_mask_that_both_programs_have_is_right(tool: str, sample: Callable[[Any, Tensor], Tensor]) -> None:
    model, guide = programs(sample, True, True)
    x, mask = data(300, 77)
    if tool == "one by one":
        log_weights = TOOLS[tool](model, guide, (x, mask))
        assert (log_weights == 0).all(0).tolist() == (~mask).tolist()
    else:
        options: dict[str, Any] = {"small batches": {"memory": 100_000}, "compiled": {"compile": True}}.get(tool, {})
        found = E.evaluate(model, guide, (x, mask), 2000, seed=0, **options)
        check_close(found, np.where(mask, exact_normal(x), 0))


ENTRY = torch.tensor([True, False])
BY_ENTRY: dict[str, Callable[[Any], Any]] = {
    "before to_event": lambda fn: fn.mask(ENTRY).to_event(1),
    "all but one datum": lambda fn: fn.mask(torch.arange(3).unsqueeze(-1) != 1).to_event(1),
    "single entry": lambda fn: fn.mask((torch.arange(6) != 5).reshape(3, 2)).to_event(1),
    "twice": lambda fn: fn.mask(ENTRY).mask(torch.tensor([[True], [True], [False]])).to_event(1),
    "after to_event": lambda fn: fn.to_event(1).mask(torch.tensor([True, True, False])),
}


def normal_pairs(of_model: Callable[[Any], Any], of_guide: Callable[[Any], Any]) -> tuple[Program, Program]:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", of_model(dist.Normal(torch.zeros(len(x), 2), 1.0)))
            pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", of_guide(dist.Normal(torch.stack([x / 2, 0 * x], -1), torch.tensor([0.8, 1.0]))))

    return model, guide


@pytest.mark.parametrize("name", BY_ENTRY)
@pytest.mark.parametrize("where", ["model", "guide"])
def test_a_mask_of_entries_of_an_event_is_compared(where: str, name: str) -> None:
    x = torch.tensor([0.3, -1.0, 2.0])
    makes = [BY_ENTRY[name] if where == each else lambda fn: fn.to_event(1) for each in ("model", "guide")]
    model, guide = normal_pairs(*makes)
    for tool in (E.evaluate, E.log_weights, E.rqmc):
        with pytest.raises(ValueError, match=DIFFERS):
            tool(model, guide, x, 64, seed=0)
    for call in (
        lambda: E.ais(model, guide, x, 4, seed=0),
        lambda: E.log_likelihood(model, guide, x, seed=0),
        lambda: pv.objectives.FreeBits(0.1).loss(model, guide, x),
    ):
        with pytest.raises(ValueError, match=DIFFERS):
            call()


def test_the_same_mask_of_entries_in_both_programs_is_right() -> None:
    x = torch.tensor([0.3, -1.0, 2.0])
    makes: list[Callable[[Any], Any]] = [
        lambda fn: fn.mask(ENTRY).to_event(1),
        lambda fn: fn.mask(ENTRY.expand(3, 2)).to_event(1),
    ]
    model, guide = normal_pairs(*makes)
    check_close(E.evaluate(model, guide, x, 3000, seed=0), exact_normal(x))
    with pytest.raises(ValueError, match="'z' is masked"):
        E.ais(model, guide, x, 4, seed=0)


@pytest.mark.parametrize("vectorize", [None, False])
def test_a_mask_that_depends_on_draws(vectorize: bool | None) -> None:
    def sample(a: Any, z: Any, *, masked: bool) -> tuple[Tensor, Tensor]:
        first = pyro.sample("a", a)
        with poutine.mask(mask=(first > 0) | (not masked)):
            return first, pyro.sample("z", z)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a, z = sample(dist.Normal(torch.zeros(len(x)), 1.0), dist.Normal(0.0, 1.0), masked=True)
            pyro.sample("x", dist.Normal(torch.where(a > 0, z, 0.0), 1.0), obs=x)

    def guide(x: Tensor, *, masked: bool) -> None:
        with pyro.plate("data", len(x)):
            sample(dist.Normal(torch.zeros(len(x)), 1.0), dist.Normal(x / 2, 0.8), masked=masked)

    x = torch.tensor([0.3, -1.0, 2.0])
    exact = np.logaddexp(exact_normal(x), -0.5 * x.double().numpy() ** 2 - 0.5 * np.log(2 * np.pi)) - np.log(2)
    found = E.evaluate(model, lambda x: guide(x, masked=True), x, 1000, seed=0, vectorize=vectorize, memory=20_000)
    check_close(found, exact)
    with pytest.raises(ValueError, match=DIFFERS):
        E.evaluate(model, lambda x: guide(x, masked=False), x, 50, seed=0, vectorize=vectorize)
