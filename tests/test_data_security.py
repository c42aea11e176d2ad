"""Files of data are checked before they are used, read without being unpacked, and never run."""

import gzip
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from pyrovae import data
from pyrovae.data import download, images

Load = Callable[..., data.Splits]


class Trap:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder),)


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def zipped(**members: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return content.getvalue()


def saved(**arrays: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def matlab(**arrays: np.ndarray) -> bytes:
    content = io.BytesIO()
    scipy.io.savemat(content, arrays)
    return content.getvalue()


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str, *_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(download, "download_url", refuse)


@pytest.mark.parametrize(
    ("load", "name"),
    [
        (data.mnist, "train-images-idx3-ubyte"),
        (data.fashion_mnist, "train-images-idx3-ubyte.gz"),
        (data.omniglot, "images_background.zip"),
        (data.static_mnist, "binarized_mnist_train.amat"),
        (data.caltech101_silhouettes, "caltech101_silhouettes_28_split1.mat"),
    ],
)
def test_a_file_of_another_content_is_refused_before_it_is_read(load: Load, name: str, tmp_path: Path) -> None:
    content = b"another file"
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(ValueError, match=rf"{name} is not the file that it should be.*expected [0-9a-f]+; delete it"):
        load(root=tmp_path)


def test_a_download_of_another_content_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(url: str, root: str, filename: str) -> None:
        Path(root).mkdir(parents=True, exist_ok=True)
        (Path(root) / filename).write_bytes(zipped(**{"images_background/a/b/0.png": b"sent by someone else"}))

    monkeypatch.setattr(download, "download_url", fetch)
    with pytest.raises(ValueError, match=r"images_background.zip is not the file that it should be.*MD5"):
        data.omniglot(root=tmp_path)


def test_an_array_of_another_content_is_refused(tmp_path: Path) -> None:
    (tmp_path / "freyfaces.npz").write_bytes(saved(images=np.zeros((1965, 28, 20), np.uint8)))
    with pytest.raises(ValueError, match=r"freyfaces.npz is not the file that it should be"):
        data.freyfaces(root=tmp_path)
    (tmp_path / "binarized_mnist.npz").write_bytes(saved(train=np.zeros((5, 98), np.uint8)))
    with pytest.raises(ValueError, match=r"binarized_mnist.npz is not the file that it should be"):
        data.static_mnist(root=tmp_path)


def test_archives_leave_nothing_outside_or_inside_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "deep" / "data"
    root.mkdir(parents=True)
    evil = dict.fromkeys(("../../evil.png", str(tmp_path / "evil"), "images_background/../../../evil.png", "C:e"), b"x")
    content = zipped(**evil)
    (root / "images_background.zip").write_bytes(content)
    monkeypatch.setattr(images.Omniglot, "zips_md5", {"images_background": download.hashlib.md5(content).hexdigest()})
    before = tree(tmp_path)
    with pytest.raises(ValueError):  # noqa: PT011  # whatever is wrong with such drawings, nothing is written
        data.omniglot(root=root)
    assert tree(tmp_path) == before == {"deep", "deep/data", "deep/data/images_background.zip"}


@pytest.mark.parametrize("name", ["freyfaces.npz", "binarized_mnist.npz", "frey_rawface.mat"])
def test_pickles_are_not_loaded(name: str, tmp_path: Path) -> None:
    trap = np.array([Trap(tmp_path / "sprung")], dtype=object)
    pickle.loads(pickle.dumps(trap))
    assert (tmp_path / "sprung").exists()  # it works
    (tmp_path / "sprung").rmdir()
    load = data.static_mnist if name.startswith("binarized") else data.freyfaces
    for content in (saved(images=trap, train=trap), pickle.dumps({"ff": trap, "images": trap})):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} is torn, or no (npz|MATLAB) file with an array"):
            load(root=tmp_path)
        assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "array", [np.zeros((7, 98), np.int8), np.zeros((7, 98)), np.zeros(98, np.uint8), np.zeros((7, 97), np.uint8)]
)
def test_arrays_are_of_bytes_and_of_the_shape_that_they_should_have(array: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "binarized_mnist.npz").write_bytes(saved(train=array))
    with pytest.raises(
        ValueError, match=r"'train' of .* is of .*, shape .*; it should be of uint8, with rows of shape"
    ):
        data.static_mnist(root=tmp_path)


def test_objects_of_matlab_are_no_faces(tmp_path: Path) -> None:
    for array in (np.array([{"a": 1}], dtype=object), np.zeros((560, 1965))):
        (tmp_path / "frey_rawface.mat").write_bytes(matlab(ff=array))
        with pytest.raises(ValueError, match=r"'ff' of .* is of (object|float64|\[.*\]), and should be of uint8"):
            data.freyfaces(root=tmp_path)


@pytest.mark.parametrize("name", ["freyfaces.npz", "frey_rawface.mat"])
@pytest.mark.parametrize("length", [0, 1, 100, 300])
def test_torn_archives_are_refused(name: str, length: int, tmp_path: Path) -> None:
    array = np.arange(1200, dtype=np.uint8)
    whole = saved(images=array) if name.endswith("npz") else matlab(ff=array)
    (tmp_path / name).write_bytes(whole[:length])
    with pytest.raises(ValueError, match=rf"{name} is torn, or no"):
        data.freyfaces(root=tmp_path)


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte.gz", "freyfaces.npz"])
def test_a_crafted_archive_cannot_fill_the_memory(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "LARGEST", 2**20)
    bomb = bytes(2**24)
    (tmp_path / name).write_bytes(gzip.compress(bomb) if name.endswith("gz") else zipped(**{"images.npy": bomb}))
    with pytest.raises(ValueError, match=rf"{name} .*holds more than 1 MiB, as no file of a data set does; delete it"):
        (data.mnist if name.endswith("gz") else data.freyfaces)(root=tmp_path)
