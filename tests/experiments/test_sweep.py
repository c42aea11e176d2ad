"""Sweeps: cells are computed once, stored, repeated after a failure, and equal in order and on Ray."""

import importlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

import pyrovae as pv
from experiments import _cells as cells_module
from experiments import _seeds as seeds_module
from experiments import sweep
from experiments._cells import Executor, fill, in_order, path_of
from experiments._ray import is_installed, on_ray
from tests.cells import compute

TOY: dict[str, Any] = {
    "data": "digits", "hidden": (16,), "latent": 2, "epochs": 1, "num_samples": 60, "test_size": 15,
    "priors": ("StandardNormal", "VampPrior"), "objectives": ("ELBO",), "repeats": 2,
    "kl_warmup": 0,
}  # fmt: skip
SMALLEST = [
    *("--data", "digits", "--hidden", "16", "--latent", "2", "--epochs", "1", "--num-samples", "60"),
    *("--test-size", "15", "--repeats", "1", "--kl-warmup", "0"),
    *("--priors", "StandardNormal", "--likelihoods", "Bernoulli", "--objectives", "ELBO"),
]
needs_ray = pytest.mark.skipif(not is_installed(), reason="Ray is not installed; uv sync --group sweep installs it")


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """One Ray instance with two cores for all tests, because its start takes seconds."""
    with importlib.import_module("experiments._ray")._connected(None, 2):
        yield


@pytest.fixture(params=["in order", pytest.param("on Ray", marks=[needs_ray, pytest.mark.slow])])
def execute(request: pytest.FixtureRequest) -> Executor:
    if request.param == "in order":
        return in_order
    request.getfixturevalue("local_ray")
    return on_ray()


def squares(folder: Path, **others: dict[str, int]) -> dict[str, dict[str, Any]]:
    """Return the settings of four cells."""
    names = ("zero", "one", "two", "three")
    return {name: {"x": i, "log": str(folder / f"{name}.log"), **others.get(name, {})} for i, name in enumerate(names)}


def attempts(folder: Path) -> dict[str, int]:
    return {path.stem: len(path.read_text().splitlines()) for path in folder.glob("*.log")}


def test_cells_are_kept_and_only_missing_ones_computed(tmp_path: Path, execute: Executor) -> None:
    cells = squares(tmp_path)
    first = fill(tmp_path / "cells", dict(list(cells.items())[:2]), compute, shared=np.ones(3), execute=execute)
    second = fill(tmp_path / "cells", cells, compute, shared=np.ones(3), execute=execute)
    assert (first.num_kept, second.num_kept) == (0, 2)
    assert attempts(tmp_path) == dict.fromkeys(cells, 1)
    assert {name: result.square.values.tolist() for name, result in second.results.items()} == {
        name: [i**2] * 3 for i, name in enumerate(cells)
    }
    assert list(second.results) == list(cells)  # the order of the cells, not that of completion
    assert len(list((tmp_path / "cells").iterdir())) == 4


def test_a_cell_that_fails_is_tried_again_and_reported(
    tmp_path: Path, execute: Executor, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = squares(tmp_path, one={"failures": 1}, three={"failures": 99})
    filled = fill(tmp_path / "cells", cells, compute, shared=np.ones(3), execute=execute, retries=2)
    assert attempts(tmp_path) == {"zero": 1, "one": 2, "two": 1, "three": 3}
    assert list(filled.results) == ["zero", "one", "two"]
    assert filled.failures == {"one": ["ValueError: no luck with 1"], "three": ["ValueError: no luck with 3"] * 3}
    assert str(filled).splitlines() == [
        "4 cells: 0 kept from before, 3 computed (1 of them in a later attempt), 1 failed",
        "three: failed 3 times, most recently with ValueError: no luck with 3",
    ]
    assert "attempt 1 of 3 to compute one failed: ValueError: no luck with 1" in capsys.readouterr().out
    assert filled.results["one"].attrs["attempts"] == 2
    again = fill(tmp_path / "cells", cells, compute, shared=np.ones(3), execute=execute, retries=0)
    assert again.num_kept == 3
    assert attempts(tmp_path) == {"zero": 1, "one": 2, "two": 1, "three": 4}


@pytest.mark.slow
@needs_ray
@pytest.mark.usefixtures("local_ray")
def test_a_cell_whose_worker_is_killed_is_tried_again_and_reported(tmp_path: Path) -> None:
    cells = squares(tmp_path, one={"kills": 1}, three={"kills": 99})
    filled = fill(tmp_path / "cells", cells, compute, shared=np.ones(3), execute=on_ray(), retries=1)
    assert attempts(tmp_path) == {"zero": 1, "one": 2, "two": 1, "three": 2}
    assert list(filled.results) == ["zero", "one", "two"]
    assert {name: len(reasons) for name, reasons in filled.failures.items()} == {"one": 1, "three": 2}
    assert all(why.startswith("WorkerCrashedError") for reasons in filled.failures.values() for why in reasons)


def test_an_interrupted_sweep_resumes(tmp_path: Path) -> None:
    cells = squares(tmp_path)

    def interrupted(settings: Any, shared: Any) -> xr.Dataset:
        if settings["x"] == 2:
            raise KeyboardInterrupt
        return compute(settings, shared)

    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "cells", cells, interrupted, shared=np.ones(3))
    assert fill(tmp_path / "cells", cells, compute, shared=np.ones(3)).num_kept == 2
    assert attempts(tmp_path) == dict.fromkeys(cells, 1)


