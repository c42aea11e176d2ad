"""Checkpoint folders of evaluations. An evaluation that was interrupted continues from the rows in its folder."""

import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pyrovae import archives, parallel
from pyrovae._warnings import find_stack_level
from pyrovae.evaluation.descriptions import plain
from pyrovae.evaluation.identity import difference, of_objects, of_programs
from pyrovae.evaluation.provenance import arguments, attributes
from pyrovae.evaluation.rows import Rows
from pyrovae.folder_lock import FolderLock
from pyrovae.isolation import fresh_seed

if TYPE_CHECKING:
    from pyrovae.evaluation.problem import Problem

SAVE_SECONDS = 5.0  # least time between two writes of the finished rows
_CHANGEABLE = {"progress", "checkpoint", "seed"}  # options that may differ between calls; the seed in use is compared
_OF_PROGRAMS = "programs", "objects"  # parts of the description that hold the content of the programs


def seed_in(folder: str | Path) -> int:
    """Return the seed of an evaluation that is called with a checkpoint folder, but without a seed.

    The seed is read from the folder; a new folder gets a new seed. The seed has a file of its own, because it must be
    known before the stored results are read: the simulated data of bidirectional Monte Carlo and the draws of global
    latents depend on the seed.

    Raises:
        ValueError: If the path is empty, or the file that holds the seed is damaged.
    """
    path = archives.as_path(folder, "checkpoint") / "seed.pt"
    if path.exists():
        return int(_read(path)["seed"])
    seed = fresh_seed()
    with suppress(OSError):  # rows cannot be written to such a folder either, and writing them warns
        path.parent.mkdir(parents=True, exist_ok=True)
        archives.write(path, {"seed": seed})
    return seed


