"""Store the last two checkpoints of a run in a folder, and find the checkpoint from which the run continues."""

import logging
import pickle
import re
import warnings
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from pyrovae import archives, parallel
from pyrovae._warnings import find_stack_level
from pyrovae.folder_lock import FolderLock
from pyrovae.training.description import (
    FORMAT,
    Description,
    differences,
    differences_of_runs,
    first_of,
    misfits,
    versions,
)
from pyrovae.training.state import STORED, check_state, file_format, require
from pyrovae.training.store import constraints_of

logger = logging.getLogger(__name__)

_NAME = re.compile(r"checkpoint-(\d+)-(\d+)\.pt")
_KEPT = 2


class CheckpointError(OSError):
    """A checkpoint cannot be written, or its folder cannot be used, for example because another run uses it.

    Attributes:
        history: History of the run up to the error; None if the run had not begun.
    """

    history: Any = None


class Checkpoints:
    """The checkpoints of one run, stored in a folder.

    The files are named ``checkpoint-<finished epochs>-<steps made in the next epoch>.pt``. As a context manager, the
    object locks the folder for the run.

    Args:
        folder: The folder, which is created if it does not exist; ``~`` is expanded.
        every: Number of epochs between two checkpoints.
        description: Description of the run. A checkpoint with another description raises an error.
        changeable: Options of the run that may differ between a checkpoint and the run that continues from it.
        wait: Seconds to wait for another run that uses the folder.

    Attributes:
        newest: Path of the checkpoint that was written or read last; None if there is none.

    Raises:
        CheckpointError: On entry, if the folder cannot be used.
        ValueError: If the path is empty.
    """

    def __init__(
        self, folder: str | Path, every: int, description: Description, changeable: Description, wait: float = 0.0
    ) -> None:
        self.folder, self.every = archives.as_path(folder, "checkpoint"), every
        self.description, self.changeable = description, changeable
        self.lock = FolderLock(self.folder, wait)
        self.newest: Path | None = None

    def __enter__(self) -> "Checkpoints":
        parallel.in_first(self._open)
        return self

    def __exit__(self, *_: object) -> None:
        self.lock.release()

    def _open(self) -> None:
        name = str(self.folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock.acquire()
            with suppress(PermissionError):
                archives.remove_unfinished(self.folder)
        except BlockingIOError as error:
            raise CheckpointError(
                f"another run uses the folder {name!r} ({error.strerror}). Wait for it with checkpoint_wait=, or give "
                f"each run its own folder."
            ) from error
        except OSError as error:
            raise CheckpointError(
                f"the folder {name!r} cannot hold checkpoints ({_reason(error)}). Pass a folder that is writable."
            ) from error

    def latest(self) -> dict[str, Any] | None:
        """Return the state in the newest checkpoint that can be used, or None if the folder has no checkpoints.

        Newer checkpoints that cannot be used are renamed, and a warning gives the reason.

        Raises:
            ValueError: If the folder has checkpoints, but none can be used.
        """
        refused: dict[Path, str] = {}
        for path in sorted(self._paths(), key=_position, reverse=True):
            try:
                state = self._read(path)
            except (OSError, ValueError) as error:
                refused[path] = str(error)
                continue
            for other, reason in refused.items():
                with suppress(OSError):  # a file on a read-only file system cannot be renamed
                    other.rename(other.with_name(f"{other.name}.refused"))
                warnings.warn(
                    f"{reason} The run continues from {path.name!r}, the last checkpoint that is not damaged.",
                    stacklevel=find_stack_level(),
                )
            self.newest = path
            logger.info("continuing from %s", path)
            return state
        if refused:
            raise ValueError(" ".join(refused.values()))
        return None

    def save(self, state: dict[str, Any]) -> None:
        """Write a checkpoint, and remove all checkpoints except the last two.

        Raises:
            CheckpointError: If the checkpoint cannot be written.
            TypeError: If the state holds objects that cannot be stored.
        """
        progress = state["progress"]
        path = self.folder / f"checkpoint-{progress['epoch']:06d}-{progress['step']:06d}.pt"
        content = {
            "kind": "checkpoint",
            "format": FORMAT,
            "description": self.description,
            "changeable": self.changeable,
            "versions": versions(),
            "constraints": constraints_of(name.removeprefix(STORED) for name in state["tensors"]),
            "state": state,
        }
        is_first = self.newest is None
        try:
            archives.write(path, content)
            if is_first:  # reading it back shows before the first step whether the state can be stored
                archives.read(path)
        except (archives.ArchiveError, pickle.PicklingError, AttributeError) as error:
            path.unlink(missing_ok=True)
            raise TypeError(
                "the state of the optimizer or of its schedule holds objects other than tensors, numbers, strings, "
                "lists and dictionaries. A checkpoint cannot hold such objects. Use another optimizer or schedule, or "
                "train without checkpoints."
            ) from error
        except OSError as error:
            raise CheckpointError(
                f"the checkpoint {str(path)!r} cannot be written ({_reason(error)}). "
                + (
                    "There is no other checkpoint."
                    if is_first
                    else f"{self.newest} is complete, and the run can continue from it."
                )
            ) from error
        self.newest = path
        logger.debug("wrote %s", path)
        for old in sorted(self._paths(), key=_position)[:-_KEPT]:
            old.unlink(missing_ok=True)

    def _paths(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if _NAME.fullmatch(path.name)]

    def _read(self, path: Path) -> dict[str, Any]:
        content = archives.read(path, check=partial(self._check, path))
        if other := differences(versions(), content["versions"]):
            warnings.warn(
                f"the run of checkpoint {str(path)!r} continues with other versions of Python or packages, so its "
                f"numbers may differ by rounding: {', '.join(other)}.",
                stacklevel=find_stack_level(),
            )
        state: dict[str, Any] = content["state"]
        return state

    def _check(self, path: Path, content: Any) -> None:
        """Raise ValueError if a file is incomplete or belongs to another run. The values of tensors are not read."""
        if not (isinstance(content, Mapping) and content.get("kind") == "checkpoint"):
            raise ValueError(f"{str(path)!r} is not a checkpoint of a run. Use a folder that holds only checkpoints.")
        require(path, content, "description", "versions", "state")
        number = file_format(path, content)
        require(path, content["description"], "module", "optimizer")
        require(path, content["description"]["module"], "tensors", "structure")
        if found := differences_of_runs(self.description, content["description"], number):
            raise ValueError(
                f"{str(path)!r} is of another run: {first_of(found)}. Call fit with the same arguments, or pass "
                f"another folder."
            )
        check_state(path, content)
        state, trained = content["state"], self.description["trained"]
        if found := misfits(state["optimizer"], trained, self.description["optimizer"]["type"]):
            raise ValueError(
                f"{str(path)!r} is of another run: {first_of(found)}. Freeze the same parameters as in that run "
                f"(requires_grad_), or pass another folder."
            )
        if missing := sorted(self.description["module"]["tensors"].keys() - state["tensors"].keys()):
            raise ValueError(
                f"{str(path)!r} is incomplete: the tensor {missing[0]!r} is missing. Use another copy of the file."
            )


def _position(path: Path) -> tuple[int, ...]:
    match = _NAME.fullmatch(path.name)
    return tuple(map(int, match.groups())) if match else ()


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