def test_an_interrupted_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    amid_writing = []

    def torn(_descriptor: int) -> None:
        amid_writing.extend(tmp_path.glob("cells/*.nc"))  # files that a killed process would leave
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", torn)
        with pytest.raises(OSError, match="no space left"):
            fill(tmp_path / "cells", squares(tmp_path), compute, shared=np.ones(3))
    assert not amid_writing
    assert not list((tmp_path / "cells").iterdir())


def test_a_damaged_file_is_computed_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = squares(tmp_path)
    fill(tmp_path / "cells", cells, compute, shared=np.ones(3))
    path = path_of(tmp_path / "cells", "two", cells["two"])
    path.write_bytes(path.read_bytes()[:1000])
    filled = fill(tmp_path / "cells", cells, compute, shared=np.ones(3))
    assert filled.num_kept == 3
    assert filled.results["two"].square.values.tolist() == [4] * 3
    assert f"{path} cannot be read, so the cell is computed again" in capsys.readouterr().out
    assert cells_module.read(path) is not None


def test_a_cell_is_identified_by_all_of_its_settings(tmp_path: Path) -> None:
    options = sweep.Options(**TOY)
    model = ("StandardNormal", "Bernoulli", "ELBO")

    def path(options: sweep.Options, model: tuple[str, str, str] = model, seed: int = 0) -> Path:
        return path_of(tmp_path, "cell", sweep.settings(options, model, seed))

    same = {
        "priors": ("VampPrior",),
        "repeats": 7,
        "retries": 0,
        "cores": 1,
        "parallel": False,
        "out": tmp_path,
        "seed": 5,
    }
    assert path(sweep.Options(**{**TOY, **same})) == path(options)
    others = {"epochs": 2, "hidden": (17,), "learning_rate": 1e-3, "num_samples": 61, "threads": 2, "test_size": None}
    paths = {path(sweep.Options(**{**TOY, name: value})) for name, value in others.items()}
    paths |= {path(options), path(options, seed=1), path(options, ("VampPrior", "Bernoulli", "ELBO"))}
    assert len(paths) == len(others) + 3


def test_versions_distinguish_cells_and_must_agree_between_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = sweep.settings(sweep.Options(**TOY), ("StandardNormal", "Bernoulli", "ELBO"), 0)
    monkeypatch.setattr(sweep, "version", lambda package: "another")
    other = sweep.settings(sweep.Options(**TOY), ("StandardNormal", "Bernoulli", "ELBO"), 0)
    assert path_of(tmp_path, "cell", cell) != path_of(tmp_path, "cell", other)
    with pytest.raises(RuntimeError, match=r"This node has \{'pyrovae': 'another', .* started with \{'pyrovae': '\d"):
        sweep.compute(cell, {})


def test_a_cell_has_the_requested_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen = torch.get_num_threads(), []

    def prior(options: sweep.Options, train: torch.Tensor) -> pv.priors.StandardNormal:
        seen.append(torch.get_num_threads())
        return pv.priors.StandardNormal(options.latent)

    monkeypatch.setitem(sweep.PRIORS, "StandardNormal", prior)
    options = sweep.Options(**TOY, threads=before + 1)
    cell = sweep.settings(options, ("StandardNormal", "Bernoulli", "ELBO"), 0)
    sweep.compute(cell, sweep.load(options, {"Bernoulli"}))
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


