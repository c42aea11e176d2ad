"""Data of any kind give the same batches, checksums and errors, and files are not read into memory as a whole."""

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Subset,
    TensorDataset,
    random_split,
)

from pyrovae.arguments import fingerprint
from pyrovae.data.arrays import Arrays
from pyrovae.data.datasets import Items
from pyrovae.data.sources import Source, as_source
from tests.data.examples import KINDS, Flow, Rows, mapped


@pytest.fixture
def x() -> Tensor:
    return torch.randn(23, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_data(kind: str, x: Tensor, tmp_path: Path) -> None:
    source = as_source("train", KINDS[kind](x, tmp_path))
    assert isinstance(source, Source)
    assert len(source) == 23
    source.check()
    order = torch.randperm(23)
    for found, expected in (
        (source.batch(order[:7]), x[order[:7]]),
        (source.slice(20, 30), x[20:]),
        (map(torch.cat, zip(*source.batches(5), strict=True)), x),
        (map(torch.cat, zip(*source.batches(5, order[:11]), strict=True)), x[order[:11]]),
    ):
        (tensor,) = found
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, expected)
    assert [len(batch[0]) for batch in source.batches(5)] == [5, 5, 5, 5, 3]
    assert source.fingerprint() == fingerprint((x,))


INTEGERS: dict[str, Callable[[np.ndarray, Path], Any]] = {
    "array": lambda pixels, _: pixels,
    "memmap": lambda pixels, folder: mapped(folder, pixels),
    "Dataset": lambda pixels, _: Rows(pixels),
    "Dataset of images": lambda pixels, _: Rows([Image.fromarray(image.transpose(1, 2, 0)) for image in pixels]),
}


@pytest.mark.parametrize("kind", INTEGERS)
def test_bytes_stay_bytes(kind: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 3, 4, 5), np.uint8)
    source = as_source("train", INTEGERS[kind](pixels, tmp_path))
    source.check()
    (batch,) = source.batch(torch.tensor([6, 0]))
    assert batch.dtype == torch.uint8
    assert torch.equal(batch, torch.from_numpy(pixels[[6, 0]]))
    assert source.fingerprint() == fingerprint((torch.from_numpy(pixels),))


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (np.int8, torch.int8),
        (np.int64, torch.int64),
        (np.bool_, torch.bool),
        (np.uint16, torch.int32),
        (np.uint32, torch.int64),
        (np.uint64, torch.int64),
        (np.float16, torch.float32),
        (np.float64, torch.float32),
    ],
)
def test_dtypes(dtype: type, expected: torch.dtype, tmp_path: Path) -> None:
    array = np.array([0, 1, 1], dtype)
    for data in (array, mapped(tmp_path, array), Rows(array), pd.Series(array)):
        (batch,) = as_source("x", data).batch(torch.tensor([1]))
        assert batch.dtype == expected
        assert batch == 1


def test_arrays_get_the_default_dtype_and_tensors_keep_theirs() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        (array,) = as_source("x", np.zeros(2, np.float32)).slice(0, 2)
        (tensor,) = as_source("x", torch.zeros(2, dtype=torch.float32)).slice(0, 2)
        (number,) = as_source("x", Rows([0.5, 1.5])).slice(0, 2)
    finally:
        torch.set_default_dtype(torch.float32)
    assert (array.dtype, tensor.dtype, number.dtype) == (torch.float64, torch.float32, torch.float64)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "1", "P"])
def test_images_of_pil(mode: str) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
    image = Image.fromarray(colours).convert(mode)
    x, y = as_source("train", Rows([image, image], [3, 4])).slice(0, 2)
    assert x.dtype == torch.uint8
    assert x.shape == (2, {"L": 1, "1": 1, "RGBA": 4}.get(mode, 3), 6, 5)
    assert y.tolist() == [3, 4]
    if mode == "RGB":
        assert torch.equal(x[0], torch.from_numpy(colours).permute(2, 0, 1))


def test_a_data_set_of_torchvision(tmp_path: Path) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    transforms = pytest.importorskip("torchvision.transforms")
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        Image.fromarray(np.full((6, 5, 3), 51, np.uint8)).save(tmp_path / label / "0.png")
    x, y = as_source("train", datasets.ImageFolder(tmp_path)).slice(0, 2)
    assert (x == 51).all()
    assert (x.shape, y.tolist()) == ((2, 3, 6, 5), [0, 1])
    floats, _ = as_source("train", datasets.ImageFolder(tmp_path, transforms.ToTensor())).slice(0, 2)
    assert torch.equal(floats, x / 255)


