"""Faults that are made to happen: processes killed, told to stop, disks full, folders that cannot be written to."""

import errno
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae import archives
from tests import faulty

EPOCHS = 60


def kill_until_it_ends(folder: Path, kills: int, chance: random.Random, **options: Any) -> Counter[str]:
    """Kills one run again and again, amid its steps and amid its writing in turns; then lets it end."""
    found: Counter[str] = Counter()
    while found["killed"] < kills:
        slow = found["killed"] % 2 == 1
        process, told = faulty.start(folder, EPOCHS, slow=slow, **options)
        told.recv()
        known = newest(folder)
        if slow:
            phase = faulty.wait_amid_writing(told, chance)
        else:
            phase = None if process.join(chance.uniform(0.0, 0.4)) or process.exitcode is not None else "anywhere"
        process.kill()
        process.join()
        if phase is None or process.exitcode != -signal.SIGKILL:
            raise AssertionError("the run ended before it was killed; make it longer")
        found["killed"] += 1
        found[f"amid {phase}"] += 1
        found["resumed"] += known > (0, 0)
        assert newest(folder) >= known  # whatever is lost, it is not what was there
    process, _ = faulty.start(folder, EPOCHS, **options)
    process.join()
    assert process.exitcode == 0
    return found


def newest(folder: Path) -> tuple[int, int]:
    """How far the newest checkpoint has come."""
    names = [path.stem.split("-")[1:] for path in folder.glob("checkpoint-*.pt")]
    return max(((int(epoch), int(step)) for epoch, step in names), default=(0, 0))


def differing(folder: Path, expected: tuple[dict[str, Tensor], pv.History]) -> int:
    """How many tensors of a run in a process of its own are not what they are to be; its history must be the same."""
    state, history = expected
    found = archives.read(folder / "result")
    for column in ("train", "valid", "kl_weight", "learning_rate", "best_epoch", "skipped"):
        assert found["history"][column] == getattr(history, column), column
    assert found["state"].keys() == state.keys()
    return sum(not torch.equal(found["state"][name], tensor) for name, tensor in state.items())


def kill_runs(folder: Path, runs: int, kills: int, seed: int, capsys: pytest.CaptureFixture[str], **options: Any) -> None:
    process, _ = faulty.start(whole := folder / "whole", EPOCHS, **options)
    process.join()
    expected = archives.read(whole / "result")
    expected = expected["state"], pv.History(**expected["history"])
    found, differences = Counter[str](), 0
    for i in range(runs):
        place = folder / str(i)
        found += kill_until_it_ends(place, kills, random.Random(seed + i), **options)
        differences += differing(place, expected)
        assert not list(place.glob(".*"))  # nothing half written is left
    with capsys.disabled():
        phases = ", ".join(f"{count} {phase}" for phase, count in sorted(found.items()) if phase.startswith("amid"))
        print(
            f"\nkilled {found['killed']} times ({phases}), {found['resumed']} resumed from a checkpoint, "
            f"{differences} differing parameters"
        )
    assert differences == 0
    assert found["killed"] == runs * kills


def test_a_killed_run_is_resumed_to_the_same_parameters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kill_runs(tmp_path, runs=1, kills=6, seed=0, capsys=capsys)


@pytest.mark.slow
def test_many_killed_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kill_runs(tmp_path, runs=5, kills=8, seed=100, capsys=capsys)


@pytest.mark.slow
def test_killed_runs_that_are_compiled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kill_runs(tmp_path, runs=1, kills=4, seed=200, capsys=capsys, compile=True)
