"""The benchmarks of a GPU: their options exist, and a failure does not stop the run."""

import importlib
import sys
from pathlib import Path

import pytest
import tyro

from experiments.benchmarks import gpu


@pytest.mark.parametrize("name", gpu.BENCHMARKS)
def test_the_options_of_each_benchmark_exist(name: str, tmp_path: Path) -> None:
    _, _, module, *arguments = gpu.command_of(name, tmp_path)
    options = tyro.cli(importlib.import_module(module).Options, args=arguments)
    assert options.device == "cuda"
    assert options.out.parent == tmp_path


def test_a_failure_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = {"slow": "import time; time.sleep(60)", "failing": "raise SystemExit(3)", "good": ""}
    monkeypatch.setattr(
        gpu, "BENCHMARKS", {name: gpu.Benchmark("", (), 1 + 30 * (name != "slow")) for name in commands}
    )
    monkeypatch.setattr(gpu, "command_of", lambda name, _: [sys.executable, "-c", commands[name]])
    found = gpu.main(gpu.Options(out=tmp_path, names=tuple(commands)))
    assert [outcome.split(" after ")[0] for outcome in found.values()] == [
        "stopped at its limit of 1 s",
        "failed with exit status 3",
        "done",
    ]
