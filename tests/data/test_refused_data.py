"""Data that cannot be used are refused, and the error names the argument and the datum."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
)

from pyrovae.data.sources import as_source
from tests.data.examples import KINDS, Flow, Rows


@pytest.fixture
def x() -> Tensor:
    return torch.randn(23, 4, generator=torch.Generator().manual_seed(0))


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
    "no length": (lambda: Dataset(), TypeError, "a Dataset has no length. Add a method __len__"),
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


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("items", "error", "message"),
    [
        ([1.0, 2.0, "three"], TypeError, "datum 2 of train holds a str. Return a tensor, an array"),
        ([{"x": 1.0}] * 3, TypeError, "datum 1 of train holds a dict"),
        ([(1.0, None)] * 3, TypeError, "datum 1 of train holds a NoneType"),
        (
            [torch.zeros(2), torch.zeros(2), torch.zeros(3)],
            ValueError,
            r"datum 2 of train has shapes \[\(3,\)\], but the previous datum has \[\(2,\)\]. Crop or pad",
        ),
        (
            [(1.0, 2.0), (1.0, 2.0), (1.0,)],
            ValueError,
            r"datum 2 of train has shapes \[\(\)\], but the previous datum",
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
