"""Files of a data set: where they lie, whether they are whole, and how to get them.

Nothing in a file is run: no pickle is loaded, and archives are read in memory, never unpacked to disk.
"""

import gzip
import hashlib
import io
import logging
import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.io
from torchvision.datasets.utils import download_url

logger = logging.getLogger(__name__)

LARGEST = 2**28  # bytes; no file of a data set holds more, so a crafted archive cannot fill the memory


def data_root(root: str | os.PathLike[str] | None) -> Path:
    """The folder given, else ``PYROVAE_DATA``, else ``~/.cache/pyrovae``."""
    return Path(root or os.environ.get("PYROVAE_DATA") or "~/.cache/pyrovae").expanduser()


def find(root: Path, folders: Sequence[str], name: str) -> Path | None:
    """The file ``name``, gzipped or not, in the first of some folders of ``root`` that has it."""
    candidates = (root / folder / file for folder in folders for file in (name, f"{name}.gz"))
    return next((path for path in candidates if path.is_file()), None)


def fetch(root: Path, folders: Sequence[str], name: str, urls: Sequence[str]) -> Path:
    """The file ``name``, downloaded into the first of the folders if it is in none of them.

    Raises:
        FileNotFoundError: If it is in no folder and no address gives it.
    """
    if (path := find(root, folders, name)) is not None:
        return path
    failures = []
    for url in urls:
        logger.info("downloading %s into %s", url, root / folders[0])
        try:
            download_url(url, str(root / folders[0]), filename=Path(url).name)
        except (OSError, RuntimeError) as error:  # no network, no such address, an unwritable folder
            failures.append(f"{url}: {error}")
        else:
            return root / folders[0] / Path(url).name
    raise FileNotFoundError(
        f"{name} is not in {root} and could not be downloaded ({'; '.join(failures)}); put it, gzipped or not, into "
        f"{root / folders[0]}, or name the folder that holds your data with root= or PYROVAE_DATA"
    )


def read(path: Path) -> bytes:
    """The uncompressed bytes of a file.

    Raises:
        ValueError: If a gzipped file is torn or is none, or there are more bytes than any data set has.
    """
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.GzipFile(fileobj=io.BytesIO(content)).read(LARGEST + 1)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(
                f"{path} is torn or not gzipped ({error}); delete it to have it downloaded again"
            ) from error
    _check_size(len(content), path)
    return content


def check(content: bytes, expected: str, path: Path, algorithm: str = "SHA-1") -> None:
    """Compares the checksum of uncompressed content; ``algorithm`` is ``"SHA-1"`` or ``"MD5"``.

    Raises:
        ValueError: If it is not the known one.
    """
    found = hashlib.new(algorithm.replace("-", ""), content, usedforsecurity=False).hexdigest()
    if found != expected:
        raise ValueError(
            f"{path} is not the file that it should be: its content has {algorithm} {found}, expected "
            f"{expected}; delete it to have it downloaded again, or put the right file in its place"
        )


def array_of_npz(content: bytes, name: str, row: tuple[int, ...], path: Path) -> np.ndarray:
    """An array of bytes, shape ``(N, *row)``, out of NumPy's archive of arrays.

    Raises:
        ValueError: If it is no such archive, is torn, or holds no array of bytes of that name and shape.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            _check_size(sum(member.file_size for member in archive.infolist()), path)
            member = io.BytesIO(archive.read(f"{name}.npy"))
        array = np.lib.format.read_array(member, allow_pickle=False)
    except Exception as error:  # a torn archive fails in many ways
        raise ValueError(f"{path} is torn, or no npz file with an array {name!r} ({error})") from error
    if array.dtype != np.uint8 or array.shape[1:] != row:
        raise ValueError(
            f"the array {name!r} of {path} is of {array.dtype}, shape {array.shape}; it should be of uint8, with rows "
            f"of shape {row}"
        )
    return array


def array_of_mat(content: bytes, name: str, path: Path) -> np.ndarray:
    """An array of bytes out of a MATLAB file.

    Raises:
        ValueError: If it is no such file, is torn, or holds no array of bytes of that name.
    """
    try:
        array = scipy.io.loadmat(io.BytesIO(content), variable_names=[name])[name]
    except Exception as error:  # a torn file fails in many ways
        raise ValueError(f"{path} is torn, or no MATLAB file with an array {name!r} ({error})") from error
    if array.dtype != np.uint8:
        raise ValueError(f"the array {name!r} of {path} is of {array.dtype}, and should be of uint8")
    return array


def _check_size(size: int, path: Path) -> None:
    if size > LARGEST:
        raise ValueError(f"{path} holds more than {LARGEST >> 20} MiB, as no file of a data set does; delete it")
