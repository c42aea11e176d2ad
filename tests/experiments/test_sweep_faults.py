"""Faults of a sweep on Ray: killed workers, killed drivers, cells that raise, a full disk."""

import importlib
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from experiments._cells import fill, read
from experiments._ray import is_installed, on_ray
from tests.cells import compute

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_installed(), reason="Ray is not installed; uv sync --group sweep installs it"),
]

Record = Callable[[str, object], None]
NUM_CELLS, DRIVER_KILLS = 12, 4

DRIVER = """
    import sys, time
    from pathlib import Path
    import numpy as np
    from experiments._cells import fill
    from experiments._ray import on_ray
    from tests.cells import compute

    folder, num_cells = Path(sys.argv[1]), int(sys.argv[2])
    cells = {f"cell {i}": {"x": i, "log": str(folder / f"{i}.log"), "seconds": 0.5} for i in range(num_cells)}
    print(fill(folder / "cells", cells, compute, shared=np.ones(3), execute=on_ray(cores=2)))
"""


def cells_in(folder: Path, **others: Any) -> dict[str, dict[str, Any]]:
    return {f"cell {i}": {"x": i, "log": str(folder / f"{i}.log"), **others} for i in range(NUM_CELLS)}


def attempts(folder: Path) -> int:
    return sum(len(path.read_text().splitlines()) for path in folder.glob("*.log"))


def finished(folder: Path) -> dict[str, float]:
    """Return the numbers of the stored cells. Every file without a temporary name must be complete."""
    found = {}
    for path in folder.glob("cells/*.nc"):
        result = read(path)
        assert result is not None, path
        found[path.name] = float(result.square[0])
    return found


def end_group(driver: "subprocess.Popen[str]") -> None:
    """End the processes of Ray that a killed driver leaves, which all belong to the driver's process group."""
    with suppress(ProcessLookupError):
        os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """One Ray instance with two cores for all tests, because its start takes seconds."""
    with importlib.import_module("experiments._ray")._connected(None, 2):
        yield


@pytest.mark.usefixtures("local_ray")
def test_killed_workers(tmp_path: Path, record_property: Record) -> None:
    cells = cells_in(tmp_path)
    for i in range(0, NUM_CELLS, 2):
        cells[f"cell {i}"]["kills"] = 1
    filled = fill(tmp_path / "cells", cells, compute, shared=np.ones(3), execute=on_ray(), retries=1)
    record_property("printed", f"{NUM_CELLS // 2} workers killed, {len(filled.results)} of {NUM_CELLS} cells computed")
    assert list(filled.results) == list(cells)
    assert [float(result.square[0]) for result in filled.results.values()] == [i**2 for i in range(NUM_CELLS)]
    assert attempts(tmp_path) == NUM_CELLS + NUM_CELLS // 2


@pytest.mark.usefixtures("local_ray")
def test_cells_that_raise(tmp_path: Path, record_property: Record) -> None:
    cells = cells_in(tmp_path)
    for i in range(0, NUM_CELLS, 3):
        cells[f"cell {i}"]["failures"] = 99
    filled = fill(tmp_path / "cells", cells, compute, shared=np.ones(3), execute=on_ray(), retries=1)
    record_property("printed", f"{len(filled.failed)} cells raise, {len(filled.results)} of {NUM_CELLS} are computed")
    assert sorted(filled.failed) == sorted(f"cell {i}" for i in range(0, NUM_CELLS, 3))
    assert all(reasons[-1].startswith("ValueError: no luck") for reasons in filled.failed.values())
    assert len(finished(tmp_path)) == NUM_CELLS - NUM_CELLS // 3


def test_killed_drivers(tmp_path: Path, record_property: Record) -> None:
    """A driver is killed while its cells are computed. The next driver computes only the missing cells."""
    chance, known, output = random.Random(0), {}, ""
    for kill in range(DRIVER_KILLS + 1):
        command = [sys.executable, "-c", textwrap.dedent(DRIVER), str(tmp_path), str(NUM_CELLS)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as driver:
            try:
                if kill == DRIVER_KILLS:
                    output, _ = driver.communicate(timeout=300)
                else:
                    before = attempts(tmp_path)
                    while attempts(tmp_path) < before + 2:
                        time.sleep(0.05)
                    time.sleep(chance.uniform(0, 0.6))
                    driver.kill()
                    assert driver.wait() == -signal.SIGKILL
            finally:
                end_group(driver)
        assert known.items() <= finished(tmp_path).items()
        known = finished(tmp_path)
    record_property(
        "printed", f"{DRIVER_KILLS} drivers killed, {len(known)} of {NUM_CELLS} cells, {attempts(tmp_path)} attempts"
    )
    assert sorted(known.values()) == [i**2 for i in range(NUM_CELLS)]
    assert f"{NUM_CELLS} cells: " in output
    assert "0 failed" in output


@pytest.mark.usefixtures("local_ray")
def test_a_full_disk(small_disk: Path, tmp_path: Path, record_property: Record) -> None:
    """The sweep ends with the error of the disk, written files are complete, and the next call computes the rest."""
    cells, ballast = cells_in(tmp_path), small_disk / "ballast"

    def filling(settings: Any, shared: Any) -> xr.Dataset:
        if settings["x"] == NUM_CELLS // 2:
            while not list(small_disk.glob("cells/*.nc")):  # the driver may be slower than its workers
                time.sleep(0.01)
            with ballast.open("wb", buffering=0) as file, suppress(OSError):
                while True:
                    file.write(bytes(4096))
        return compute(settings, shared)

    with pytest.raises(OSError, match=r"No space left|unable to|errno = 28"):
        fill(small_disk / "cells", cells, filling, shared=np.ones(3), execute=on_ray())
    kept = finished(small_disk)
    assert 0 < len(kept) < NUM_CELLS
    ballast.unlink()
    filled = fill(small_disk / "cells", cells, compute, shared=np.ones(3), execute=on_ray())
    record_property("printed", f"{len(kept)} cells before the disk was full, {filled.num_kept} kept, none lost")
    assert filled.num_kept == len(kept)
    assert len(filled.results) == NUM_CELLS
