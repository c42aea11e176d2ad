"""Files of data are checked before they are used, read without being unpacked, and never run."""

import gzip
import io
import os
import pickle
import re
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from pyrovae import data
from pyrovae.data import download

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
    with pytest.raises(ValueError, match=rf"{name} has the wrong content.*expected [0-9a-f]+\. .*Delete"):
        load(root=tmp_path)


def test_a_download_of_another_content_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(url: str, root: str, filename: str) -> None:
        (Path(root) / filename).write_bytes(zipped(**{"images_background/a/b/0.png": b"sent by someone else"}))

    monkeypatch.setattr(download, "download_url", fetch)
    with pytest.raises(ValueError, match=r"images_background.zip has the wrong content.*MD5"):
        data.omniglot(root=tmp_path)


def test_an_array_of_another_content_is_refused(tmp_path: Path) -> None:
    (tmp_path / "freyfaces.npz").write_bytes(saved(images=np.zeros((1965, 28, 20), np.uint8)))
    with pytest.raises(ValueError, match=r"freyfaces.npz has the wrong content"):
        data.freyfaces(root=tmp_path)
    (tmp_path / "binarized_mnist.npz").write_bytes(saved(train=np.zeros((50_000, 98), np.uint8)))
    with pytest.raises(ValueError, match=r"binarized_mnist.npz has the wrong content"):
        data.static_mnist(root=tmp_path)


def test_archives_leave_nothing_outside_or_inside_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "deep" / "data"
    root.mkdir(parents=True)
    evil = dict.fromkeys(("../../evil.png", str(tmp_path / "evil"), "images_background/../../../evil.png", "C:e"), b"x")
    content = zipped(**evil)
    (root / "images_background.zip").write_bytes(content)
    md5 = {"images_background": download.hashlib.md5(content).hexdigest()}
    monkeypatch.setattr("torchvision.datasets.Omniglot.zips_md5", md5)
    before = tree(tmp_path)
    with pytest.raises(ValueError):  # noqa: PT011  # the message depends on the drawing; only writing is tested here
        data.omniglot(root=root)
    assert tree(tmp_path) == before == {"deep", "deep/data", "deep/data/images_background.zip"}


@pytest.mark.parametrize("name", ["freyfaces.npz", "binarized_mnist.npz", "frey_rawface.mat"])
def test_pickles_are_not_loaded(name: str, tmp_path: Path) -> None:
    trap = np.array([Trap(tmp_path / "sprung")], dtype=object)
    pickle.loads(pickle.dumps(trap))
    assert (tmp_path / "sprung").exists()  # the trap works if it is unpickled
    (tmp_path / "sprung").rmdir()
    load = data.static_mnist if name.startswith("binarized") else data.freyfaces
    for content in (saved(images=trap, train=trap), pickle.dumps({"ff": trap, "images": trap})):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(
            ValueError, match=rf"{name} (is damaged, or is not an? (npz|MATLAB) file with an|has dtype object)"
        ):
            load(root=tmp_path)
        assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "array", [np.zeros((7, 98), np.int8), np.zeros((7, 98)), np.zeros(98, np.uint8), np.zeros((7, 97), np.uint8)]
)
def test_arrays_are_of_bytes_and_of_the_shape_that_they_should_have(array: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "binarized_mnist.npz").write_bytes(saved(train=array))
    with pytest.raises(ValueError, match=r"'train' of .* has dtype .* shape .*, expected uint8 and \(50000,"):
        data.static_mnist(root=tmp_path)


def test_objects_of_matlab_are_no_faces(tmp_path: Path) -> None:
    for array in (np.array([{"a": 1}], dtype=object), np.zeros((560, 1965)), np.zeros((560, 1966), np.uint8)):
        (tmp_path / "frey_rawface.mat").write_bytes(matlab(ff=array))
        with pytest.raises(ValueError, match=r"'ff' of .* has dtype (cell|struct|double|uint8) and shape"):
            data.freyfaces(root=tmp_path)


def test_rows_are_counted_before_they_are_read(tmp_path: Path) -> None:
    """A small file that holds a large array of zeros must not fill the memory."""
    script = """
        import resource, sys
        from pyrovae import data
        from pyrovae.data import download
        def refuse(url, folder, filename): raise OSError("no network")
        download.download_url = refuse
        import scipy.io, torchvision.datasets
        for name in sys.argv[2:]:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            try:
                (data.static_mnist if name == "binarized_mnist.npz" else data.freyfaces)(root=f"{sys.argv[1]}/{name}")
            except ValueError as error:
                print(error)
            print("growth", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
    """
    names = ("binarized_mnist.npz", "freyfaces.npz", "frey_rawface.mat")
    zeros = np.zeros((2**19, 98), np.uint8)
    for name in names:
        (tmp_path / name).mkdir()
        content = io.BytesIO()
        if name.endswith("npz"):
            np.savez_compressed(content, train=zeros, images=zeros)
        else:
            scipy.io.savemat(content, {"ff": zeros.T}, do_compression=True)
        (tmp_path / name / name).write_bytes(content.getvalue())
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path), *names]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.count("expected uint8") == 3
    growths = re.findall(r"^growth (\d+)$", printed, flags=re.MULTILINE)
    assert len(growths) == 3
    assert all(int(growth) < 20 for growth in growths)  # MB, where the zeros have 49