@needs_ray
@pytest.mark.slow
def test_numbers_are_the_same_in_order_and_on_a_ray_of_its_own(tmp_path: Path) -> None:
    axes = {"likelihoods": ("Bernoulli", "DiscretizedLogistic"), "priors": ("StandardNormal",), "repeats": 2}
    flags = ["--likelihoods", "Bernoulli", "DiscretizedLogistic", "--repeats", "2", "--out", str(tmp_path / "ray")]
    command = [sys.executable, "-m", "experiments.sweep", *SMALLEST, *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "4 cells: 0 kept from before, 4 computed" in done.stdout
    assert not done.stderr  # Ray is quiet

    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # must not affect the results
    try:
        sweep.main(sweep.Options(**{**TOY, **axes, "parallel": False, "out": tmp_path / "order"}))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    paths = sorted(path.name for path in (tmp_path / "order" / "cells").iterdir())
    assert paths == sorted(path.name for path in (tmp_path / "ray" / "cells").iterdir())
    assert len(paths) == 4
    for path in paths:
        one, other = (xr.load_dataset(tmp_path / mode / "cells" / path) for mode in ("order", "ray"))
        assert one.equals(other)  # equal bit for bit
        histories = [json.loads(result.attrs["history"]) for result in (one, other)]
        assert histories[0]["train"] == histories[1]["train"]


def test_more_seeds_compute_only_those(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy = {**TOY, "likelihoods": ("Bernoulli",), "parallel": False, "out": tmp_path}
    sweep.main(sweep.Options(**{**toy, "repeats": 1}))
    table = sweep.main(sweep.Options(**toy))
    assert "4 cells: 2 kept from before, 2 computed (0 of them in a later attempt), 0 failed" in capsys.readouterr().out
    assert table.seeds.tolist() == ["2", "2"]
    assert {path.stem for path in tmp_path.glob("*.png")} == {"sweep"}
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["table"]["VampPrior, Bernoulli, ELBO"]["difference"] == table.difference.iloc[1]


def test_differences_are_paired_over_seeds_and_data(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    data, seeds = generator.normal(0, 10, 40), generator.normal(0, 5, 3)

    def run(seed: int, gain: float, reliable: int = 40) -> xr.Dataset:
        values = data + seeds[seed] + gain * (1 + 0.1 * np.arange(40) + 0.5 * seed)
        columns = {"log_likelihood": 0 * values, "quoted": values, "quoted_mcse": np.full(40, 0.3)}
        columns["reliable"] = np.arange(40) < reliable
        return xr.Dataset(
            {name: ("datum", column) for name, column in columns.items()},
            coords={"datum": np.arange(40)},
            attrs={"data_sha1": "same", "binarization": "static", "base_measure": "counting"},
        )

    reference, better = ({seed: run(seed, gain) for seed in range(3)} for gain in (0.0, 1.0))
    gained = 1 + 0.1 * np.arange(40) + 0.5 * np.arange(3)[:, None]
    row = seeds_module.gain({**better, 7: run(0, 99.0)}, reference, is_reference=False)  # a seed without partner
    assert row["difference"] == f"{gained.mean():.2f} ± {pd.Series(gained.mean(1)).sem():.2f}"
    error, mcse = pd.Series(gained.mean(0)).sem(), 0.3 * 2**0.5 / (40 * 3) ** 0.5
    assert row["error over data"] == f"{error:.2f} ({mcse:.2f})"
    doubtful = {seed: run(seed, 1.0, reliable=30) for seed in range(3)}
    assert seeds_module.gain(doubtful, reference, is_reference=False)["error over data"] == f"{error:.2f}"


def test_a_sweep_with_a_failed_cell_writes_the_others_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def diverging(options: sweep.Options, train: torch.Tensor) -> Any:
        if options.seed == 1:
            raise FloatingPointError("the prior became nan")
        return pv.priors.StandardNormal(options.latent)

    monkeypatch.setitem(sweep.PRIORS, "diverging", diverging)
    toy = {**TOY, "likelihoods": ("Bernoulli",), "priors": ("StandardNormal", "diverging"), "parallel": False}
    with pytest.raises(SystemExit, match=r"1 of 4 cells failed\. Run the same command again"):
        sweep.main(sweep.Options(**toy, retries=0, out=tmp_path))
    out = capsys.readouterr().out
    assert (
        "diverging, Bernoulli, ELBO, seed 1: failed 1 times, most recently with FloatingPointError: the prior became"
        in out
    )
    table = json.loads((tmp_path / "results.json").read_text())["table"]
    assert {name: row["seeds"] for name, row in table.items()} == {
        "StandardNormal, Bernoulli, ELBO": "2",
        "diverging, Bernoulli, ELBO": "1",
    }


def test_without_ray_it_runs_in_order_but_not_on_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "is_installed", lambda: False)
    assert sweep.executor(sweep.Options()) is in_order
    with pytest.raises(ModuleNotFoundError, match="A cluster needs Ray, which is not installed"):
        sweep.executor(sweep.Options(address="10.0.0.1:6379"))


def test_an_unknown_combination_is_named() -> None:
    with pytest.raises(ValueError, match="'Vamp' is not a model of this experiment"):
        sweep.grid(sweep.Options(priors=("Vamp",)))
    models = sweep.grid(sweep.Options(models=("VampPrior, Bernoulli, IWAE",)))
    assert list(models.values()) == [("VampPrior", "Bernoulli", "IWAE")]


@needs_ray
@pytest.mark.slow
def test_on_a_cluster_by_its_address(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    start = f"start --head --block --node-ip-address 127.0.0.1 --port {address.split(':')[1]} --num-cpus 1"
    command = [sys.executable, "-m", "ray.scripts.scripts", *start.split(), "--include-dashboard", "false"]
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 32}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as node:
        try:
            assert node.stdout is not None
            assert any("Ray runtime started" in line for line in node.stdout)
            sweep_command = [sys.executable, "-m", "experiments.sweep", *SMALLEST, "--out", str(tmp_path)]
            there = [*sweep_command, "--address", address]
            done = subprocess.run(there, capture_output=True, text=True, env=environment)
            assert "1 cells: 0 kept from before, 1 computed" in done.stdout, done.stderr
            assert node.poll() is None  # a sweep leaves the cluster as it was
        finally:
            node.terminate()