class Checkpoint:
    """Context manager that stores the finished rows of an evaluation in a folder, which is locked inside the context.

    If the same evaluation is called again, it continues after the stored rows.

    Args:
        problem: Model, guide and data, inside the context ``with problem:``.
        estimator: Name of the estimator.
        settings: Options of the estimator that affect the rows.

    Attributes:
        seconds: Duration of all earlier calls of the evaluation, in seconds.

    Raises:
        OSError: On entry, if the folder cannot be created, or another evaluation uses it.
        ValueError: If an option or an argument of the programs cannot be described, such as a generator or an open
            file. On entry, if the folder holds another evaluation or a damaged file.
    """

    def __init__(self, problem: "Problem", estimator: str, settings: Mapping[str, Any]) -> None:
        self.seconds, self.saved, self.started = 0.0, time.perf_counter(), time.perf_counter()
        folder = problem.options["checkpoint"]
        self.folder = None if folder is None else archives.as_path(folder, "checkpoint")
        self.description = {} if folder is None else _describe(problem, estimator, settings)
        self.lock: FolderLock | None = None
        self.kept: dict[str, Any] | None = None
        self.num_written, self.has_warned = 0, False

    def __enter__(self) -> "Checkpoint":
        if self.folder is not None:
            self.kept = parallel.in_first(self._open)
        return self

    def __exit__(self, *_: object) -> None:
        if self.lock is not None:
            self.lock.release()

    def restore(self, rows: Rows) -> None:
        """Fill ``rows`` with the rows that an earlier call has stored in the folder."""
        if self.kept is not None:
            self.seconds = self.kept["seconds"]
            columns = {name: values.numpy() for name, values in self.kept["columns"].items()}
            rows.add(columns, self.kept["dims"])
            self.num_written = rows.done

    def save(self, rows: Rows, *, now: bool = False) -> None:
        """Write the finished rows to the folder, at most once every few seconds.

        With ``now=True``, new rows are written at once. If writing fails, the evaluation warns once and
        continues with the rows in memory.
        """
        if self.folder is None or not parallel.is_first() or rows.done == self.num_written:
            return
        if not now and time.perf_counter() - self.saved <= SAVE_SECONDS:
            return
        columns = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in rows.arrays(rows.done).items()}
        seconds = self.seconds + time.perf_counter() - self.started
        kept = {"description": self.description, "columns": columns, "dims": rows.dims, "seconds": seconds}
        path = self.folder / "rows.pt"
        try:
            archives.write(path, kept)
            self.num_written = rows.done
        except OSError as error:
            if not self.has_warned:
                self.has_warned = True
                warnings.warn(
                    f"{str(path)!r} cannot be written ({error.strerror or error}), and the evaluation continues. If "
                    f"the process is killed, the rows since the last write are lost.",
                    stacklevel=find_stack_level(),
                )
        self.saved = time.perf_counter()

    def _open(self) -> dict[str, Any] | None:
        """Lock the folder. Return the content of its file ``rows.pt``, or None if the folder has no such file."""
        assert self.folder is not None
        name, lock = str(self.folder), FolderLock(self.folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except BlockingIOError as error:
            raise OSError(
                f"another run uses the folder {name!r} ({error.strerror}). Wait until that run ends, or give each "
                f"evaluation its own folder."
            ) from error
        except OSError as error:
            raise OSError(
                f"the evaluation cannot be stored in the folder {name!r} ({error.strerror or error}). Pass a folder "
                f"that is writable."
            ) from error
        try:
            with suppress(OSError):  # unfinished files cannot be removed from a read-only file system
                archives.remove_unfinished(self.folder)
            path = self.folder / "rows.pt"
            kept = _read(path) if path.exists() else None
            if kept is not None:
                self._check(kept.get("description", {}))
        except BaseException:
            lock.release()
            raise
        self.lock = lock
        return kept

    def _check(self, then: Mapping[str, Any]) -> None:
        for part in _OF_PROGRAMS:
            now = self.description[part]
            if changed := difference(now, then.get(part, now)):  # folders of earlier versions may lack a part
                raise ValueError(
                    f"folder {str(self.folder)!r} holds an evaluation of another program: {changed}. Pass another "
                    f"folder, or remove this folder."
                )
        names = [name for name in (*self.description, *then) if name not in _OF_PROGRAMS]
        different = [name for name in names if self.description.get(name) != then.get(name)]
        if different:
            name = different[0]
            raise ValueError(
                f"folder {str(self.folder)!r} holds another evaluation: its {name} is {then.get(name)!r}, but this "
                f"call has {self.description.get(name)!r}. Pass another folder, or remove this folder."
            )


def _read(path: Path) -> dict[str, Any]:
    """Return the content of a file that this module has written.

    Raises:
        ValueError: If the file is damaged.
    """
    try:
        content = archives.read(path)
    except archives.ArchiveError as error:
        raise ValueError(f"{error} Remove the file to start a new evaluation.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{str(path)!r} is not a file of an evaluation. Remove the file to start a new evaluation.")
    return content


def _describe(problem: "Problem", estimator: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything that determines the rows of an evaluation, as a dictionary of plain values.

    Raises:
        ValueError: If an argument or an option cannot be described, such as a generator or an open file.
    """
    found = attributes(problem)
    names = "model", "guide", "data_sha1", "parameters_sha1", "binarization", "seed", "autocast"
    versions = "pyrovae_version", "torch_version", "pyro-ppl_version"
    options = {name: value for name, value in problem.options.items() if name not in _CHANGEABLE}
    described: dict[str, Any] = {
        "estimator": estimator,
        **arguments(problem),
        **options,  # first, so that an error names the option and not the batch width, which depends on it
        "proposal": _proposal(problem),
        **settings,
        **{name: found[name] for name in (*names, *versions)},
        "device": problem.device.type,
    }
    return {
        **{name: plain(value, name) for name, value in described.items()},
        "programs": of_programs(problem.contents),
        "objects": of_objects(problem.contents),
    }


def _proposal(problem: "Problem") -> dict[str, Any] | None:
    """Return the type and the settings of a refined guide, or None for any other guide."""
    if problem.proposal is None:
        return None
    public = {name: value for name, value in vars(problem.proposal).items() if not name.startswith("_")}
    settings = {name: value for name, value in public.items() if name not in ("model", "guide")}  # see `programs`
    return {"type": type(problem.proposal).__name__, **settings}
