"""A compiled run notices that a number or a branch, which its graph keeps, has changed in Python."""

import itertools
import warnings
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae._compilation.graphs import Graph
from pyrovae.training.gradients import choice, comparison
from tests.conftest import interpret

pytestmark = pytest.mark.usefixtures("interpreted")


class Programs(nn.Module):
    """A normal model with a scale and a branch in Python, and a call counter outside of any module."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder, self.encoder = nn.Linear(2, 6), nn.Linear(6, 2)
        self.values: dict[str, Any] = {"scale": 1.0, "is_heavy": False, "calls": 0, "counts": False}

    def model(self, x: Tensor) -> None:
        values = self.values
        values["calls"] += values["counts"]
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0 + 0.1 * values["calls"]).to_event(1))
            family: Any = dist.Laplace if values["is_heavy"] else dist.Normal
            pyro.sample("x", family(self.decoder(z), values["scale"]).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 0.5).to_event(1))


def trained(after: dict[int, tuple[str, Any]], **options: Any) -> tuple[Programs, Any]:
    """Train for six epochs of 25 steps and change values after epochs."""
    torch.manual_seed(0)
    module = Programs()

    def change(history: Any) -> None:
        if (epoch := len(history.train)) in after:
            name, value = after[epoch]
            module.values[name] = value

    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
    shared: Any = {"epochs": 6, "batch_size": 2, "seed": 0, "progress": False, "callback": change}
    return module, pv.fit(module, x, **shared, **options)


@pytest.mark.parametrize("change", [("scale", 0.7), ("scale", 1.001), ("is_heavy", True)])
def test_a_changed_value_ends_compilation_before_it_gives_a_wrong_loss(change: tuple[str, Any]) -> None:
    _, expected = trained({2: change}, compile=False)
    with pytest.warns(UserWarning, match="fit continues without compilation: a number or a branch .*has changed"):
        _, found = trained({2: change}, compile=True)
    assert found.train == pytest.approx(expected.train, rel=1e-4)
    assert abs(found.train[-1] - trained({}, compile=False)[1].train[-1]) > 1e-3


def test_a_number_that_changes_at_every_call_is_noticed() -> None:
    with pytest.warns(UserWarning, match="fit continues without compilation: a number or a branch .*has changed"):
        trained({2: ("counts", True)}, compile=True)


def test_values_that_stay_give_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained({2: ("unused", 1.0)}, compile=True)


def test_numbers_that_are_drawn_by_numpy_are_noticed_at_once() -> None:
    class Noisy(Programs):
        def model(self, x: Tensor) -> None:
            self.values["scale"] = 1.0 + np.random.default_rng().random()  # a generator that no seed restores
            super().model(x)

    with pytest.warns(UserWarning, match=r"Up to 0 steps before"):
        pv.fit(Noisy(), torch.zeros(4, 6), epochs=2, compile=True, progress=False)


def test_the_message_names_both_losses_and_the_steps() -> None:
    steps = 24  # those of an epoch, whose first step was compared
    message = rf"The recorded loss is [\d.]+, and the programs now give [\d.]+\. Up to {steps} steps before this one"
    with pytest.warns(UserWarning, match=message):
        trained({2: ("scale", 0.7)}, compile=True)


def test_a_difference_by_rounding_is_not_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs are recorded again, and the graph of the same operations is kept."""
    monkeypatch.setattr(comparison, "_difference", lambda *_: 0.04)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, found = trained({}, compile=True)
    assert found.train == pytest.approx(trained({}, compile=False)[1].train, rel=1e-4)


def test_svi_compares_one_call_in_a_hundred() -> None:
    torch.manual_seed(0)
    module, x = Programs(), torch.zeros(2, 6)
    svi = pv.SVI(module.model, module.guide, pyro.optim.Adam({"lr": 1e-3}), pyro.infer.Trace_ELBO(), compile=True)
    for _ in range(50):
        svi.step(x)
    module.values["scale"] = 0.1
    with pytest.warns(UserWarning, match="SVI continues without compilation: a number or a branch"):
        losses = [svi.step(x) for _ in range(60)]
    assert losses[-1] > 2 * losses[0]


@pytest.mark.parametrize(("least", "is_compiled"), [(20, True), (21, False)])
def test_long_runs_are_compiled_by_default(
    least: int, is_compiled: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(choice, "WORTH_STEPS", least)
    x = torch.zeros(8, 6)
    module = Programs()
    history = pv.fit(module, x, epochs=10, batch_size=4, progress=False, seed=0)
    assert (history.compile_seconds > 0) == is_compiled


def test_a_long_run_that_cannot_be_compiled_does_not_warn(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Branching(Programs):
        def model(self, x: Tensor) -> None:
            if x.sum() > 1e9:
                raise AssertionError
            super().model(x)

    monkeypatch.setattr(choice, "WORTH_STEPS", 1)
    with warnings.catch_warnings(), caplog.at_level("INFO", logger="pyrovae"):
        warnings.simplefilter("error")
        pv.fit(Branching(), torch.zeros(8, 6), epochs=2, progress=False)
    assert "fit continues without compilation: a decision in Python depends on the value of a tensor" in caplog.text


def with_wrong_losses(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let graphs return losses that are 20% too large in the first ``count`` calls."""
    calls = itertools.count()

    def compile_wrongly(graph: Graph) -> Any:
        run = interpret(graph)

        def wrong(*tensors: Tensor) -> Any:
            loss, *gradients = run(*tensors)
            return [1.2 * loss if next(calls) < count else loss, *gradients]

        return wrong

    monkeypatch.setattr(Graph, "compile", compile_wrongly)


def test_a_compiler_that_changes_the_computation_ends_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    with_wrong_losses(monkeypatch, 10**6)
    with pytest.warns(UserWarning, match=r"for the same batch and noise, the compiled loss is .* compile=False\."):
        _, found = trained({}, compile=True)
    assert found.train[1:] == pytest.approx(trained({}, compile=False)[1].train[1:], rel=1e-4)


def test_a_single_large_difference_is_rounding_of_a_random_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    with_wrong_losses(monkeypatch, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained({}, compile=True)
