"""Cells of a sweep. Each cell is computed once, repeated if it fails, and stored in a file of its own.

The settings of a cell are plain values, and they contain everything that its numbers depend on. The SHA-256 of their
JSON identifies the file. A file is written under a temporary name, flushed to disk and renamed, so that an interrupted
write leaves no partial file.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xarray as xr
from tqdm.auto import tqdm

Settings = Mapping[str, Any]
Compute = Callable[[Settings, Any], xr.Dataset]
Executor = Callable[[Compute, Mapping[str, Settings], Any], Iterator[tuple[str, xr.Dataset | Exception]]]


@dataclass
class Filled:
    """Results of the cells of a sweep.

    Attributes:
        results: Results by name, in the order of the cells, without the cells that failed.
        num_kept: Number of results that were read from files.
        failures: Reasons of the failed attempts, in order, by the names of all cells that failed at least once.
    """

    results: dict[str, xr.Dataset] = field(default_factory=dict)
    num_kept: int = 0
    failures: dict[str, list[str]] = field(default_factory=dict)

    @property
    def failed(self) -> dict[str, list[str]]:
        """Failures of the cells that have no result."""
        return {name: reasons for name, reasons in self.failures.items() if name not in self.results}

    def __str__(self) -> str:
        computed = len(self.results) - self.num_kept
        again = len(self.failures) - len(self.failed)
        lines = [
            f"{len(self.results) + len(self.failed)} cells: {self.num_kept} kept from before, {computed} computed "
            f"({again} of them in a later attempt), {len(self.failed)} failed"
        ]
        lines += [f"{name}: failed {len(why)} times, most recently with {why[-1]}" for name, why in self.failed.items()]
        return "\n".join(lines)


def in_order(
    compute: Compute, cells: Mapping[str, Settings], shared: Any
) -> Iterator[tuple[str, xr.Dataset | Exception]]:
    """Compute the cells one after another in this process, and yield each result or exception."""
    for name, settings in cells.items():
        outcome: xr.Dataset | Exception
        try:
            outcome = compute(settings, shared)
        except Exception as error:
            outcome = error
        yield name, outcome


def fill(
    folder: Path,
    cells: Mapping[str, Settings],
    compute: Compute,
    *,
    shared: Any = None,
    execute: Executor = in_order,
    retries: int = 2,
) -> Filled:
    """Compute the cells that the folder does not contain, and store each result immediately.

    Failed cells are repeated after all others are done, because a shortage of resources may have ended by then.

    Args:
        folder: Folder of the files.
        cells: Settings by name.
        compute: Function of the settings and of ``shared`` that returns a result.
        shared: Objects that all cells read, such as data.
        execute: Function that computes several cells and yields their names with results or exceptions.
        retries: Number of further attempts for a cell that fails.
    """
    found = {name: read(path_of(folder, name, settings)) for name, settings in cells.items()}
    filled = Filled({name: result for name, result in found.items() if result is not None})
    filled.num_kept = len(filled.results)
    with tqdm(total=len(cells), initial=filled.num_kept, unit="cell", disable=None) as bar:
        for attempt in range(1, retries + 2):
            missing = {name: settings for name, settings in cells.items() if name not in filled.results}
            for name, outcome in execute(compute, missing, shared) if missing else ():
                if isinstance(outcome, Exception):
                    reason = f"{type(outcome).__name__}: {outcome}".splitlines()[0]
                    filled.failures.setdefault(name, []).append(reason)
                    bar.write(f"attempt {attempt} of {retries + 1} to compute {name} failed: {reason}")
                    continue
                outcome.attrs |= {"attempts": attempt, "settings": canonical(cells[name])}
                write(path_of(folder, name, cells[name]), outcome)
                filled.results[name] = outcome
                bar.update()
    filled.results = {name: filled.results[name] for name in cells if name in filled.results}
    return filled


def canonical(settings: Settings) -> str:
    """Return JSON that is identical for equal settings."""
    return json.dumps(settings, sort_keys=True, default=str)


def path_of(folder: Path, name: str, settings: Settings) -> Path:
    """Return the file of a cell. The settings alone identify it, and the name is for readers."""
    digest = hashlib.sha256(canonical(settings).encode()).hexdigest()
    return folder / f"{re.sub(r'[^A-Za-z0-9]+', '-', name)}-{digest[:16]}.nc"


def read(path: Path) -> xr.Dataset | None:
    """Return the result of a cell, or None if there is no readable file."""
    if not path.exists():
        return None
    try:
        return xr.load_dataset(path, engine="h5netcdf")
    except (OSError, ValueError, KeyError) as error:
        tqdm.write(f"{path} cannot be read, so the cell is computed again: {error}")
        return None


def write(path: Path, result: xr.Dataset) -> None:
    """Write the result of a cell. An interrupted write leaves no partial file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        content = result.to_netcdf(engine="h5netcdf")  # in memory, because HDF5 can crash when it closes on a full disk
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
