"""Cells of a sweep: each is computed once, tried again if it fails, and kept in a file of its own.

A cell's settings hold everything that its numbers depend on, as plain values; the SHA-256 of their JSON names its file.
A file is written under another name, flushed to disk and renamed, so that it is there whole or not at all.
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
    """What became of the cells.

    Attributes:
        results: By name, in the order of the cells; those that failed are missing.
        num_kept: How many of them were there before.
        failures: Why attempts failed, one after the other, by the names of all cells that failed at least once.
    """

    results: dict[str, xr.Dataset] = field(default_factory=dict)
    num_kept: int = 0
    failures: dict[str, list[str]] = field(default_factory=dict)

    @property
    def failed(self) -> dict[str, list[str]]:
        """The failures of those cells that have no result."""
        return {name: reasons for name, reasons in self.failures.items() if name not in self.results}

    def __str__(self) -> str:
        computed = len(self.results) - self.num_kept
        again = len(self.failures) - len(self.failed)
        lines = [
            f"{len(self.results) + len(self.failed)} cells: {self.num_kept} kept from before, {computed} computed "
            f"({again} of them at a later attempt), {len(self.failed)} failed"
        ]
        lines += [f"{name}: failed {len(why)} times, at last by {why[-1]}" for name, why in self.failed.items()]
        return "\n".join(lines)


def in_order(
    compute: Compute, cells: Mapping[str, Settings], shared: Any
) -> Iterator[tuple[str, xr.Dataset | Exception]]:
    """Computes one cell after another in this process; an exception is the outcome of its cell."""
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
    """Computes the cells that the folder does not hold, and keeps each as soon as it is there.

    Those that fail are tried again when all others are done, when a shortage may be over.

    Args:
        folder: Of the files.
        cells: Settings, by name.
        compute: Maps settings, and what is shared, to a result.
        shared: Read by all cells, such as data.
        execute: Computes several cells, and yields names with results or exceptions as they come.
        retries: How often a cell is tried again.
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
                    bar.write(f"attempt {attempt} of {retries + 1} at {name} failed by {reason}")
                    continue
                outcome.attrs |= {"attempts": attempt, "settings": canonical(cells[name])}
                write(path_of(folder, name, cells[name]), outcome)
                filled.results[name] = outcome
                bar.update()
    filled.results = {name: filled.results[name] for name in cells if name in filled.results}
    return filled


def canonical(settings: Settings) -> str:
    """JSON in which equal settings are equal."""
    return json.dumps(settings, sort_keys=True, default=str)


def path_of(folder: Path, name: str, settings: Settings) -> Path:
    """The file of a cell; its settings alone tell it from others, the name is for people."""
    digest = hashlib.sha256(canonical(settings).encode()).hexdigest()
    return folder / f"{re.sub(r'[^A-Za-z0-9]+', '-', name)}-{digest[:16]}.nc"


def read(path: Path) -> xr.Dataset | None:
    """A cell's result, or None if there is none that can be read."""
    if not path.exists():
        return None
    try:
        return xr.load_dataset(path, engine="h5netcdf")
    except (OSError, ValueError, KeyError) as error:
        tqdm.write(f"{path} cannot be read and is computed anew: {error}")
        return None


def write(path: Path, result: xr.Dataset) -> None:
    """Writes a cell's result, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        result.to_netcdf(partial, engine="h5netcdf")
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
