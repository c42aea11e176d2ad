"""Warnings of every function of the package name the line of the user."""

import ast
import linecache
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae._warnings import find_stack_level
from tests.conftest import small_vae

PACKAGE = Path(pv.__file__).parent


def test_every_warning_of_the_package_finds_its_level() -> None:
    found = 0
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("warnings.warn", "warn"):
                levels = [ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg == "stacklevel"]
                assert levels == ["find_stack_level()"], f"{path}:{node.lineno}"
                found += 1
    assert found


def in_module(name: str, call: Callable[[], Any]) -> Callable[[], Any]:
    """Return a function of a module with the given name, which makes a call."""
    namespace = {"__name__": name, "call": call}
    exec("def function():\n    return call()", namespace)
    return namespace["function"]  # type: ignore[no-any-return]


def give_warning(name: str) -> Callable[[], None]:
    namespace = {"__name__": name, "warnings": warnings, "find_stack_level": find_stack_level}
    exec("def warn():\n    warnings.warn('told', stacklevel=find_stack_level())", namespace)
    return namespace["warn"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "modules",
    [
        ["pyrovae.training.fit"],
        ["pyrovae.data.images", "pyrovae.data.download"],
        ["pyrovae.evaluation.estimators.ais", "contextlib", "pyrovae.isolation"],
        ["pyro.infer.svi", "pyrovae.models.vae", "torch.nn.modules.module", "pyrovae.likelihoods.discrete"],
        ["pyrovae.training.saving", "tqdm.std", "functools", "pyrovae.archives"],
    ],
    ids=lambda modules: modules[0],
)
def test_frames_of_libraries_are_skipped(modules: list[str]) -> None:
    function: Callable[[], Any] = give_warning(modules[-1])
    for name in reversed(modules[:-1]):
        function = in_module(name, function)
    with pytest.warns(UserWarning, match="told") as caught:
        function()
    assert caught[0].filename == __file__
    assert linecache.getline(__file__, caught[0].lineno).strip() == "function()"


@pytest.mark.parametrize("name", ["pyrovaes", "pyrography.draw", "torchmetrics", "mine.pyrovae"])
def test_modules_of_similar_names_are_the_users(name: str) -> None:
    with pytest.warns(UserWarning, match="told") as caught:
        in_module(name, give_warning("pyrovae.training.run"))()
    assert caught[0].filename == "<string>"


def test_a_stack_without_a_user_has_a_level() -> None:
    level = eval("find()", {"__name__": "pyrovae.x", "find": find_stack_level})
    assert level >= 1


def branching(x: Tensor) -> None:
    """A model that cannot be compiled, because a decision depends on a value."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        scale = 1.0 if (z > -1e9).all() else 2.0
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True).expand(*z.shape[:-1], 6), scale).to_event(1), obs=x)


def of_fit(folder: Path, x: Tensor) -> None:
    options = {"seed": 0, "progress": False, "checkpoint": folder}
    pv.fit(small_vae(), x, epochs=2, **options)
    newest = max(folder.glob("*.pt"))
    newest.write_bytes(newest.read_bytes()[:-9])
    pv.fit(small_vae(), x, epochs=2, **options)


def of_evaluate(_: Path, x: Tensor) -> None:
    pv.evaluation.evaluate(branching, small_vae().guide, x, 4, seed=0, compile=True, progress=False)


def of_tensorboard(folder: Path, x: Tensor) -> None:
    class Failing:
        def add_scalar(self, *_: Any) -> None:
            raise OSError("no space left")

        add_histogram = add_image = flush = add_scalar

    pv.fit(small_vae(), x, epochs=1, seed=0, progress=False, tensorboard=Failing())


@pytest.mark.parametrize("call", [of_fit, of_evaluate, of_tensorboard])
def test_entry_points_name_the_file_of_the_user(
    call: Callable[[Path, Tensor], None], tmp_path: Path, x: Tensor
) -> None:
    with pytest.warns(UserWarning, match="continues from|continues without") as caught:
        call(tmp_path, x)
    assert {warning.filename for warning in caught} == {__file__}
