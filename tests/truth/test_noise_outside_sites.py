"""A model with random numbers outside of its sites, or with a state, has no density. The refusal names the reason."""

import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import pyrovae as pv
from tests.truth.programs import Program, check_close, exact_normal, normal_guide, normal_model

E = pv.evaluation
X = torch.randn(5, generator=torch.Generator().manual_seed(0))


def moved(change: Callable[[Tensor], Tensor]) -> Program:
    """The normal model, whose latent is transformed by a function before it becomes the mean of the data."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(change(z), 1.0), obs=x)

    return model


NOISE: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "dropout": ("torch", lambda z: functional.dropout(z, 0.1)),
    "rare dropout": ("torch", lambda z: functional.dropout(z, 1e-4)),
    "rand": ("torch", lambda z: z + torch.rand(())),
    "small randn_like": ("torch", lambda z: z + 1e-5 * torch.randn_like(z)),
    "compared": ("torch", lambda z: torch.where(torch.rand(z.shape) < 1e-3, 0.0, z)),
    "compared from above": ("torch", lambda z: torch.where(torch.randn(z.shape) > 4.0, 0.0, z)),
    "in place": ("torch", lambda z: z * torch.empty_like(z).bernoulli_(0.999)),
    "permutation": ("torch", lambda z: z + torch.randperm(4)[0] / 100),
    "integer": ("torch", lambda z: z + torch.randint(0, 2, ()) / 100),
    "distribution": ("torch", lambda z: z + 1e-3 * torch.distributions.Gamma(1.0, 1.0).sample()),
    "numpy": ("NumPy", lambda z: z + 1e-5 * np.random.randn()),
    "python": ("Python", lambda z: z + 1e-5 * random.random()),
}


@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("name", NOISE)
def test_noise_in_the_model_is_refused(name: str, size: int) -> None:
    source, change = NOISE[name]
    for seed in range(3):
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # the advice to count from the right must not appear
            with pytest.raises(ValueError, match=f"random numbers of {source} outside sample sites"):
                E.evaluate(moved(change), normal_guide, X[:size], 100, seed=seed)


ESTIMATORS: dict[str, Callable[..., Any]] = {
    "log_likelihood": E.log_likelihood,
    "one run a draw": lambda *args, **options: E.evaluate(*args, 100, vectorize=False, **options),
    "ais": lambda *args, **options: E.ais(*args, 4, num_temperatures=3, **options),
    "rqmc": lambda *args, **options: E.rqmc(*args, 64, **options),
}


@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_refuses_noise(name: str, size: int) -> None:
    with pytest.raises(ValueError, match="outside sample sites"):
        ESTIMATORS[name](moved(NOISE["rare dropout"][1]), normal_guide, X[:size], seed=0)


def test_noise_of_a_plate_of_fixed_size() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", 5):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(functional.dropout(z, 0.1), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 5):
            pyro.sample("z", dist.Normal(x / 2, 0.8))

    with pytest.raises(ValueError, match="outside sample sites"):
        E.evaluate(model, guide, X, 100, seed=0)


def enumerated(change: Callable[[Tensor], Tensor]) -> tuple[Program, Program]:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(change(y), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(torch.full_like(x, 0.5)), infer={"enumerate": "parallel"})

    return model, guide


@pytest.mark.parametrize("name", ["dropout", "rand", "numpy"])
def test_noise_beside_an_enumerated_guide(name: str) -> None:
    with pytest.raises(ValueError, match="outside sample sites"):
        E.evaluate(*enumerated(NOISE[name][1]), X, 100, seed=0)


@pytest.mark.parametrize("name", ["dropout", "rare dropout", "numpy", "compared"])
def test_objectives_refuse_noise(name: str) -> None:
    with pytest.raises(ValueError, match="outside sample sites"):
        pv.objectives.IWAE(3).loss(moved(NOISE[name][1]), normal_guide, X)


class Counter:
    def __init__(self, step: float) -> None:
        self.step, self.calls = step, 0

    def __call__(self, z: Tensor) -> Tensor:
        self.calls += 1
        return z + self.step * self.calls


class Annealed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("t", torch.zeros(()))

    def forward(self, z: Tensor) -> Tensor:
        self.t += 0.1
        return z * self.t


def own_generator() -> Callable[[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    return lambda z: z + torch.randn((), generator=generator)


STATES: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
    "counter": lambda: Counter(0.1),
    "buffer": Annealed,
    "own generator": own_generator,
}


@pytest.mark.parametrize("vectorize", [None, False])
@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("name", STATES)
def test_a_state_is_refused_as_such(name: str, size: int, vectorize: bool | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="keeps a state that changes"):
            E.evaluate(moved(STATES[name]()), normal_guide, X[:size], 100, seed=0, vectorize=vectorize)


@pytest.mark.parametrize("name", STATES)
def test_a_state_beside_an_enumerated_guide(name: str) -> None:
    with pytest.raises(ValueError, match="keeps a state"):
        E.evaluate(*enumerated(STATES[name]()), X, 100, seed=0)


@pytest.mark.parametrize("name", STATES)
def test_objectives_refuse_a_state(name: str) -> None:
    with pytest.raises(ValueError, match="keeps a state"):
        pv.objectives.IWAE(3).loss(moved(STATES[name]()), normal_guide, X)


def with_layer() -> Program:
    layer = nn.Dropout(0.5)
    return moved(lambda z: layer(z))


def with_parameter() -> Program:
    def change(z: Tensor) -> Tensor:
        weight = pyro.param("weight", torch.randn(3))  # drawn in every run, used in the first
        return z + 0 * weight.sum()

    return moved(change)


def with_initial_value() -> Program:
    return moved(lambda z: z + 0 * pyro.param("initial", lambda: torch.randn(())))


def with_fixed_features() -> Program:
    def change(z: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return z + 0 * torch.randn(())

    return moved(change)


class Cached:
    """A program that stores values that do not affect its density."""

    def __init__(self) -> None:
        self.calls, self.cache = 0, {}

    def __call__(self, x: Tensor) -> None:
        self.calls += 1
        self.cache[len(x)] = x
        normal_model(x)


def with_layer_of_each_run() -> Program:
    return moved(lambda z: nn.Dropout(0.5)(z))


@pytest.mark.parametrize("estimate", [E.evaluate, E.log_likelihood])
def test_a_layer_that_is_made_in_the_program_is_in_evaluation_mode(estimate: Callable[..., Any]) -> None:
    made: list[nn.Dropout] = []

    def change(z: Tensor) -> Tensor:
        made.append(nn.Dropout(0.5))
        return nn.Sequential(made[-1], nn.Identity())(z)

    check_close(estimate(moved(change), normal_guide, X, seed=0), exact_normal(X))
    assert all(layer.training for layer in made)
    with pytest.raises(ValueError, match="outside sample sites"):  # a loss runs modules in the mode that they are in
        pv.objectives.IWAE(3).loss(with_layer_of_each_run(), normal_guide, X)


@pytest.mark.parametrize("make", [with_layer, with_parameter, with_initial_value, with_fixed_features, Cached])
def test_idle_noise_is_no_error(make: Callable[[], Program]) -> None:
    pyro.clear_param_store()
    for _ in range(2):
        check_close(E.evaluate(make(), normal_guide, X, 2000, seed=0), exact_normal(X))
        assert np.isfinite(pv.objectives.IWAE(3).loss(make(), normal_guide, X))


def test_a_guide_with_noise_is_accepted() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2 + 0.1 * torch.randn(len(x)), 0.8))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_close(E.evaluate(normal_model, guide, X, 2000, seed=0), exact_normal(X))
