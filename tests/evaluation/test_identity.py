"""Stored rows and references belong to one program with one set of arguments and options."""

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import archives
from pyrovae.evaluation.descriptions import plain
from pyrovae.evaluation.identity import contents, of_objects, of_programs

E = pv.evaluation
X = torch.tensor([1.0, 2.0, 3.0])


def model(x: Tensor, scale: float = 1.0, f: Any = None) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, scale), obs=x)


def guide(x: Tensor, scale: float = 1.0, f: Any = None) -> None:
    precision = 1 + scale**-2
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / scale**2 / precision, precision**-0.5))


def log_p(scale: float) -> np.ndarray:
    found: np.ndarray = dist.Normal(0.0, (1 + scale**2) ** 0.5).log_prob(X).numpy()
    return found


class Scaled:
    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __call__(self, x: Tensor) -> Tensor:
        return self.scale * x

    def method(self, x: Tensor) -> Tensor:
        return self.scale * x


@dataclass(frozen=True)
class Config:
    scale: float


def scaled(scale: float) -> Callable[[Tensor], Tensor]:
    return lambda x: scale * x


def with_default(scale: float) -> Callable[[Tensor], Tensor]:
    def f(x: Tensor, factor: float = scale) -> Tensor:
        return factor * x

    return f


def with_objects(*indices: int) -> Any:
    objects = Scaled(1.0), Scaled(2.0)
    return SimpleNamespace(**{f"object {i}": objects[index] for i, index in enumerate(indices)})


PAIRS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "number": (lambda: 1.0, lambda: 2.0),
    "lambda": (lambda: lambda x: x, lambda: lambda x: 2 * x),
    "closure": (lambda: scaled(1.0), lambda: scaled(2.0)),
    "default value": (lambda: with_default(1.0), lambda: with_default(2.0)),
    "partial": (lambda: functools.partial(torch.mul, other=1), lambda: functools.partial(torch.mul, other=2)),
    "callable object": (lambda: Scaled(1.0), lambda: Scaled(2.0)),
    "bound method": (lambda: Scaled(1.0).method, lambda: Scaled(2.0).method),
    "data class": (lambda: Config(1.0), lambda: Config(2.0)),
    "namespace": (lambda: SimpleNamespace(scale=1.0), lambda: SimpleNamespace(scale=2.0)),
    "object of the standard library": (lambda: Path("a"), lambda: Path("b")),
    "function of torch": (lambda: torch.exp, lambda: torch.expm1),
    "function of torch in Python": (lambda: nn.functional.relu, lambda: nn.functional.silu),
    "class of torch": (lambda: nn.Tanh, lambda: nn.Sigmoid),
    "module": (lambda: nn.Tanh(), lambda: nn.Sigmoid()),
    "parameter": (lambda: nn.PReLU(init=0.1), lambda: nn.PReLU(init=0.2)),
    "distribution": (lambda: dist.Normal(0.0, 1.0), lambda: dist.Laplace(0.0, 1.0)),
    "tensor": (lambda: torch.ones(2), lambda: torch.zeros(2)),
    "sparse tensor": (lambda: torch.eye(2).to_sparse(), lambda: 2 * torch.eye(2).to_sparse()),
    "array of text": (lambda: np.array(["a"]), lambda: np.array(["b"])),
    "set": (lambda: {"a", "b"}, lambda: {"a", "c"}),
    "dtype": (lambda: torch.float32, lambda: torch.float64),
    "list": (lambda: [1, scaled(1.0)], lambda: [1, scaled(2.0)]),
    "shared object": (lambda: with_objects(0, 1, 0), lambda: with_objects(0, 1, 1)),
    "cached function": (lambda: functools.lru_cache(scaled(1.0)), lambda: functools.lru_cache(scaled(2.0))),
}


@pytest.mark.parametrize("name", PAIRS)
def test_arguments_are_described_by_their_content(name: str) -> None:
    first, second = PAIRS[name]
    assert plain(first(), "f") == plain(first(), "f")
    assert plain(first(), "f") != plain(second(), "f")


