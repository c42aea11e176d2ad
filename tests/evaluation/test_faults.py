"""Evaluations that are killed or interrupted resume from their folder, with the result of an uninterrupted call."""

import os
import pickle
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import xarray as xr

from tests.evaluation.interrupted import ESTIMATORS, NUM_DATA, assert_same, num_rows, start
from tests.faulty import PAUSE

Record = Callable[[str, object], None]
PHASES_OF_A_WRITING = 6  # two writes, fsync of the file, renaming, fsync of the folder


def let_end(told: Connection) -> None:
    """Receive messages until the process ends, so that a full pipe does not block it."""
    try:
        while True:
            told.recv()
    except EOFError:
        pass


def wait(told: Connection, chance: random.Random, least: int, most: int) -> str:
    """Wait for a random time after a random number of phases of writes, and return the last phase."""
    phase = told.recv()
    for _ in range(chance.randint(least, most)):
        phase = told.recv()
    time.sleep(chance.uniform(0, 2 * PAUSE))
    return phase


def kill_until_it_ends(
    name: str, folder: Path, kills: int, chance: random.Random, seed: int | None = 1
) -> tuple[xr.Dataset, Counter[str]]:
    """Kill an evaluation again and again, then let it end, and return its result."""
    found: Counter[str] = Counter()
    rows, out = folder / "rows", folder / "result"
    for kill in range(kills):
        known = num_rows(rows)
        process, told = start(name, rows, out, seed)
        # NUTS moves all data as one state, so it writes its rows once, at the end.
        most = 0 if name == "nuts" else PHASES_OF_A_WRITING + 2
        least = most if kill == kills - 1 else min(1, most)  # the last kill comes after a writing
        phase = wait(told, chance, least, most)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "the evaluation ended before it was killed; make it longer"
        assert num_rows(rows) >= known  # reading the rows also checks that the file is complete
        found[f"after {phase}"] += 1
        found["resumed"] += known > 0
    found["resumed"] += num_rows(rows) > 0
    process, told = start(name, rows, out, seed)
    let_end(told)
    process.join()
    assert not list(rows.glob(".*"))  # neither a lock nor a half-written file is left
    return pickle.loads(out.read_bytes()), found


def uninterrupted(name: str, folder: Path, seed: int) -> xr.Dataset:
    process, told = start(name, None, folder / "whole", seed)
    let_end(told)
    process.join()
    whole: xr.Dataset = pickle.loads((folder / "whole").read_bytes())
    return whole


def check_kills(name: str, folder: Path, kills: int, record: Record) -> None:
    found, counts = kill_until_it_ends(name, folder, kills, random.Random(len(name)))
    assert_same(found, uninterrupted(name, folder, 1))
    assert (counts["resumed"] > 0) == (name != "nuts")
    phases = ", ".join(f"{count} {phase}" for phase, count in sorted(counts.items()) if phase.startswith("after"))
    record("printed", f"killed {kills} times ({phases}), {counts['resumed']} resumed from rows, same result")


def test_a_killed_evaluation_continues_to_the_same_result(tmp_path: Path, record_property: Record) -> None:
    check_kills("evaluate", tmp_path, 2, record_property)


@pytest.mark.slow
@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_is_killed_and_continues(name: str, tmp_path: Path, record_property: Record) -> None:
    kills = {"nuts": 2, "refined": 3, "log_likelihood": 3}.get(name, 4)  # fewer where there are few batches
    check_kills(name, tmp_path, kills, record_property)


@pytest.mark.parametrize("name", ["evaluate", pytest.param("bdmc", marks=pytest.mark.slow)])
def test_an_evaluation_without_a_seed_continues_with_the_seed_of_its_folder(name: str, tmp_path: Path) -> None:
    found, _ = kill_until_it_ends(name, tmp_path, 2, random.Random(3), seed=None)
    assert_same(found, uninterrupted(name, tmp_path, found.attrs["seed"]))


def test_ctrl_c_returns_the_rows_that_are_done(tmp_path: Path) -> None:
    process, told = start("evaluate", tmp_path / "rows", tmp_path / "part")
    for _ in range(1 + 2 * PHASES_OF_A_WRITING):
        told.recv()
    os.kill(process.pid, signal.SIGINT)
    let_end(told)
    process.join()
    assert process.exitcode == 0
    part, whole = pickle.loads((tmp_path / "part").read_bytes()), uninterrupted("evaluate", tmp_path, 1)
    done = part.sizes["datum"]
    assert 0 < done < NUM_DATA
    assert part.attrs["interrupted"] == f"after {done} of {NUM_DATA} data"
    assert num_rows(tmp_path / "rows") == done
    assert part.equals(whole.isel(datum=slice(done)))
    found, _ = kill_until_it_ends("evaluate", tmp_path, 0, random.Random(0))
    assert_same(found, whole)


def test_two_starts_on_one_folder(tmp_path: Path) -> None:
    """The second start is refused, and leaves the file and the result of the first intact."""
    process, told = start("evaluate", tmp_path / "rows", tmp_path / "first")
    for _ in range(3):
        told.recv()
    second, second_told = start("evaluate", tmp_path / "rows", tmp_path / "second")
    let_end(second_told)
    second.join()
    assert second.exitcode == 1
    assert not (tmp_path / "second").exists()
    let_end(told)
    process.join()
    assert_same(pickle.loads((tmp_path / "first").read_bytes()), uninterrupted("evaluate", tmp_path, 1))
