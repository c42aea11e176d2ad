"""Files of a data set: where they lie, whether they are whole, and how to get them."""

import gzip
import hashlib
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

from torchvision.datasets.utils import download_url


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
        ValueError: If a gzipped file is torn or is none.
    """
    content = path.read_bytes()
    try:
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} is torn or not gzipped ({error}); delete it to have it downloaded again") from error


def check(content: bytes, sha1: str, path: Path) -> None:
    """Compares the checksum of uncompressed content.

    Raises:
        ValueError: If it is not the known one.
    """
    found = hashlib.sha1(content, usedforsecurity=False).hexdigest()
    if found != sha1:
        raise ValueError(
            f"{path} is not the file that it should be: its content has SHA-1 {found}, expected {sha1}; delete it to "
            f"have it downloaded again, or put the right file in its place"
        )
