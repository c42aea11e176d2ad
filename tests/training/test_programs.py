"""fit of programs in usual styles: pairs, autoguides, shared latents, plates and scales of all kinds."""

import math
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoIAFNormal,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from torch import Tensor, nn

import pyrovae as pv
from tests.conftest import small_vae

fit = partial(pv.fit, progress=False)


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


class Encoder(nn.Module):
    """The amortized guide of ``model``; the best slope is 1/2."""

    def __init__(self, slope: float = 0.1, scale: float = 0.8) -> None:
        super().__init__()
        self.slope, self.scale = nn.Parameter(torch.tensor(slope)), scale

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.slope * x, self.scale))


class Script:
    """Model and guide as methods of an object that is not a module, with parameters in Pyro's store."""

    def __init__(self) -> None:
        self.encoder = Encoder()

    def model(self, x: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(3.0), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, scale), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        self.encoder(x)


def test_a_pair_trains_as_its_module_does(x: Tensor) -> None:
    runs = []
    for as_pair in (False, True):
        torch.manual_seed(0)
        vae = small_vae()
        history = fit((vae.model, vae.guide) if as_pair else vae, x, x, epochs=3, batch_size=5, seed=0)
        runs.append((vae.state_dict(), history.train, history.valid))
    assert runs[0][1:] == runs[1][1:]
    assert all(torch.equal(tensor, runs[1][0][name]) for name, tensor in runs[0][0].items())


def test_pairs_of_functions_methods_and_conditioned_programs(tmp_path: Any) -> None:
    x, script = 2 * torch.randn(300), Script()
    options: dict[str, Any] = {"learning_rate": 0.05, "seed": 0}
    fit((script.model, script.guide), x, epochs=30, checkpoint=tmp_path, **options)
    assert abs(float(pyro.param("scale").detach()) - math.sqrt(3)) < 0.5
    assert abs(float(script.encoder.slope.detach()) - 0.1) > 0.02

    def shared(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide = Encoder()
    fit((pyro.condition(shared, {"loc": torch.tensor(0.0)}), guide), torch.randn(400) * 2**0.5, epochs=60, **options)
    assert guide.slope.item() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("pair", [(model,), (model, 3), (model, Encoder(), 1)], ids=["one", "number", "three"])
def test_other_objects_than_pairs_are_refused(pair: Any) -> None:
    with pytest.raises(TypeError, match=r"fit trains a pair \(model, guide\) of Pyro programs, got \("):
        fit(pair, torch.randn(5))


MEANS = {
    "AutoNormal": AutoNormal,
    "AutoDiagonalNormal": AutoDiagonalNormal,
    "AutoMultivariateNormal": AutoMultivariateNormal,
    "AutoLowRankMultivariateNormal": AutoLowRankMultivariateNormal,
    "AutoDelta": AutoDelta,
}


# Subclasses of AutoContinuous, whose latents of all data are one vector, take their time.
SIMILAR = ("AutoDiagonalNormal", "AutoLowRankMultivariateNormal", "AutoMultivariateNormal")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SIMILAR else ()) for n in MEANS])
def test_autoguides_of_latents_per_datum_find_the_posterior_mean(name: str) -> None:
    """Data keep their order, so each datum has parameters of its own."""
    x = torch.randn(20)
    guide = MEANS[name](model)
    objective, decay = Trace_ELBO(num_particles=5), partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.985)
    options: dict[str, Any] = {"batch_size": 20, "learning_rate": 5e-2, "scheduler": decay, "seed": 0}
    fit((model, guide), x, epochs=300, objective=objective, **options)
    torch.testing.assert_close(guide.median(x)["z"].detach(), x / 2, atol=0.15, rtol=0)


def test_a_list_of_autoguides_and_a_flow_train() -> None:
    def both(x: Tensor) -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.1))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, scale), obs=x)

    x = torch.randn(20)
    parts = AutoGuideList(both)
    parts.append(AutoDelta(poutine.block(both, expose=["scale"])))
    parts.append(AutoNormal(poutine.block(both, expose=["z"])))
    for guide in (parts, AutoIAFNormal(both), AutoLaplaceApproximation(both)):
        history = fit((both, guide), x, epochs=100, batch_size=20, learning_rate=2e-2, seed=0)
        assert history.train[-1] > history.train[0]


def test_a_flow_is_not_begun_alike_under_all_seeds() -> None:
    runs = []
    for seed in (0, 1, 0):
        guide = AutoIAFNormal(model)
        runs.append(
            fit((model, guide), torch.linspace(-1, 1, 8), epochs=1, batch_size=8, learning_rate=1e-30, seed=seed)
        )
    assert runs[0].train == runs[2].train != runs[1].train


@pytest.mark.parametrize("make", [AutoNormal, AutoDelta, AutoMultivariateNormal], ids=lambda make: make.__name__)
def test_autoguides_of_latents_per_datum_are_refused_on_mini_batches(make: Any) -> None:
    with pytest.raises(ValueError, match=r"has parameters of site 'z' for each datum.*batch_size=30"):
        fit((model, make(model)), torch.randn(30), batch_size=10)


def test_enumerated_sites_of_both_programs_train() -> None:
    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.locs = nn.Parameter(torch.tensor([-1.0, 1.0]))

        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                y = pyro.sample("y", dist.Categorical(torch.ones(2) / 2), infer={"enumerate": "parallel"})
                pyro.sample("x", dist.Normal(self.locs[y], 0.5), obs=x)

        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                logits = torch.stack([-x, x], -1)
                pyro.sample("y", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})

    x = torch.cat([torch.randn(50) - 3, torch.randn(50) + 3])
    module = Mixture()
    fit(module, x, objective=TraceEnum_ELBO(max_plate_nesting=1), epochs=100, learning_rate=0.1, batch_size=50, seed=0)
    torch.testing.assert_close(module.locs.detach(), torch.tensor([-3.0, 3.0]), atol=0.4, rtol=0)


def test_validation_noise_does_not_depend_on_data_of_a_small_seed() -> None:
    """Noise of seed 0 would equal the data, and the best slope on validation data would be -0.3."""
    torch.manual_seed(0)
    x = torch.randn(500)
    slopes = torch.linspace(-0.5, 1.0, 16)
    bounds = [fit((model, Encoder(float(s), 0.7)), x, x, epochs=1, learning_rate=1e-30).valid[0] for s in slopes]
    assert slopes[bounds.index(max(bounds))].item() == pytest.approx(0.5, abs=0.11)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_losses_of_half_precision_are_added_up_in_full(dtype: torch.dtype) -> None:
    """The losses of a batch and of an epoch exceed the range of float16."""

    class Means(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(784))

        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(self.loc, 1.0).to_event(1), obs=x)

        def guide(self, x: Tensor) -> None: ...

    x = torch.randn(600, 784)
    full = fit(Means(), x, x, epochs=1, learning_rate=1e-30).train[0]
    half = fit(Means().to(dtype), x.to(dtype), x.to(dtype), epochs=1, learning_rate=0.0, seed=0, objective=Trace_ELBO())
    assert half.train[0] == pytest.approx(full, rel=2e-3)
    assert half.valid[0] == pytest.approx(full, rel=2e-3)


def test_other_names_of_the_plate_in_the_guide_are_no_shared_latent() -> None:
    class Other(Encoder):
        def forward(self, x: Tensor) -> None:
            with pyro.plate("encoded", len(x)):
                pyro.sample("z", dist.Normal(self.slope * x, 0.8))

    assert len(fit((model, Other()), torch.randn(30), epochs=1, batch_size=10).train) == 1