@pytest.mark.parametrize(
    "make",
    [
        lambda x, y, folder: (x, y),
        lambda x, y, folder: (mapped(folder, x.numpy()), pd.Series(y.numpy())),
        lambda x, y, folder: TensorDataset(x, y),
        lambda x, y, folder: Rows(x, y),
        lambda x, y, folder: Rows(x, y.tolist()),
        lambda x, y, folder: DataLoader(Rows(x, y.numpy()), num_workers=1),
    ],
)
def test_several_arguments(make: Callable[..., Any], x: Tensor, tmp_path: Path) -> None:
    y = torch.arange(23)
    source = as_source("train", make(x, y, tmp_path))
    first, second = source.batch(torch.tensor([3, 1]))
    assert torch.equal(first, x[[3, 1]])
    assert torch.equal(second, torch.tensor([3, 1]))
    assert source.fingerprint() == fingerprint((x, y))


def test_checksums_depend_on_values_shapes_and_dtypes(x: Tensor) -> None:
    changed = x.clone()
    changed[-1, -1] += 1
    others = [x, changed, x.reshape(23, 2, 2), x.double(), x[:22], (x, x), (x, x > 0)]
    assert len({as_source("x", data).fingerprint() for data in others}) == len(others)


def test_a_checksum_is_computed_in_chunks(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrovae.data.source._CHUNK", 40)
    monkeypatch.setattr("pyrovae.data.source._SPOOLED", 8)
    y = torch.arange(23)
    for data in ((x, y), Rows(x, y)):
        assert as_source("x", data).fingerprint() == fingerprint((x, y))


def test_data_in_memory_are_not_copied(x: Tensor) -> None:
    labels = np.arange(23)
    for data in ((x, labels), TensorDataset(x, torch.from_numpy(labels)), DataLoader(TensorDataset(x))):
        tensors = as_source("train", data).tensors()
        assert tensors[0].data_ptr() == x.data_ptr()
    assert as_source("train", labels).tensors()[0].data_ptr() == labels.ctypes.data


def test_data_outside_memory_have_no_tensors(x: Tensor, tmp_path: Path) -> None:
    for data in (mapped(tmp_path, x.numpy()), (x, mapped(tmp_path, x.numpy())), Rows(x), DataLoader(Rows(x))):
        assert as_source("train", data).tensors() is None


def test_batches_of_a_mapped_file_are_copies(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((4, 2), np.float32))
    array = np.load(tmp_path / "x.npy", mmap_mode="r+")
    source = as_source("train", array)
    batches = source.slice(0, 4) + source.batch(torch.arange(4))
    array[:] = 1
    assert all((batch == 0).all() for batch in batches)


@pytest.mark.slow
def test_a_mapped_file_is_never_copied_as_a_whole(tmp_path: Path) -> None:
    script = """
        import sys, numpy as np, torch, tracemalloc
        from pyrovae.data.sources import as_source
        tracemalloc.start()
        for dtype in ("uint8", "float32"):
            data = np.memmap(sys.argv[1], dtype=dtype, mode="w+", shape=(2**16, 2**10))
            data = np.memmap(sys.argv[1], dtype=dtype, mode="r", shape=(2**16, 2**10))
            source = as_source("train", data)
            source.check()
            source.fingerprint()
            for batch in source.batches(100, torch.randperm(len(source))[:1000]):
                pass
        print(tracemalloc.get_traced_memory()[1])
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "x")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    (tmp_path / "x").unlink()
    assert int(run.stdout) < 2**26  # the files have 64 and 256 MiB


def test_a_source_is_a_source(x: Tensor) -> None:
    source, stream = as_source("train", x), as_source("train", Flow(x))
    assert as_source("train", source) is source
    assert as_source("train", stream) is stream


def test_parts_of_data_in_memory_are_in_memory(x: Tensor) -> None:
    first, second = random_split(TensorDataset(x), [13, 10])
    assert isinstance(as_source("train", first), Arrays)
    assert torch.equal(as_source("valid", second).tensors()[0], x[second.indices])
    assert isinstance(as_source("train", Subset(Rows(x), [1, 2])), Items)
