"""Functions that find the files of a data set, check their content, and download missing files.

Nothing in a file is executed, because this module loads no pickles. It reads archives in memory, and never unpacks them
to disk.
"""

import gzip
import hashlib
import io
import logging
import os
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import IO, TypeVar

import numpy as np

logger = logging.getLogger(__name__)

LARGEST = 2**28  # bytes; files of data sets are smaller, so a crafted archive cannot fill the memory
_TIMEOUT = 60.0  # seconds without an answer after which a download fails

T = TypeVar("T")


def data_root(root: str | os.PathLike[str] | None) -> Path:
    """Return ``root`` if given, else the environment variable ``PYROVAE_DATA`` if set, else ``~/.cache/pyrovae``."""
    return Path(root or os.environ.get("PYROVAE_DATA") or "~/.cache/pyrovae").expanduser()


def find(root: Path, folders: Sequence[str], name: str) -> Iterator[Path]:
    """Yield the paths of the file ``name``, gzipped or not, in the given folders of ``root``."""
    candidates = (root / folder / file for folder in folders for file in (name, f"{name}.gz"))
    return (path for path in candidates if path.is_file())


def fetch(root: Path, folders: Sequence[str], name: str, urls: Sequence[str], parse: Callable[[Path], T]) -> T:
    """Return the parsed content of a file. If no undamaged copy is on disk, download the file.

    A download goes into ``folders[0]``, and has a temporary name until it is parsed. An interrupted download therefore
    leaves no damaged file, and several processes may download at the same time.

    Args:
        root: Folder of the data.
        folders: Subfolders of ``root`` to search, in this order.
        name: Name of the file, without the suffix ``.gz`` of a gzipped file.
        urls: Addresses to try in turn.
        parse: Function that reads a file and checks its content; it raises ValueError if the content is wrong.

    Returns:
        The value that ``parse`` returns.

    Raises:
        FileNotFoundError: If the file is in no folder and cannot be downloaded.
        ValueError: If the content is wrong, both on disk and at every address.
    """
    damage, failures = "", []
    for path in find(root, folders, name):
        try:
            return parse(path)
        except ValueError as error:
            damage = damage or str(error)
            logger.warning("%s The file is downloaded again.", error)
    for url in urls:
        try:
            return _download(url, root / folders[0], parse)
        except (OSError, HTTPException) as error:  # no network, no such address, or a folder that is not writable
            failures.append(f"{url}: {error}")
        except ValueError as error:
            damage = damage or str(error)
    reasons = "; ".join(failures) or "see the previous message"
    if damage:
        raise ValueError(
            f"{damage} A new download failed ({reasons}). Delete the file, or replace it by the right file."
        )
    raise FileNotFoundError(
        f"{name} is not in {root} and could not be downloaded ({reasons}). Put the file, gzipped or not, into "
        f"{root / folders[0]}. If another folder holds your data, set root= or PYROVAE_DATA to its path."
    )


def download_url(url: str, folder: str, filename: str) -> None:
    """Download the file at an address into a folder.

    Raises:
        OSError: If the address does not answer, or the folder cannot be written.
        ValueError: If the file is larger than 256 MiB, the limit for files of data sets.
    """
    request = urllib.request.Request(url, headers={"User-Agent": "pyrovae"})
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
        content = response.read(LARGEST + 1)
    _check_size(len(content), Path(filename))
    (Path(folder) / filename).write_bytes(content)


def read(path: Path) -> bytes:
    """Return the uncompressed bytes of a file.

    Raises:
        ValueError: If a file with the suffix ``.gz`` is damaged or not gzipped, or if the content is larger than 256
            MiB.
    """
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.GzipFile(fileobj=io.BytesIO(content)).read(LARGEST + 1)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path} is damaged or not gzipped ({error}).") from error
    _check_size(len(content), path)
    return content


def checked(path: Path, expected: str, algorithm: str = "SHA-1") -> bytes:
    """Return the uncompressed bytes of a file after a check of their checksum; see :func:`check`."""
    return check(read(path), expected, path, algorithm)


def check(content: bytes, expected: str, path: Path, algorithm: str = "SHA-1") -> bytes:
    """Return the given content if its checksum is as expected; ``algorithm`` is ``"SHA-1"`` or ``"MD5"``.

    Raises:
        ValueError: If the checksum of the content differs from the expected checksum.
    """
    found = hashlib.new(algorithm.replace("-", ""), content, usedforsecurity=False).hexdigest()
    if found != expected:
        raise ValueError(f"{path} has the wrong content: its {algorithm} is {found}, expected {expected}.")
    return content


def array_of_npz(path: Path, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Read an array of bytes from an ``.npz`` file, after a check of the dtype and shape in the array's header.

    Raises:
        ValueError: If the file is damaged or not an ``.npz`` file, or has no array of bytes with the given name and
            shape.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive, archive.open(f"{name}.npy") as stream:
            found, fortran, dtype = _npy_header(stream)
            content = stream.read(int(np.prod(shape))) if found == shape and dtype == np.uint8 else b""
    except Exception as error:  # a damaged archive fails in many ways
        raise ValueError(f"{path} is damaged, or is not an npz file with an array {name!r} ({error}).") from error
    _check_array(name, path, dtype, found, shape)
    return np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")


def array_of_mat(path: Path, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Read an array of bytes from a MATLAB file, after a check of the dtype and shape in the array's header.

    Raises:
        ValueError: If the file is damaged or not a MATLAB file, or has no array of bytes with the given name and shape.
    """
    import scipy.io

    content = read(path)
    try:
        headers = {header[0]: header[1:] for header in scipy.io.whosmat(io.BytesIO(content))}
        found, dtype = headers[name]
        right = (found, dtype) == (shape, "uint8")
        array = scipy.io.loadmat(io.BytesIO(content), variable_names=[name])[name] if right else None
    except Exception as error:  # a damaged file fails in many ways
        raise ValueError(f"{path} is damaged, or is not a MATLAB file with an array {name!r} ({error}).") from error
    _check_array(name, path, dtype, found, shape)
    return np.asarray(array)


def _download(url: str, folder: Path, parse: Callable[[Path], T]) -> T:
    """Download a file under a temporary name, parse it, rename it if the parser accepts it, and return the result."""
    logger.info("downloading %s into %s", url, folder)
    folder.mkdir(parents=True, exist_ok=True)
    name = Path(url).name
    with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as temporary:  # on the same disk as the target
        download_url(url, temporary, name)
        parsed = parse(Path(temporary) / name)
        (Path(temporary) / name).replace(folder / name)
    return parsed


def _npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Return shape, Fortran order and dtype of an array in NumPy's format."""
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    return readers[version](stream)


def _check_array(name: str, path: Path, dtype: object, found: tuple[int, ...], shape: tuple[int, ...]) -> None:
    if str(dtype) != "uint8" or found != shape:
        raise ValueError(
            f"The array {name!r} of {path} has dtype {dtype} and shape {found}, expected uint8 and {shape}."
        )


def _check_size(size: int, path: Path) -> None:
    if size > LARGEST:
        raise ValueError(f"{path} holds more than {LARGEST >> 20} MiB, the limit for files of data sets.")
