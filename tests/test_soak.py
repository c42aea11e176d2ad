"""Memory, open files, threads and temporary files of a long process do not grow."""

import gc
import os
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import pyrovae as pv
from tests.conftest import small_vae

STEPS, EVALUATIONS = 20_000, 2_000
LARGEST_GROWTH = 8 * 2**20  # bytes of resident memory; a leak of one small tensor a step would take more

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="there is no /proc on this system")


@dataclass
class Usage:
    """The resident memory of a process in bytes, and its numbers of files, threads and temporary files."""

    memory: int
    files: int
    threads: int
    temporary: int

    @classmethod
    def now(cls, folder: Path) -> "Usage":
        gc.collect()
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        temporary = len(list(folder.rglob("*")))
        return cls(resident, len(list(Path("/proc/self/fd").iterdir())), threading.active_count(), temporary)


def check_growth(name: str, early: Usage, late: Usage, record: Callable[[str, object], None]) -> None:
    record("printed", f"{name}: {late.memory - early.memory:+,} bytes, then {late}")
    assert late.memory - early.memory < LARGEST_GROWTH
    assert (late.files, late.threads, late.temporary) == (early.files, early.threads, early.temporary)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files, which must be empty at the end."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


@pytest.mark.slow
def test_steps(folder: Path, record_property: Callable[[str, object], None]) -> None:
    """Usage after a tenth of 20,000 steps equals that at the end. Checkpoints are written every 100 epochs."""
    found: list[Usage] = []

    def measure(history: pv.History) -> None:
        if len(history.train) in (STEPS // 40, STEPS // 4):  # epochs of four steps
            found.append(Usage.now(folder))

    x = torch.bernoulli(torch.full((40, 6), 0.4))
    options = {"batch_size": 10, "seed": 0, "progress": False, "checkpoint": folder / "run", "checkpoint_every": 100}
    pv.fit(small_vae(), x, epochs=STEPS // 4, callback=measure, **options)
    check_growth("training", *found, record_property)


@pytest.mark.slow
def test_evaluations(folder: Path, record_property: Callable[[str, object], None]) -> None:
    """Usage after a tenth of 2,000 evaluations equals that at the end."""
    vae, x, found = small_vae(), torch.bernoulli(torch.full((8, 6), 0.4)), list[Usage]()
    for index in range(EVALUATIONS):
        pv.evaluation.evaluate(vae.model, vae.guide, x, 20, seed=index, progress=False)
        if index + 1 in (EVALUATIONS // 10, EVALUATIONS):
            found.append(Usage.now(folder))
    check_growth("evaluation", *found, record_property)
