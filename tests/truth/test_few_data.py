"""A dependence on other data is found for any number of data."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae._waist.independence import FEW_DATA, kept_sets
from tests.truth.programs import Program, check_close, exact_normal, normal_guide, normal_model

E = pv.evaluation
BY_DATA: dict[str, Callable[[Tensor], Tensor]] = {
    "flip": lambda x: x.flip(0),
    "first": lambda x: x[0],
    "last": lambda x: x[-1],
    "middle": lambda x: x[len(x) // 2],
    "largest": lambda x: x[x.argmax()],
    "roll": lambda x: x.roll(1),
    "two before": lambda x: x.roll(2),
    "rank": lambda x: x.argsort().argsort().float(),
    "mean": lambda x: x.mean(),
    "sorted": lambda x: x.sort().values,
    "differences": lambda x: (x - x.roll(-1)).abs(),
}


def mixed_in(function: Callable[[Tensor], Tensor]) -> Program:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + 0.3 * function(x), 1.0), obs=x)

    return model


def of_latents(function: Callable[[Tensor], Tensor]) -> Program:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            moved = function(z.movedim(-1, 0)) if z.ndim == 1 else torch.stack([function(each) for each in z])
            pyro.sample("x", dist.Normal(z + 0.3 * moved, 1.0), obs=x)

    return model


def data(size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(size))


SIZES = [2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 15, 31]
PAIRS = [(name, size) for name in BY_DATA for size in SIZES if (name, size) != ("two before", 2)]  # the datum itself


@pytest.mark.parametrize(("name", "size"), PAIRS)
def test_a_dependence_on_other_data_is_refused(name: str, size: int) -> None:
    x, model = data(size), mixed_in(BY_DATA[name])
    for call in (
        lambda: E.evaluate(model, normal_guide, x, 20, seed=0),
        lambda: E.log_weights(model, normal_guide, x, 2, seed=0, vectorize=False),
        lambda: pv.objectives.IWAE(2).loss(model, normal_guide, x),
    ):
        with pytest.raises(ValueError, match="depends on the other data"):
            call()


@pytest.mark.parametrize("size", [2, 3, 5, 7])
@pytest.mark.parametrize("name", ["flip", "first", "last", "middle", "roll", "mean"])
def test_a_dependence_on_the_latents_of_other_data_is_refused(name: str, size: int) -> None:
    x, model = data(size), of_latents(BY_DATA[name])
    for tool in (E.evaluate, E.rqmc, E.log_weights):
        with pytest.raises(ValueError, match="depends on the other data"):
            tool(model, normal_guide, x, 64, seed=0)


@pytest.mark.parametrize("size", [2, 3, 5, 7, 12])
def test_a_guide_that_uses_other_data_is_refused(size: int) -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.flip(0) / 2, 1.0))

    with pytest.raises(ValueError, match="depends on the other data"):
        E.evaluate(normal_model, guide, data(size), 20, seed=0)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 8])
def test_few_independent_data_are_evaluated(size: int) -> None:
    x = data(size)
    check_close(E.evaluate(normal_model, normal_guide, x, 2000, seed=0), exact_normal(x))


@pytest.mark.parametrize("size", range(2, FEW_DATA))
def test_each_of_few_data_is_kept_without_each_of_the_others(size: int) -> None:
    sets = [set(kept.tolist()) for kept in kept_sets(size)]
    assert all(any(i in kept and j not in kept for kept in sets) for i in range(size) for j in range(size) if i != j)


def test_usual_references_are_replaced_for_any_number_of_data() -> None:
    for size in range(FEW_DATA, 600):
        index = torch.arange(size)
        sets = [set(kept.tolist()) for kept in kept_sets(size)]
        references = [index.flip(0), index * 0, index * 0 + size - 1, index * 0 + size // 2, index.roll(1)]
        references += [index.roll(-1), (index ^ 1).clamp(max=size - 1), index.roll(size // 2)]
        for used in references:
            assert any(any(int(used[i]) not in kept for i in kept) for kept in sets), size


def test_a_wrong_data_plate_is_named() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("pixels", 5, dim=-2), pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.T)

    def guide(x: Tensor) -> None:
        with pyro.plate("pixels", 5, dim=-2), pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x.T / 2, 0.8))

    x = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    for call in (
        lambda: E.evaluate(model, guide, x, 20, seed=0),
        lambda: pv.objectives.IWAE(2).loss(model, guide, x),
    ):
        with pytest.raises(ValueError, match=r"data plate is assumed to be 'pixels'.*pass plate='data'"):
            call()
    found = E.evaluate(model, guide, x, 5000, plate="data", seed=0)
    check_close(found, exact_normal(x).sum(-1))
