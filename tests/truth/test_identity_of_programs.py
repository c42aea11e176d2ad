"""A result of a program whose numbers or code have changed is refused by a folder and as a reference."""

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrovae as pv
from tests.truth.programs import Program, check_close, normal_guide, normal_model

E = pv.evaluation
X = torch.randn(6, generator=torch.Generator().manual_seed(0))

SCALE = 0.5
SETTINGS = {"scales": [1.0, 0.5]}
WEIGHTS = np.array([0.5, 1.0])


class Config:
    scale = 0.5


class Nested:
    config = Config


class Slotted:
    __slots__ = ("scale",)

    def __init__(self, scale: float) -> None:
        self.scale = scale


SLOTTED = Slotted(0.5)
MODULE = types.ModuleType("settings_of_a_user")
MODULE.scale = 0.5  # type: ignore[attr-defined]


def helper() -> float:
    return 0.5


def indirect() -> float:
    return helper()


def with_scale(scale: Callable[[], Any]) -> Program:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, scale()), obs=x)

    return model


class Owner:
    def __init__(self, scale: float) -> None:
        self._scale = scale

    def __call__(self, x: Tensor) -> None:
        with_scale(lambda: self._scale)(x)

    def model(self, x: Tensor) -> None:
        self(x)


class Network(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> None:
        with_scale(lambda: self.scale)(x)


OWNER, NETWORK = Owner(0.5), Network(0.5)
HOLDER = {"network": nn.Linear(1, 1)}

PROGRAMS: dict[str, tuple[Program, Callable[[pytest.MonkeyPatch], None]]] = {
    "class attribute": (with_scale(lambda: Config.scale), lambda m: m.setattr(Config, "scale", 1.0)),
    "attribute of an attribute": (with_scale(lambda: Nested.config.scale), lambda m: m.setattr(Config, "scale", 1.0)),
    "global": (with_scale(lambda: SCALE), lambda m: m.setitem(globals(), "SCALE", 1.0)),
    "container": (with_scale(lambda: SETTINGS["scales"][1]), lambda m: m.setitem(SETTINGS, "scales", [1.0, 1.0])),
    "array": (with_scale(lambda: float(WEIGHTS[0])), lambda m: m.setitem(globals(), "WEIGHTS", np.ones(2))),
    "slot": (with_scale(lambda: SLOTTED.scale), lambda m: m.setattr(SLOTTED, "scale", 1.0)),
    "python module": (with_scale(lambda: MODULE.scale), lambda m: m.setattr(MODULE, "scale", 1.0)),
    "object": (OWNER, lambda m: m.setattr(OWNER, "_scale", 1.0)),
    "bound method": (OWNER.model, lambda m: m.setattr(OWNER, "_scale", 1.0)),
    "module attribute": (NETWORK, lambda m: m.setattr(NETWORK, "scale", 1.0)),
    "helper": (with_scale(lambda: helper()), lambda m: m.setitem(globals(), "helper", lambda: 1.0)),
    "helper of a helper": (with_scale(indirect), lambda m: m.setattr(helper, "__code__", (lambda: 1.0).__code__)),
    "module that is not called": (
        with_scale(lambda: HOLDER["network"].weight[0, 0].abs() + 0.5),
        lambda m: m.setitem(HOLDER, "network", nn.Linear(1, 1)),
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_folder_refuses_a_changed_program(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, change = PROGRAMS[name]
    first = E.evaluate(model, normal_guide, X, 100, seed=0, checkpoint=tmp_path)
    again = E.evaluate(model, normal_guide, X, 100, seed=0, checkpoint=tmp_path)
    assert again.log_likelihood.equals(first.log_likelihood)
    change(monkeypatch)
    with pytest.raises(ValueError, match=r"holds an evaluation of another program: its .*model"):
        E.evaluate(model, normal_guide, X, 100, seed=0, checkpoint=tmp_path)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_reference_of_a_changed_program_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, change = PROGRAMS[name]
    reference = E.evaluate(model, normal_guide, X, 100, seed=0)
    E.inference_gaps(model, normal_guide, X, reference, num_steps=2, num_samples=2, seed=0)
    change(monkeypatch)
    with pytest.raises(ValueError, match="other parameters"):
        E.inference_gaps(model, normal_guide, X, reference, num_steps=2, num_samples=2, seed=0)


def edited(literal: str) -> Program:
    """A program whose code was edited: the same names and another literal."""
    source = (
        "def model(x):\n"
        "    with pyro.plate('data', len(x)):\n"
        "        z = pyro.sample('z', dist.Normal(0.0, 1.0))\n"
        f"        pyro.sample('x', dist.Normal(z, {literal}), obs=x)\n"
    )
    names: dict[str, Any] = {"pyro": pyro, "dist": dist, "__name__": "program_of_a_user"}
    exec(source, names)
    model: Program = names["model"]
    return model


@pytest.mark.parametrize("literal", ["1.0", "0.5 + 0.25", "0.5 * z.cosh()"])
def test_edited_code_is_another_program(literal: str, tmp_path: Path) -> None:
    E.evaluate(edited("0.5"), normal_guide, X, 100, seed=0, checkpoint=tmp_path)
    E.evaluate(edited("0.5"), normal_guide, X, 100, seed=0, checkpoint=tmp_path)  # the same code, run anew
    with pytest.raises(ValueError, match="its code of model"):
        E.evaluate(edited(literal), normal_guide, X, 100, seed=0, checkpoint=tmp_path)


class Counting:
    """A program that stores values that do not affect its density."""

    def __init__(self) -> None:
        self.calls, self.cache = 0, dict[int, Tensor]()

    def __call__(self, x: Tensor) -> None:
        self.calls += 1
        self.cache[len(x)] = x
        normal_model(x)


def test_a_counter_and_a_cache_do_not_make_another_program(tmp_path: Path) -> None:
    model = Counting()
    for _ in range(3):
        E.evaluate(model, normal_guide, X, 100, seed=0, checkpoint=tmp_path)
    E.evaluate(Counting(), normal_guide, X, 100, seed=0, checkpoint=tmp_path)


def test_the_same_vae_in_another_object_is_the_same_program(tmp_path: Path) -> None:
    def vae() -> pv.VAE:
        torch.manual_seed(0)
        return pv.VAE(
            pv.priors.StandardNormal(2),
            pv.likelihoods.Normal(pv.networks.mlp(2, 8, 4)),
            pv.posteriors.DiagonalNormal(pv.networks.mlp(4, 2 * 2)),
        )

    x = torch.randn(5, 4)
    results = [E.evaluate(v.model, v.guide, x, 100, seed=0, checkpoint=tmp_path) for v in (vae(), vae(), vae().train())]
    assert len({each.attrs["programs_sha1"] for each in results}) == 1
    other = vae()
    other.likelihood.network[1] = nn.LeakyReLU(0.3)
    assert E.evaluate(other.model, other.guide, x, 100, seed=0).attrs["programs_sha1"] != results[0].programs_sha1


def observing(*names: str) -> Program:
    def model(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            for name in names:
                pyro.sample(name, dist.Normal(0.0, 1.0), obs=y)

    return model


@pytest.mark.parametrize("names", [("y",), ("label",), ("y", "again")])
def test_other_observed_sites_are_named(names: tuple[str, ...]) -> None:
    def guide(x: Tensor, y: Tensor) -> None:
        normal_guide(x)

    data = X, X.flip(0)
    results = {
        "conditional": E.evaluate(observing(), guide, data, 500, seed=0),
        "joint": E.evaluate(observing(*names), guide, data, 500, seed=0),
    }
    assert results["joint"].attrs["observed_sites"] == ", ".join(sorted(["x", *names]))
    right = stats_of(data[0]) + len(names) * dist.Normal(0.0, 1.0).log_prob(data[1]).numpy()
    check_close(results["joint"], right)
    with pytest.warns(UserWarning, match=f"'joint' observes '{results['joint'].attrs['observed_sites']}'"):
        E.compare(results)


def stats_of(x: Tensor) -> np.ndarray:
    return dist.Normal(0.0, 2**0.5).log_prob(x).numpy()
