"""A folder with the last two checkpoints of a run, and which of them a run goes on from."""

import logging
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

from pyrovae import archives
from pyrovae.training.description import Description, differences, first_of, versions

logger = logging.getLogger(__name__)

_NAME = re.compile(r"checkpoint-(\d+)-(\d+)\.pt")
_KEPT = 2


class CheckpointError(OSError):
    """A checkpoint could not be written.

    Attributes:
        history: Of the run until then; None if it had not begun.
    """

    history: Any = None


class Checkpoints:
    """The checkpoints of one run: ``checkpoint-<epochs>-<steps of the next>.pt``.

    Args:
        folder: Where they are; made if it is not there.
        every: How many epochs lie between two of them.
        description: What is trained, and how: a checkpoint must have been made of the same.
        changeable: What else is to be known of a run, and may change.

    Attributes:
        newest: The one that was written or read last.

    Raises:
        CheckpointError: If there can be no such folder.
    """

    def __init__(self, folder: str | Path, every: int, description: Description, changeable: Description) -> None:
        self.folder, self.every = Path(folder), every
        self.description, self.changeable = description, changeable
        self.newest: Path | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            archives.remove_unfinished(self.folder)
        except OSError as error:
            raise CheckpointError(
                f"there can be no checkpoints in {str(self.folder)!r} ({_reason(error)}); give a folder that can be "
                f"written to"
            ) from error

    def latest(self) -> dict[str, Any] | None:
        """Reads the newest checkpoint; one that cannot be used is set aside, and the next one taken instead.

        Raises:
            ValueError: If there are some, and none can be used.
        """
        refused: dict[Path, str] = {}
        for path in sorted(self._paths(), key=_position, reverse=True):
            try:
                state = self._read(path)
            except (OSError, ValueError) as error:
                refused[path] = str(error)
                continue
            for other, reason in refused.items():
                aside = other.with_name(f"{other.name}.refused")
                other.rename(aside)
                warnings.warn(f"{reason}; going on from {path.name!r}, the last good one", stacklevel=5)
            self.newest = path
            logger.info("going on from %s", path)
            return state
        if refused:
            raise ValueError("; ".join(refused.values()))
        return None

    def save(self, state: dict[str, Any]) -> None:
        """Writes a checkpoint, and removes those before the previous one.

        Raises:
            CheckpointError: If it cannot be written.
        """
        progress = state["progress"]
        path = self.folder / f"checkpoint-{progress['epoch']:06d}-{progress['step']:06d}.pt"
        content = {
            "kind": "checkpoint",
            "description": self.description,
            "changeable": self.changeable,
            "versions": versions(),
            "state": state,
        }
        is_first = self.newest is None
        try:
            archives.write(path, content)
            if is_first:  # so that a state that cannot be read is known before it costs anything
                archives.read(path)
        except (archives.ArchiveError, pickle.PicklingError, AttributeError) as error:
            path.unlink(missing_ok=True)
            raise TypeError(
                "the state of the optimizer or of its schedule holds something else than tensors, numbers, strings, "
                "lists and dictionaries, which a checkpoint cannot keep; use one without, or no checkpoint"
            ) from error
        except OSError as error:
            raise CheckpointError(
                f"the checkpoint {str(path)!r} could not be written ({_reason(error)}); "
                + ("there is none yet" if is_first else f"{self.newest} is whole, and the run can go on from it")
            ) from error
        self.newest = path
        logger.debug("wrote %s", path)
        for old in sorted(self._paths(), key=_position)[:-_KEPT]:
            old.unlink(missing_ok=True)

    def _paths(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if _NAME.fullmatch(path.name)]

    def _read(self, path: Path) -> dict[str, Any]:
        content = archives.read(path)
        if not (isinstance(content, dict) and content.get("kind") == "checkpoint"):
            raise ValueError(f"{str(path)!r} is not a checkpoint of a run")
        if found := differences(self.description, content["description"]):
            raise ValueError(
                f"{str(path)!r} is of another run: {first_of(found)}; call fit as it was called then, or "
                f"give it another folder"
            )
        if other := differences(versions(), content["versions"]):
            warnings.warn(
                f"{str(path)!r} goes on with other versions, so that numbers may differ by rounding: "
                f"{', '.join(other)}",
                stacklevel=6,
            )
        state: dict[str, Any] = content["state"]
        return state


def _position(path: Path) -> tuple[int, ...]:
    match = _NAME.fullmatch(path.name)
    return tuple(map(int, match.groups())) if match else ()


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
