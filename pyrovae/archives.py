"""Files of tensors: written whole or not at all, known by a checksum, and read without running code.

A file is one line, ``pyrovae archive 1 <SHA-256 of the rest>``, and what ``torch.save`` makes of dictionaries, lists,
numbers, strings and tensors. It is read by ``torch.load(weights_only=True)``, which makes nothing else; a file of
tensors alone, as safetensors are, would have no place for the state of an optimizer or of a generator. The checksum
tells of accidents, over which ``torch.load`` may read. Whoever changes a file on purpose can correct it too, and still
runs no code.
"""

import hashlib
import io
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

_FIRST_WORDS = b"pyrovae archive "
_FORMAT = b"1"
_TEMPORARY = ".partial"


class ArchiveError(ValueError):
    """A file cannot be read, or not be trusted."""


def write(path: Path, content: Any) -> None:
    """Writes a file that is there whole or not at all, whatever happens meanwhile, and on the disk afterwards.

    Raises:
        OSError: If it cannot be written; what was at its place is still there.
    """
    buffer = io.BytesIO()
    torch.save(tree_map_only(Tensor, _compact, content), buffer)
    payload = buffer.getbuffer()
    header = b"%s%s %s\n" % (_FIRST_WORDS, _FORMAT, hashlib.sha256(payload).hexdigest().encode())
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY}")
    try:
        with open(temporary, "wb") as file:  # noqa: PTH123  # a test puts a slow one in its place
            file.write(header)
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)  # noqa: PTH105  # likewise
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def read(path: Path) -> Any:
    """Reads a file that :func:`write` wrote, its tensors to the CPU.

    Raises:
        OSError: If there is no such file.
        ArchiveError: If it is another kind of file, damaged, or holds anything but tensors and plain values.
    """
    header, _, payload = path.read_bytes().partition(b"\n")
    if not header.startswith(_FIRST_WORDS):
        raise ArchiveError(f"{str(path)!r} is not a file that pyrovae wrote, or its beginning is damaged")
    version, _, checksum = header[len(_FIRST_WORDS) :].partition(b" ")
    if version != _FORMAT:
        raise ArchiveError(f"{str(path)!r} has format {version!r}, and this version of pyrovae reads {_FORMAT!r} alone")
    if hashlib.sha256(payload).hexdigest().encode() != checksum:
        raise ArchiveError(f"{str(path)!r} is cut off or damaged: its checksum does not fit what it holds")
    try:
        return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:
        raise ArchiveError(
            f"{str(path)!r} holds something else than tensors and plain values, and was not read, since that could "
            f"run code; take it from where you trust it"
        ) from error


def remove_unfinished(folder: Path) -> None:
    """Removes what writers that were killed have left in a folder."""
    for path in folder.glob(f".*{_TEMPORARY}"):
        path.unlink(missing_ok=True)


def _compact(tensor: Tensor) -> Tensor:
    """A tensor on the CPU without the rest of the memory that it may be a part of, which would be written too."""
    tensor = tensor.detach().cpu()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _sync(folder: Path) -> None:
    """Waits until the names of a folder's files are on the disk; only a POSIX system lets one ask for it."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
