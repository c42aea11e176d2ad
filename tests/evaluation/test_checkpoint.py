"""Folders of evaluations: calls that they refuse, and faults that they survive."""

import errno
import importlib
import os
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae import archives
from pyrovae.evaluation import checkpoint, provenance
from tests.conftest import small_vae
from tests.evaluation.interrupted import NUM_DATA, assert_same, evaluated, model_and_data
from tests.training.damaged import flip, malicious


def scaled_model(x: Tensor, *, scale: float = 1.0) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z, scale), obs=x)


def scaled_guide(x: Tensor, *, scale: float = 1.0) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.8 * scale))


def of_function(folder: Path, **options: Any) -> Any:
    x = torch.linspace(-1, 1, 12)
    options = {"seed": 0, "progress": False, "checkpoint": folder, **options}
    return pv.evaluation.evaluate(scaled_model, scaled_guide, x, 20, **options)


def of_nuts(folder: Path, **options: Any) -> Any:
    x = torch.linspace(-1, 1, 3)
    fixed = {
        "warmup_steps": 8,
        "num_chains": 1,
        "max_tree_depth": 3,
        "seed": 0,
        "progress": False,
        "checkpoint": folder,
    }
    return pv.evaluation.nuts(scaled_model, scaled_guide, x, 20, **{**fixed, **options})


def of_gaps(folder: Path, **options: Any) -> Any:
    x = torch.zeros(4, 6)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = small_vae()
    reference = pv.evaluation.evaluate(vae.model, vae.guide, x, 20, seed=0, progress=False)
    fixed = {"num_steps": 2, "num_samples": 10, "seed": 0, "progress": False, "checkpoint": folder}
    return pv.evaluation.inference_gaps(vae.model, vae.guide, x, reference, **fixed, **options)


def of_refined(folder: Path, **options: Any) -> Any:
    x = torch.linspace(-1, 1, 6)
    guide = pv.guides.Refined(scaled_model, scaled_guide, **options) if options else scaled_guide
    return pv.evaluation.evaluate(scaled_model, guide, x, 20, seed=0, progress=False, checkpoint=folder)