@pytest.mark.parametrize("name", ["lambda", "callable object", "namespace", "module"])
@pytest.mark.parametrize("place", ["kwargs", "tuple"])
def test_a_folder_refuses_another_argument(name: str, place: str, tmp_path: Path) -> None:
    first, second = PAIRS[name]

    def evaluate(f: Any) -> Any:
        options: dict[str, Any] = {"seed": 0, "checkpoint": tmp_path}
        if place == "kwargs":
            return E.evaluate(model, guide, X, 10, kwargs={"f": f}, **options)
        return E.evaluate(model, guide, (X, 1.0, f), 10, **options)

    rows = evaluate(first())
    assert evaluate(first()).log_likelihood.equals(rows.log_likelihood)
    what = "kwargs" if place == "kwargs" else r"x\[2\]"
    with pytest.raises(ValueError, match=f"holds another evaluation: its {what} is .*Pass another folder"):
        evaluate(second())


def test_rows_of_another_number_in_the_tuple_are_refused(tmp_path: Path) -> None:
    for scale in (1.0, 0.5):
        folder = tmp_path / str(scale)
        found = E.evaluate(model, guide, (X, scale), 10, seed=0, checkpoint=folder)
        np.testing.assert_allclose(found.log_likelihood, log_p(scale), atol=1e-5)
    with pytest.raises(ValueError, match=r"its x\[1\] is 0\.5, but this call has 1\.0"):
        E.evaluate(model, guide, (X, 1.0), 10, seed=0, checkpoint=tmp_path / "0.5")


@pytest.mark.parametrize("name", ["lambda", "closure", "callable object", "bound method"])
def test_a_folder_refuses_another_statistic(name: str, tmp_path: Path) -> None:
    first, second = (make() for make in PAIRS[name])
    check = functools.partial(E.posterior_predictive_check, model, guide, X, seed=0, checkpoint=tmp_path)
    np.testing.assert_array_equal(check(first).observed, X)
    np.testing.assert_array_equal(check(PAIRS[name][0]()).observed, X)
    with pytest.raises(ValueError, match=r"its statistic is .*, but this call has"):
        check(second)


GAPS: dict[str, Any] = {"num_steps": 2, "num_samples": 10, "seed": 0}


@pytest.mark.parametrize("name", ["number", "lambda", "callable object", "namespace"])
@pytest.mark.parametrize("place", ["kwargs", "tuple"])
def test_a_reference_of_another_argument_is_refused(name: str, place: str) -> None:
    def data(f: Any) -> tuple[Any, dict[str, Any]]:
        return (X, {"kwargs": {"f": f, "scale": 0.5}}) if place == "kwargs" else ((X, 0.5, f), {})

    first, second = PAIRS[name]
    x, options = data(first())
    reference = E.evaluate(model, guide, x, 10, seed=0, **options)
    x, options = data(first())
    options["kwargs"] = dict(reversed(options.get("kwargs", {}).items()))  # the order has no meaning
    gaps = E.inference_gaps(model, guide, x, reference, **GAPS, **options)
    np.testing.assert_allclose(gaps.inference_gap, 0, atol=1e-5)
    x, options = data(second())
    with pytest.raises(ValueError, match="the reference is a result for other keyword arguments, or other elements"):
        E.inference_gaps(model, guide, x, reference, **GAPS, **options)


def test_a_reference_without_arguments_is_refused_if_there_are_arguments() -> None:
    reference = E.evaluate(model, guide, X, 10, seed=0)
    with pytest.raises(ValueError, match="the reference records none"):
        E.inference_gaps(model, guide, (X, 0.3), reference, **GAPS)
    with pytest.raises(ValueError, match="the reference records none"):
        E.inference_gaps(model, guide, X, reference, kwargs={"scale": 0.3}, **GAPS)