@pytest.mark.parametrize("name", ["freyfaces.npz", "frey_rawface.mat"])
@pytest.mark.parametrize("length", [0, 1, 100, 300])
def test_torn_archives_are_refused(name: str, length: int, tmp_path: Path) -> None:
    array = np.arange(1200, dtype=np.uint8)
    whole = saved(images=array) if name.endswith("npz") else matlab(ff=array)
    (tmp_path / name).write_bytes(whole[:length])
    with pytest.raises(ValueError, match=rf"{name} (is damaged, or is not|has dtype uint8 and shape \(1, 1200\))"):
        data.freyfaces(root=tmp_path)


def test_a_crafted_archive_cannot_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert download.LARGEST == 256 * 2**20
    monkeypatch.setattr(download, "LARGEST", 2**20)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(2**24)))
    with pytest.raises(
        ValueError, match=r"train-images-idx3-ubyte.gz holds more than 1 MiB, the limit for files of data sets"
    ):
        data.mnist(root=tmp_path)


def cifar_archive(content: bytes, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """An archive of CIFAR-10 whose six files have one content, with the checksums that belong to it."""
    archive, md5 = io.BytesIO(), download.hashlib.md5(content).hexdigest()
    names = [f"data_batch_{i}" for i in range(1, 6)]
    monkeypatch.setattr("torchvision.datasets.CIFAR10.train_list", [[name, md5] for name in names])
    monkeypatch.setattr("torchvision.datasets.CIFAR10.test_list", [["test_batch", md5]])
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name in (*names, "test_batch"):
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return archive.getvalue()


def test_pickles_of_cifar10_run_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = pickle.dumps({"data": Trap(tmp_path / "sprung"), "labels": [1]})
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(cifar_archive(content, monkeypatch))
    with pytest.raises(ValueError, match=r"requests the Python object posix.mkdir, which .* Delete the file."):
        data.cifar10(root=tmp_path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("unpacked", [False, True])
@pytest.mark.parametrize("protocol", [2, 4])
def test_cifar10(unpacked: bool, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3 * 32 * 32), np.uint8)
    content = pickle.dumps({"data": pixels, "labels": [3, 0, 9, 1], "filenames": ["a"] * 4}, protocol=protocol)
    archive = cifar_archive(content, monkeypatch)
    if unpacked:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(tmp_path, filter="data")
    else:
        (tmp_path / "cifar-10-python.tar.gz").write_bytes(archive)
    splits = data.cifar10(root=tmp_path)
    assert [tuple(part.shape) for part in splits] == [(18, 3, 32, 32), (2, 3, 32, 32), (4, 3, 32, 32)]
    np.testing.assert_array_equal((splits.test * 255).round().numpy().reshape(4, -1), pixels)
    assert splits.labels[0][:5].tolist() == [3, 0, 9, 1, 3]
    assert splits.labels[1].tolist() == [9, 1]
    evaluated = data.dequantize(splits.test)  # values are multiples of 1 / 255
    assert 0 < evaluated.min() < evaluated.max() < 1


@pytest.mark.parametrize("damage", ["torn", "a file is missing", "another content", "not an archive"])
def test_a_damaged_archive_of_cifar10_is_refused(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = cifar_archive(pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [1]}), monkeypatch)
    if damage == "torn":
        archive = archive[: len(archive) // 2]
    elif damage == "a file is missing":
        monkeypatch.setattr("torchvision.datasets.CIFAR10.test_list", [["another", "0" * 32]])
    elif damage == "another content":
        monkeypatch.setattr("torchvision.datasets.CIFAR10.test_list", [["test_batch", "0" * 32]])
    else:
        archive = gzip.compress(b"not an archive")
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(archive)
    with pytest.raises(ValueError, match=r"(is damaged|has the wrong content).*no network.*Delete the file"):
        data.cifar10(root=tmp_path)


@pytest.mark.parametrize("folder", [".", "svhn"])
def test_svhn(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 20), np.uint8)
    content = matlab(X=pixels, y=np.array([[10], [1], [2], [9]] * 5, np.uint8))
    md5 = download.hashlib.md5(content).hexdigest()
    names = {split: ["http://nowhere", f"{split}_32x32.mat", md5] for split in ("train", "test")}
    monkeypatch.setattr("torchvision.datasets.SVHN.split_list", names)
    (tmp_path / folder).mkdir(exist_ok=True)
    for split in ("train", "test"):
        (tmp_path / folder / f"{split}_32x32.mat").write_bytes(content)
    splits = data.svhn(root=tmp_path)
    assert [tuple(part.shape) for part in splits] == [(18, 3, 32, 32), (2, 3, 32, 32), (20, 3, 32, 32)]
    np.testing.assert_array_equal((splits.test * 255).round()[7], pixels[..., 7].transpose(2, 0, 1))
    assert splits.labels[2][:4].tolist() == [0, 1, 2, 9]
    (tmp_path / folder / "test_32x32.mat").write_bytes(content[:-5])
    with pytest.raises(ValueError, match=r"test_32x32.mat has the wrong content.*MD5.*no network"):
        data.svhn(root=tmp_path)
