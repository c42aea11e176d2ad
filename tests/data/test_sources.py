"""Data of any kind give the same batches, checksums and errors, and what is on disk stays on disk."""

import random
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
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
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    random_split,
)

from pyrovae.arguments import fingerprint
from pyrovae.data.arrays import Arrays
from pyrovae.data.datasets import Items
from pyrovae.data.sources import Source, Stream, as_source


class Rows(Dataset):
    """A map-style data set of the rows of an array, alone or with a label."""

    def __init__(self, x: Any, *labels: Any) -> None:
        self.columns = (x, *labels)

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitem__(self, index: int) -> Any:
        row = tuple(column[index] for column in self.columns)
        return row if len(row) > 1 else row[0]


class Duck:
    """A map-style data set without torch's base class."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Tensor:
        return self.x[index]


class Flow(IterableDataset):
    def __init__(self, x: Any) -> None:
        self.x = x

    def __iter__(self) -> Iterator[Any]:
        return iter(self.x)


class Noisy(Rows):
    """A data set with random augmentation by all three global generators."""

    def __getitem__(self, index: int) -> Tensor:
        return self.columns[0][index] + torch.rand(()) + float(np.random.rand()) + random.random()


def mapped(folder: Path, array: np.ndarray) -> np.memmap:
    np.save(folder / "x.npy", array)
    return np.load(folder / "x.npy", mmap_mode="r")


@pytest.fixture
def x() -> Tensor:
    return torch.randn(23, 4, generator=torch.Generator().manual_seed(0))


KINDS: dict[str, Callable[[Tensor, Path], Any]] = {
    "tensor": lambda x, _: x,
    "array": lambda x, _: x.numpy(),
    "array of float64": lambda x, _: x.numpy().astype(np.float64),
    "array of long doubles": lambda x, _: x.numpy().astype(np.longdouble),
    "big-endian array": lambda x, _: x.numpy().astype(">f4"),
    "read-only array": lambda x, _: np.frombuffer(x.numpy().tobytes(), np.float32).reshape(x.shape),
    "reversed view": lambda x, _: x.numpy()[::-1].copy()[::-1],
    "memmap": lambda x, folder: mapped(folder, x.numpy()),
    "memmap of float64": lambda x, folder: mapped(folder, x.numpy().astype(np.float64)),
    "view of a memmap": lambda x, folder: np.asarray(mapped(folder, x.numpy())),
    "DataFrame": lambda x, _: pd.DataFrame(x.numpy()),
    "tuple": lambda x, _: (x.numpy(),),
    "TensorDataset": lambda x, _: TensorDataset(x),
    "Subset of a TensorDataset": lambda x, _: Subset(TensorDataset(torch.cat([x, x])), range(len(x))),
    "Dataset": lambda x, _: Rows(x),
    "Dataset of arrays": lambda x, _: Rows(x.numpy().astype(np.float64)),
    "Dataset of tuples": lambda x, _: Rows([(row,) for row in x]),
    "no base class": lambda x, _: Duck(x),
    "DataLoader": lambda x, _: DataLoader(Rows(x), batch_size=5, shuffle=True, drop_last=True),
    "DataLoader with workers": lambda x, _: DataLoader(Rows(x), batch_size=5, num_workers=2),
    "DataLoader of a TensorDataset": lambda x, _: DataLoader(TensorDataset(x), batch_size=5, shuffle=True),
    "DataLoader of a list": lambda x, _: DataLoader(list(x), batch_size=5),
    "DataLoader of a subset": lambda x, _: DataLoader(Rows(torch.cat([x, x])), sampler=SubsetRandomSampler(range(23))),
    "collate_fn": lambda x, _: DataLoader(Rows(x), collate_fn=torch.stack),
}


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


# --- several arguments -----------------------------------------------------------------------------------------------


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


def test_checksums_know_values_shapes_and_dtypes(x: Tensor) -> None:
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


# --- memory ----------------------------------------------------------------------------------------------------------


def test_what_is_in_memory_is_not_copied(x: Tensor) -> None:
    labels = np.arange(23)
    for data in ((x, labels), TensorDataset(x, torch.from_numpy(labels)), DataLoader(TensorDataset(x))):
        tensors = as_source("train", data).tensors()
        assert tensors[0].data_ptr() == x.data_ptr()
    assert as_source("train", labels).tensors()[0].data_ptr() == labels.ctypes.data


def test_what_is_not_in_memory_has_no_tensors(x: Tensor, tmp_path: Path) -> None:
    for data in (mapped(tmp_path, x.numpy()), (x, mapped(tmp_path, x.numpy())), Rows(x), DataLoader(Rows(x))):
        assert as_source("train", data).tensors() is None


def test_batches_of_a_mapped_file_are_copies(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((4, 2), np.float32))
    array = np.load(tmp_path / "x.npy", mmap_mode="r+")
    source = as_source("train", array)
    batches = source.slice(0, 4) + source.batch(torch.arange(4))
    array[:] = 1
    assert all((batch == 0).all() for batch in batches)


def test_a_mapped_file_is_never_copied_as_a_whole(tmp_path: Path) -> None:
    script = """
        import sys, numpy as np, torch, tracemalloc
        from pyrovae.data.sources import as_source
        data = np.memmap(sys.argv[1], dtype=sys.argv[2], mode="w+", shape=(2**16, 2**10))
        data = np.memmap(sys.argv[1], dtype=sys.argv[2], mode="r", shape=(2**16, 2**10))
        tracemalloc.start()
        source = as_source("train", data)
        source.check()
        source.fingerprint()
        for batch in source.batches(100, torch.randperm(len(source))[:1000]):
            pass
        print(tracemalloc.get_traced_memory()[1])
    """
    for dtype in ("uint8", "float32"):
        run = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / dtype), dtype],
            capture_output=True,
            text=True,
            check=True,
        )
        assert int(run.stdout) < 2**26  # the files have 64 and 256 MiB
        (tmp_path / dtype).unlink()


# --- loaders and workers ---------------------------------------------------------------------------------------------


def test_a_loader_brings_its_batch_size(x: Tensor) -> None:
    for data in (Rows(x), TensorDataset(x), Flow(x)):
        assert as_source("train", DataLoader(data, batch_size=7)).batch_size == 7
    assert as_source("train", x).batch_size is None


def test_a_collate_fn_is_used_for_data_in_memory_too(x: Tensor) -> None:
    loader = DataLoader(TensorDataset(x), collate_fn=lambda rows: torch.stack([row for (row,) in rows]) + 1)
    assert torch.equal(as_source("train", loader).slice(0, 2)[0], x[:2] + 1)


class Worker(Rows):
    def __getitem__(self, index: int) -> Any:
        info = torch.utils.data.get_worker_info()
        return -1 if info is None else info.id, torch.initial_seed(), torch.rand(())


def test_workers_are_seeded_as_in_torch() -> None:
    loader = DataLoader(Worker(torch.arange(8)), num_workers=2, batch_size=2)
    torch.manual_seed(3)
    ours = list(as_source("train", loader).batches(2))
    torch.manual_seed(3)
    theirs = list(loader)
    again = list(as_source("train", loader).batches(2))
    for found, expected in zip(ours, theirs, strict=True):
        assert all(map(torch.equal, found, expected))
    assert set(torch.cat([batch[0] for batch in ours]).tolist()) == {0, 1}
    assert not torch.equal(ours[0][1], again[0][1])  # each pass takes a number from the generator
    seeded = [list(as_source("train", loader).batches(2, generator=torch.Generator().manual_seed(5))) for _ in range(2)]
    assert torch.equal(seeded[0][0][2], seeded[1][0][2])


@pytest.mark.parametrize("workers", [0, 2])
def test_checks_and_checksums_leave_the_generators_alone(x: Tensor, workers: int) -> None:
    source = as_source("train", DataLoader(Noisy(x), num_workers=workers))
    state, python, other = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    source.check()
    assert source.fingerprint() == source.fingerprint()
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python
    assert (np.random.get_state()[1] == other).all()


# --- streams ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda x: Flow(x),
        lambda x: DataLoader(Flow(x), batch_size=5),
        lambda x: DataLoader(Flow(x.split(5)), batch_size=None),
        lambda x: Flow(x.double().numpy()),
    ],
)
def test_a_stream_gives_its_batches_again_for_each_pass(make: Callable[[Tensor], Any], x: Tensor) -> None:
    stream = as_source("train", make(x))
    assert isinstance(stream, Stream)
    for _ in range(2):
        batches = list(stream.batches(5))
        assert [len(batch) for (batch,) in batches] == [5, 5, 5, 5, 3]
        assert torch.equal(torch.cat([batch for (batch,) in batches]), x)
    source = as_source("x", make(x), indexed=True)
    assert torch.equal(source.tensors()[0], x)
    assert as_source("x", stream, indexed=True).fingerprint() == fingerprint((x,))


def test_a_sampler_of_the_users_own_makes_a_stream(x: Tensor) -> None:
    weights = [0.0] * 22 + [1.0]
    for loader in (
        DataLoader(Rows(x), sampler=WeightedRandomSampler(weights, 10), batch_size=5),
        DataLoader(TensorDataset(x), batch_sampler=[[22] * 5, [22] * 5]),
        DataLoader(Rows(x[-1:]), sampler=RandomSampler(x[-1:], replacement=True, num_samples=10), batch_size=5),
    ):
        stream = as_source("train", loader)
        assert isinstance(stream, Stream)
        for (batch,) in stream.batches(3):
            assert torch.equal(batch, x[-1].expand(5, 4))
        with pytest.raises(ValueError, match=r"x is a DataLoader with a \w+, which may leave data out or repeat them"):
            as_source("x", loader, indexed=True)


def test_a_source_is_a_source(x: Tensor) -> None:
    source, stream = as_source("train", x), as_source("train", Flow(x))
    assert as_source("train", source) is source
    assert as_source("train", stream) is stream


def test_parts_of_data_in_memory_are_in_memory(x: Tensor) -> None:
    first, second = random_split(TensorDataset(x), [13, 10])
    assert isinstance(as_source("train", first), Arrays)
    assert torch.equal(as_source("valid", second).tensors()[0], x[second.indices])
    assert isinstance(as_source("train", Subset(Rows(x), [1, 2])), Items)


# --- tables ----------------------------------------------------------------------------------------------------------


def test_a_table_of_several_dtypes_with_missing_values() -> None:
    frame = pd.DataFrame(
        {
            "integer": [1, 2, 3],
            "nullable": pd.array([1, None, 3], dtype="Int64"),
            "real": [0.5, np.nan, 1.5],
            "boolean": [True, False, True],
            "may be": pd.array([True, None, False], dtype="boolean"),
        }
    )
    (x,) = as_source("train", frame).tensors()
    nan = torch.nan
    expected = torch.tensor([[1, 1, 0.5, 1, 1], [2, nan, nan, 0, nan], [3, 3, 1.5, 1, 0]])
    torch.testing.assert_close(x, expected, equal_nan=True)
    as_source("train", frame).check(allow_nan=True)
    with pytest.raises(ValueError, match="1 of 3 data in train hold NaN or infinite values, the first at index 1"):
        as_source("train", frame).check()


def test_labels_of_a_table_are_integers() -> None:
    frame = pd.DataFrame({"x": [0.5, 1.5], "y": pd.array([1, 0], dtype="Int64")})
    x, y = as_source("train", (frame[["x"]], frame["y"])).tensors()
    assert (x.shape, x.dtype, y.dtype) == ((2, 1), torch.float32, torch.int64)


@pytest.mark.parametrize("values", [["a", "b"], pd.Categorical(["a", "b"]), pd.date_range("2000", periods=2)])
def test_a_column_without_numbers_is_refused_by_name(values: Any) -> None:
    frame = pd.DataFrame({"size": [1.0, 2.0], "kind": values})
    with pytest.raises(
        TypeError, match=r"train must be a table of numbers, but has columns .*\{'kind': '.*'\}\. Encode"
    ):
        as_source("train", frame)


# --- errors ----------------------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "list": (
        lambda: [1.0, 2.0],
        TypeError,
        r"train must be a tensor, a NumPy array .*, but it is a list of \['float'\]",
    ),
    "dict": (lambda: {"x": torch.zeros(2)}, TypeError, "DataLoader, but it is a dict. Convert it"),
    "None": (lambda: None, TypeError, "DataLoader, but it is a NoneType"),
    "generator": (lambda: (i for i in range(3)), TypeError, "DataLoader, but it is a generator"),
    "text": (lambda: "x.npy", TypeError, "DataLoader, but it is a str"),
    "empty tuple": (lambda: (), TypeError, "DataLoader, but it is a tuple of nothing"),
    "tuple of lists": (lambda: (torch.zeros(2), [1, 2]), TypeError, r"a tuple of \['Tensor', 'list'\]"),
    "tuple of data sets": (lambda: (Rows([1.0]), torch.zeros(1)), TypeError, r"a tuple of \['Rows', 'Tensor'\]"),
    "text in an array": (lambda: np.array(["a"]), TypeError, r"must hold numbers, but an array has dtype <U1. Encode"),
    "objects": (lambda: np.array([None]), TypeError, r"must hold numbers, but an array has dtype object"),
    "complex": (lambda: np.zeros(2, complex), TypeError, r"must hold numbers, but an array has dtype complex128"),
    "sparse": (lambda: torch.eye(2).to_sparse(), TypeError, r"train must be dense, .*\.to_dense\(\)"),
    "one number": (lambda: torch.tensor(1.0), ValueError, r"must share a first dimension, .* have shapes \[\(\)\]"),
    "lengths": (lambda: (torch.zeros(3), np.zeros(2)), ValueError, r"must share .* shapes \[\(3,\), \(2,\)\]"),
    "no data": (lambda: np.zeros((0, 3)), ValueError, r"train is empty, shape \(0, 3\)"),
    "empty data set": (lambda: Rows([]), ValueError, r"train is empty: len\(Rows\) is 0"),
    "no length": (lambda: Dataset(), TypeError, "a Dataset has no length. Give it a method __len__"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_data_of_another_kind_are_refused(kind: str) -> None:
    make, error, message = WRONG[kind]
    with pytest.raises(error, match=message):
        as_source("train", make())


@pytest.mark.parametrize("kind", ["tensor", "memmap", "Dataset", "DataLoader with workers"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_first_value_that_is_not_finite_is_named(kind: str, value: float, x: Tensor, tmp_path: Path) -> None:
    x[17, 2] = value
    x[19] = value
    source = as_source("valid", KINDS[kind](x, tmp_path))
    with pytest.raises(ValueError, match="2 of 23 data in valid hold NaN or infinite values, the first at index 17"):
        source.check()
    if value == float("inf"):
        with pytest.raises(ValueError, match="2 of 23 data in valid hold infinite values, the first at index 17"):
            source.check(allow_nan=True)
    else:
        source.check(allow_nan=True)


def test_chunks_of_a_check_count_on(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrovae.data.source._CHUNK", 40)
    x[[5, 9, 22]] = torch.nan
    for data in (x, (torch.arange(23), x), Rows(torch.arange(23), x)):
        with pytest.raises(ValueError, match=r"3 of 23 data in train hold .* the first at index 5"):
            as_source("train", data).check()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("items", "error", "message"),
    [
        ([1.0, 2.0, "three"], TypeError, "datum 2 of train holds a str. Return a tensor, an array"),
        ([{"x": 1.0}] * 3, TypeError, "datum 1 of train holds a dict"),
        ([(1.0, None)] * 3, TypeError, "datum 1 of train holds a NoneType"),
        (
            [torch.zeros(2), torch.zeros(2), torch.zeros(3)],
            ValueError,
            r"datum 2 of train has shapes \[\(3,\)\], but the datum before it has \[\(2,\)\]. Crop or pad",
        ),
        (
            [(1.0, 2.0), (1.0, 2.0), (1.0,)],
            ValueError,
            r"datum 2 of train has shapes \[\(\)\], but the datum before it",
        ),
    ],
)
def test_a_datum_that_does_not_fit_is_named(items: list[Any], error: type, message: str, workers: int) -> None:
    source = as_source("train", DataLoader(Rows(items), num_workers=workers))
    with pytest.raises(error, match=message):
        list(source.batches(2, torch.tensor([1, 2])))


def test_a_stream_that_does_not_fit_is_refused() -> None:
    with pytest.raises(TypeError, match="a datum of train holds a str"):
        list(as_source("train", Flow(["a"])).batches(2))
    pairs = DataLoader(Flow([(torch.zeros(2), torch.zeros(3))]), batch_size=None)
    with pytest.raises(ValueError, match=r"in a batch of train must share a first dimension.*\[\(2,\), \(3,\)\]"):
        list(as_source("train", pairs).batches(2))
    with pytest.raises(ValueError, match="x is empty: its stream ended at once"):
        as_source("x", Flow([]), indexed=True)
