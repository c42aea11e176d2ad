"""Training on fewer data than a plate declares is refused, and a history of differently scaled sites is no bound."""

import math
import warnings
from collections.abc import Callable

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyrovae as pv
from tests.truth.programs import Program

X = torch.randn(60, generator=torch.Generator().manual_seed(0)) + 1


def mean_model(size: int) -> Program:
    def model(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", size, subsample=torch.arange(len(x))):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    return model


def mean_guide(x: Tensor) -> None:
    loc = pyro.param("loc", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(0.1), constraint=dist.constraints.positive)
    pyro.sample("w", dist.Normal(loc, scale))


def local_model(size: int) -> Program:
    def model(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", size, subsample=torch.arange(len(x))):
            z = pyro.sample("z", dist.Normal(w, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return model


def local_guide(size: int) -> Program:
    def guide(x: Tensor) -> None:
        mean_guide(x)
        with pyro.plate("data", size, subsample=torch.arange(len(x))):
            pyro.sample("z", dist.Normal(x / 2, 0.7))

    return guide


def by_hand(size: int) -> Program:
    def model(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.poutine.scale(scale=size / len(x)), pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    return model


PAIRS: dict[str, Callable[[int], tuple[Program, Program]]] = {
    "plate": lambda size: (mean_model(size), mean_guide),
    "with local latents": lambda size: (local_model(size), local_guide(size)),
    "scaled by hand": lambda size: (by_hand(size), mean_guide),
}


@pytest.fixture(autouse=True)
def _empty_store() -> None:
    pyro.clear_param_store()


@pytest.mark.parametrize("declared", [61, 600])
@pytest.mark.parametrize("name", PAIRS)
def test_more_data_declared_than_given(name: str, declared: int) -> None:
    with pytest.raises(ValueError, match=rf"declares {declared} data, but there are 60 training data"):
        pv.fit(PAIRS[name](declared), X, epochs=1, batch_size=20, seed=0, progress=False)
    pv.fit(PAIRS[name](60), X, epochs=1, batch_size=20, seed=0, progress=False)


@pytest.mark.parametrize("name", ["plate", "with local latents"])
def test_more_data_declared_than_given_in_one_batch(name: str) -> None:
    with pytest.raises(ValueError, match="declares 600 data"):
        pv.fit(PAIRS[name](600), X, epochs=1, batch_size=60, seed=0, progress=False)


@pytest.mark.parametrize("name", PAIRS)
def test_validation_data_may_be_fewer_than_the_plate_declares(name: str) -> None:
    pv.fit(PAIRS[name](60), X, X[:20], epochs=1, batch_size=20, seed=0, progress=False)


def test_the_advice_gives_the_posterior_of_all_data() -> None:
    pv.fit(PAIRS["plate"](60), X, epochs=400, batch_size=20, learning_rate=5e-3, seed=0, progress=False)
    assert pyro.param("scale").item() == pytest.approx(1 / math.sqrt(61), rel=0.2)


def scaled_likelihood(scale: float) -> tuple[Program, Program]:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.poutine.scale(scale=scale):
                pyro.sample("x", dist.Normal(z, 0.7), obs=x)

    return model, learned_guide


def scaled_latents(scale: float) -> tuple[Program, Program]:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            with pyro.poutine.scale(scale=scale):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.7), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.poutine.scale(scale=scale):
            learned_guide(x)

    return model, guide


def scaled_data(scale: float) -> tuple[Program, Program]:
    def model(x: Tensor) -> None:
        weights = torch.where(torch.arange(len(x)) % 2 == 0, scale, 1.0)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.poutine.scale(scale=weights):
                pyro.sample("x", dist.Normal(z, 0.7), obs=x)

    return model, learned_guide


def scaled_model_alone(scale: float) -> tuple[Program, Program]:
    def model(x: Tensor) -> None:
        with pyro.poutine.scale(scale=scale):
            scaled_likelihood(1.0)[0](x)

    return model, learned_guide


def learned_guide(x: Tensor) -> None:
    scale = pyro.param("s", torch.tensor(0.8), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 1.49, scale))


def terms(x: Tensor) -> tuple[float, float]:
    """Expected log p(x | z) and KL divergence of the guide, nats per datum."""
    loc, scale = x.double() / 1.49, 0.8
    kl = (-math.log(scale) + (scale**2 + loc**2 - 1) / 2).mean()
    fit = (-0.5 * math.log(2 * math.pi * 0.49) - ((x.double() - loc) ** 2 + scale**2) / 0.98).mean()
    return float(fit), float(kl)


SCALED = {
    "likelihood": (scaled_likelihood, lambda fit, kl, c: fit - kl / c),
    "latents": (scaled_latents, lambda fit, kl, c: fit - c * kl),
    "model alone": (scaled_model_alone, None),
    "some data": (scaled_data, None),
}


@pytest.mark.parametrize("scale", [0.1, 4.0, 100.0])
@pytest.mark.parametrize("name", SCALED)
def test_sites_with_different_scales(name: str, scale: float) -> None:
    make, objective = SCALED[name]
    with pytest.warns(UserWarning, match="not a bound on log p") as caught:
        found = pv.fit(make(scale), X, X, epochs=40, learning_rate=1e-12, batch_size=30, seed=0, progress=False)
    assert len(caught) == 1
    if objective is not None:
        right = objective(*terms(X), scale)
        spread = 3 * max(scale, 1) / math.sqrt(40 * len(X))
        assert abs(np.mean(found.train) - right) < 5 * spread


@pytest.mark.parametrize("scale", [0.1, 4.0])
def test_a_scale_around_all_sites_is_divided_out(scale: float) -> None:
    model, guide = scaled_likelihood(1.0)
    pair = pyro.poutine.scale(model, scale=scale), pyro.poutine.scale(guide, scale=scale)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = pv.fit(pair, X, X, epochs=40, learning_rate=1e-12, batch_size=30, seed=0, progress=False)
    fit, kl = terms(X)
    assert abs(np.mean(found.train) - (fit - kl)) < 15 / math.sqrt(40 * len(X))