@pytest.mark.parametrize("kind", ["generator", "file"])
def test_an_argument_that_cannot_be_described_is_refused(kind: str, tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        f: Any = file if kind == "file" else (i for i in ())
        options: dict[str, Any] = {"seed": 0, "kwargs": {"f": f}}
        reference = E.evaluate(model, guide, X, 10, **options)  # a call without stored rows accepts any argument
        assert reference.attrs["arguments_sha1"] == "not known"
        message = r"kwargs\['f'\] is a \w+, and the content of kwargs\['f'\] cannot be compared between calls"
        with pytest.raises(ValueError, match=message):
            E.evaluate(model, guide, X, 10, checkpoint=tmp_path, **options)
        with pytest.raises(ValueError, match=message):
            E.inference_gaps(model, guide, X, reference, **{**GAPS, **options})


class Locked(Scaled):
    def __init__(self, scale: float) -> None:
        super().__init__(scale)
        self.lock = threading.Lock()


def test_a_lock_does_not_matter() -> None:
    assert plain(Locked(1.0), "f") == plain(Locked(1.0), "f") != plain(Locked(2.0), "f")


def test_a_flow_that_has_run_is_the_same_argument() -> None:
    flow = dist.transforms.Planar(2)
    before = plain(flow, "f")
    flow(torch.ones(3, 2))
    assert plain(flow, "f") == before


def acting(f: Any) -> Any:
    def program(x: Tensor) -> None:
        assert f is not None
        model(x)

    return program


OBJECTS = "namespace", "function of torch", "function of torch in Python", "class of torch", "module", "distribution"


@pytest.mark.parametrize("name", OBJECTS)
def test_a_program_with_another_installed_object_is_another_program(name: str, tmp_path: Path) -> None:
    first, second = (acting(make()) for make in PAIRS[name])
    rows = E.evaluate(first, guide, X, 10, seed=0, checkpoint=tmp_path)
    again = E.evaluate(acting(PAIRS[name][0]()), guide, X, 10, seed=0, checkpoint=tmp_path)
    assert again.log_likelihood.equals(rows.log_likelihood)
    E.inference_gaps(first, guide, X, rows, **GAPS)
    with pytest.raises(ValueError, match=r"holds an evaluation of another program: its .*model"):
        E.evaluate(second, guide, X, 10, seed=0, checkpoint=tmp_path)
    with pytest.raises(ValueError, match=r"other functions, classes or objects in the programs|another model"):
        E.inference_gaps(second, guide, X, rows, **GAPS)


def test_the_order_of_activations_is_part_of_the_program() -> None:
    def described(*activations: type[nn.Module]) -> dict[str, str]:
        return contents({"model": nn.Sequential(*(activation() for activation in activations))}, {})

    first, second = described(nn.Tanh, nn.Sigmoid, nn.Tanh), described(nn.Tanh, nn.Sigmoid, nn.Sigmoid)
    assert of_programs(first) == of_programs(second)  # results of earlier versions keep their checksum
    assert of_objects(first) != of_objects(second)


def test_results_and_folders_of_earlier_versions_are_accepted(tmp_path: Path) -> None:
    rows = E.evaluate(model, guide, X, 10, seed=0, checkpoint=tmp_path)
    assert rows.attrs["data_sha1"] == "45c8fef583bd847ad3fe892a275854b45518e099"
    for name in ("objects_sha1", "arguments_sha1"):
        del rows.attrs[name]
    E.inference_gaps(model, guide, X, rows, **GAPS)
    kept = archives.read(tmp_path / "rows.pt")
    del kept["description"]["objects"]
    archives.write(tmp_path / "rows.pt", kept)
    E.evaluate(model, guide, X, 10, seed=0, checkpoint=tmp_path)


def test_models_with_different_arguments_are_comparable() -> None:
    results = {scale: E.evaluate(model, guide, X, 10, seed=0, kwargs={"scale": scale}) for scale in (1.0, 0.5)}
    results |= {2.0: E.evaluate(model, guide, (X, 2.0), 10, seed=0)}
    table = E.compare({str(scale): result for scale, result in results.items()})
    for scale in results:
        assert table.log_likelihood[str(scale)] == pytest.approx(log_p(scale).mean(), abs=1e-5)