@pytest.mark.parametrize(
    ("call", "first", "second", "name"),
    [
        (of_function, {"kwargs": {"scale": 1.0}}, {"kwargs": {"scale": 2.0}}, "kwargs"),
        (of_function, {"kwargs": {"scale": torch.ones(())}}, {"kwargs": {"scale": torch.ones(()) * 2}}, "kwargs"),
        (of_function, {"k": [1, 5]}, {"k": [1, 10]}, "coords"),
        (of_function, {"seed": 0}, {"seed": 1}, "seed"),
        (of_function, {"vectorize": True}, {"vectorize": False}, "vectorize"),
        (of_function, {"binarization": "static"}, {"binarization": "dynamic"}, "binarization"),
        (of_nuts, {"max_tree_depth": 2}, {"max_tree_depth": 4}, "max_tree_depth"),
        (of_gaps, {"learning_rate": 0.1}, {"learning_rate": 0.01}, "learning_rate"),
        (of_gaps, {"num_particles": 10}, {"num_particles": 11}, "num_particles"),
        (of_refined, {}, {"score_guide": True}, "proposal"),
        (of_refined, {"score_guide": True}, {"score_guide": False}, "proposal"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_rows_of_another_option_are_refused_by_its_name(
    call: Callable[..., Any], first: dict[str, Any], second: dict[str, Any], name: str, tmp_path: Path
) -> None:
    call(tmp_path, **first)
    with pytest.raises(ValueError, match=f"holds another evaluation: its {name} is .*Pass another folder"):
        call(tmp_path, **second)
    call(tmp_path, **first)  # the rows are as they were


def with_other_weights(folder: Path) -> Any:
    vae, x = model_and_data()
    with torch.no_grad():
        next(vae.likelihood.parameters()).add_(0.1)
    return pv.evaluation.evaluate(vae.model, vae.guide, x, 50, seed=1, memory=2**13, progress=False, checkpoint=folder)


def with_other_data(folder: Path) -> Any:
    vae, x = model_and_data()
    return pv.evaluation.evaluate(
        vae.model, vae.guide, 1 - x, 50, seed=1, memory=2**13, progress=False, checkpoint=folder
    )


@pytest.mark.parametrize(
    ("call", "name"),
    [(with_other_data, "data_sha1"), (with_other_weights, "parameters_sha1")],
    ids=["data", "parameters"],
)
def test_rows_of_other_data_or_parameters_are_refused_by_name(
    call: Callable[[Path], Any], name: str, tmp_path: Path
) -> None:
    whole = evaluated(tmp_path)
    with pytest.raises(
        ValueError, match=f"holds another evaluation: its {name} is '[0-9a-f]+', but this call has '[0-9a-f]+'"
    ):
        call(tmp_path)
    assert_same(evaluated(tmp_path), whole)


@pytest.mark.parametrize("package", ["pyrovae", "torch", "pyro-ppl"])
def test_rows_of_other_versions_are_refused(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = provenance.version
    evaluated(tmp_path)
    monkeypatch.setattr(provenance, "version", lambda name: "99.0" if name == package else own(name))
    with pytest.raises(ValueError, match=f"its {package}_version is '.*', but this call has '99.0'"):
        evaluated(tmp_path)


def test_a_folder_may_move_and_a_bar_may_be_shown(tmp_path: Path) -> None:
    whole = evaluated(tmp_path / "rows")
    moved = (tmp_path / "rows").rename(tmp_path / "elsewhere")
    assert_same(evaluated(moved, progress=True), whole)


@pytest.mark.parametrize("call", [of_nuts, of_gaps, of_refined], ids=lambda call: call.__name__)
def test_a_second_call_reads_the_result(call: Callable[..., Any], tmp_path: Path) -> None:
    assert_same(call(tmp_path), call(tmp_path))


def test_divergences_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("pyrovae.evaluation.estimators.nuts")
    own = module._chain
    monkeypatch.setattr(module, "_chain", lambda *args: (own(*args)[0], 3))
    first, again = of_nuts(tmp_path), of_nuts(tmp_path)
    assert first.attrs["divergences"] == 3
    assert "divergences" not in first.data_vars
    assert_same(again, first)


@pytest.mark.parametrize(
    "damage",
    [
        *(lambda content, _, at=at: flip(content, at) for at in (0.0, 0.3, 0.5, 0.8, 1.0)),
        *(lambda content, _, at=at: content[: int(at * len(content))] for at in (0.0, 0.01, 0.5, 0.99)),
        lambda content, folder: malicious(folder / "run by it"),
    ],
)
def test_a_damaged_file_is_refused(damage: Callable[[bytes, Path], bytes], tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    whole, path = evaluated(folder), folder / "rows.pt"
    damaged = damage(path.read_bytes(), tmp_path)
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"rows.pt' .*Remove the file"):
        evaluated(folder)
    assert path.read_bytes() == damaged
    assert not (tmp_path / "run by it").exists()
    path.unlink()
    assert_same(evaluated(folder), whole)


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize(
    "number",
    [errno.ENOSPC, *(pytest.param(number, marks=pytest.mark.slow) for number in (errno.EACCES, errno.EIO))],
    ids=errno.errorcode.get,
)
def test_a_write_that_fails_costs_no_row(
    call: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(checkpoint, "SAVE_SECONDS", 0.0)
    whole = evaluated(None)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.warns(UserWarning, match=rf"cannot be written \({os.strerror(number)}\).*continues") as told:
            assert_same(evaluated(tmp_path), whole)
    assert len(told) == 1
    assert_same(evaluated(tmp_path), whole)


def test_a_disk_that_is_full_or_read_only(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SAVE_SECONDS", 0.0)
    whole, ballast = evaluated(None), small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    with pytest.warns(UserWarning, match="No space left on device"):
        assert_same(evaluated(small_disk / "run"), whole)
    ballast.unlink()
    assert_same(evaluated(small_disk / "run"), whole)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert_same(evaluated(small_disk / "run"), whole)  # all rows are in the folder
    with pytest.raises(OSError, match=r"cannot be stored .* \(Read-only file system\)\. Pass a folder"):
        evaluated(small_disk / "another")


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    evaluated("~/rows")  # type: ignore[arg-type]
    assert (tmp_path / "rows" / "rows.pt").exists()
    for path in ("", " "):
        with pytest.raises(ValueError, match="checkpoint is an empty path"):
            evaluated(path)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="checkpoint is an empty path"):
            evaluated(path, seed=None)  # type: ignore[arg-type]
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot be stored in the folder .*file/rows' \(Not a directory\)"):
        evaluated(tmp_path / "file" / "rows")


def test_draws_of_global_latents_without_a_seed(tmp_path: Path) -> None:
    def model(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(w + z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    options: dict[str, Any] = {"num_draws": 2, "progress": False, "checkpoint": tmp_path}
    first, again = (pv.evaluation.evaluate_globals(model, guide, torch.ones(5), 20, **options) for _ in range(2))
    assert_same(again, first)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    pv.save(small_vae(), tmp_path / "rows.pt")
    with pytest.raises(ValueError, match="holds another evaluation"):
        evaluated(tmp_path)
    archives.write(tmp_path / "rows.pt", [1, 2])
    with pytest.raises(ValueError, match=r"is not a file of an evaluation\. Remove the file"):
        evaluated(tmp_path)


@pytest.mark.parametrize("seconds", [0.0, 1000.0])
def test_rows_are_written_at_intervals(seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []

    def write(path: Path, content: Any) -> None:
        written.append(len(content["columns"]["log_likelihood"]))

    monkeypatch.setattr(checkpoint, "SAVE_SECONDS", seconds)
    monkeypatch.setattr(archives, "write", write)
    evaluated(tmp_path)
    assert written == sorted(written)
    assert written[-1] == NUM_DATA
    assert (len(written) == 1) == (seconds > 0)
