"""Files of tensors, which are written atomically, protected by a checksum, and read without running code.

A file begins with the line ``pyrovae archive 1 <SHA-256 of the rest>``. The rest is the output of ``torch.save`` for
dictionaries, lists, numbers, strings and tensors. ``torch.load(weights_only=True)`` reads the file and creates no other
objects. The safetensors format holds only tensors, so it cannot hold the state of an optimizer or a generator. The
checksum detects accidental damage, which ``torch.load`` may overlook. It does not detect a deliberate change, whose
author can correct the checksum. Even a file with a deliberate change runs no code when it is read.
"""

import hashlib
import io
import os
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

_MAGIC = b"pyrovae archive "
_FORMAT = b"1"
_TEMPORARY = ".partial"
_HEADER_SIZE = 128  # bytes; files with a longer first line were not written by pyrovae
_CHUNK = 2**20


class ArchiveError(ValueError):
    """A file cannot be read, or its content cannot be trusted."""


def as_path(path: str | os.PathLike[str], argument: str) -> Path:
    """Return a user's path with ``~`` expanded.

    Args:
        path: Path that the user has passed.
        argument: Name of the argument in error messages.

    Raises:
        TypeError: If the value is not a path.
        ValueError: If the path is empty.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"{argument} must be a path, got {path!r}. Pass a string or a pathlib.Path.")
    if not os.fspath(path).strip():
        raise ValueError(f"{argument} is an empty path. Pass '.' for the current folder.")
    return Path(path).expanduser()


def write(path: Path, content: Any) -> None:
    """Write a file atomically, and wait until it is on the disk.

    NumPy scalars are stored as Python numbers.

    Raises:
        OSError: If the file cannot be written. A previous file of that name is then unchanged.
    """
    buffer = io.BytesIO()
    numbers = tree_map_only(np.generic, np.generic.item, content)
    torch.save(tree_map_only(Tensor, _compact, numbers), buffer)
    payload = buffer.getbuffer()
    header = b"%s%s %s\n" % (_MAGIC, _FORMAT, hashlib.sha256(payload).hexdigest().encode())
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY}")
    try:
        with open(temporary, "wb") as file:  # noqa: PTH123  # tests replace this function by a slow one
            file.write(header)
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)  # noqa: PTH105  # tests replace this function
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def read(path: Path, check: Callable[[Any], None] | None = None) -> Any:
    """Read a file that :func:`write` has written, with its tensors on the CPU.

    The tensors never occupy more memory than the file has bytes. A file with compressed or expanded tensors, which
    would need more memory, raises an error before this memory is allocated.

    Args:
        path: Path of the file.
        check: Function that is called with the content before the values of the tensors are read. The tensors in this
            content are on the meta device, with a shape and a dtype but without values. The function raises an error to
            reject a file.

    Raises:
        OSError: If the file does not exist or cannot be read.
        ArchiveError: If the file is of another kind, is damaged, or holds objects other than tensors and plain values.
    """
    with path.open("rb") as file:
        header = file.readline(_HEADER_SIZE)
        _check_header(path, header)
        start = len(header)
        digest = hashlib.sha256()
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
        if digest.hexdigest().encode() != header.split(b" ")[3].rstrip(b"\n"):
            raise ArchiveError(
                f"{str(path)!r} is cut off or damaged: its checksum is wrong. Use another copy of the file."
            )
        size = file.tell() - start
        with io.BufferedReader(_Payload(file.fileno(), start)) as payload:
            _check_size(path, payload, size)
            if check is not None:
                check(_load(path, payload, "meta"))
            return _load(path, payload, "cpu")


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files of killed processes from a folder."""
    for path in folder.glob(f".*{_TEMPORARY}"):
        path.unlink(missing_ok=True)


class _Payload(io.FileIO):
    """File object for the part of an open file after its first line."""

    def __init__(self, descriptor: int, start: int) -> None:
        super().__init__(descriptor, closefd=False)
        self.start = start
        self.seek(0)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return super().seek(offset + (self.start if whence == os.SEEK_SET else 0), whence) - self.start

    def tell(self) -> int:
        return super().tell() - self.start


def _check_header(path: Path, header: bytes) -> None:
    if not header.startswith(_MAGIC):
        raise ArchiveError(f"{str(path)!r} was not written by pyrovae, or its beginning is damaged.")
    version = header.split(b" ")[2]
    if version != _FORMAT:
        raise ArchiveError(
            f"{str(path)!r} has format {version.decode(errors='replace')!r}, but this version of pyrovae reads format "
            f"{_FORMAT.decode()!r}. Use the version of pyrovae that wrote the file."
        )
    if len(header.split(b" ")) != 4 or not header.endswith(b"\n"):
        raise ArchiveError(f"{str(path)!r} is cut off or damaged in its first line. Use another copy of the file.")


def _check_size(path: Path, payload: BinaryIO, size: int) -> None:
    """Raise ArchiveError if the zip records would need more memory than the file has bytes.

    This happens if records are compressed or overlap.
    """
    try:
        with zipfile.ZipFile(payload) as records:
            found = sum(record.file_size for record in records.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise _not_plain(path) from error
    if found > size:
        raise ArchiveError(
            f"{str(path)!r} has {size} bytes but would occupy {found} bytes in memory. pyrovae does not write such "
            f"files. Get the file from a source that you trust."
        )


def _load(path: Path, payload: BinaryIO, device: str) -> Any:
    payload.seek(0)
    try:
        content = torch.load(payload, map_location=device, weights_only=True)
    except Exception as error:
        raise _not_plain(path) from error
    for tensor in tree_leaves(content):
        if isinstance(tensor, Tensor) and tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
            raise ArchiveError(
                f"{str(path)!r} holds a tensor of shape {tuple(tensor.shape)} in only "
                f"{tensor.untyped_storage().nbytes()} bytes, too few for its entries. pyrovae does not write such "
                f"files. Get the file from a source that you trust."
            )
    return content


def _not_plain(path: Path) -> ArchiveError:
    return ArchiveError(
        f"{str(path)!r} holds objects other than tensors and plain values. It was not read, because reading it could "
        f"run code. Get the file from a source that you trust."
    )


def _compact(tensor: Tensor) -> Tensor:
    """Return a tensor on the CPU, in a storage without entries of other tensors.

    ``torch.save`` would also write the other entries of a larger storage.
    """
    tensor = tensor.detach().cpu()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _sync(folder: Path) -> None:
    """On a POSIX system, write a folder's list of files to the disk; elsewhere, do nothing."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
