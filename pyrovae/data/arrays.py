"""Reader of arrays: tensors, NumPy arrays, memory-mapped files and pandas tables."""

from __future__ import annotations

import mmap
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae.data.source import Batch, Source

_WIDER = {"uint16": np.int32, "uint32": np.int64, "uint64": np.int64}


class Arrays(Source):
    """Tensors and memory-mapped arrays of the same length, one for each argument of a program."""

    def __init__(self, name: str, columns: Sequence[Any]) -> None:
        """Store the arrays, one for each argument of a program, without copying data from disk.

        Raises:
            TypeError: If an argument is not an array of numbers, or is a sparse tensor.
            ValueError: If the arrays differ in length or are empty.
        """
        self.name = name
        self.columns = tuple(column(name, values) for values in columns)
        self.column_names = tuple(_names(values) for values in columns)
        shapes = [tuple(values.shape) for values in self.columns]
        if not all(shapes) or len({shape[0] for shape in shapes}) > 1:
            raise ValueError(
                f"the arrays of {name} must share a first dimension, that of the data, but they have shapes {shapes}. "
                f"Pass arrays with one row for each datum."
            )
        if not shapes[0][0]:
            raise ValueError(f"{name} is empty, shape {shapes[0]}. Pass at least one datum.")

    def __len__(self) -> int:
        return len(self.columns[0])

    def batch(self, indices: Tensor) -> Batch:
        """Read the data with the given indices; from a memory-mapped file, only these data are copied."""
        return tuple(
            values[indices] if isinstance(values, Tensor) else to_tensor(_read(values, indices.cpu().numpy()))
            for values in self.columns
        )

    def slice(self, start: int, stop: int) -> Batch:
        """Read the data from ``start`` up to, but excluding, ``stop``; data in memory are not copied."""
        return tuple(
            values[start:stop] if isinstance(values, Tensor) else to_tensor(_read(values, slice(start, stop)))
            for values in self.columns
        )

    def tensors(self) -> Batch | None:
        """Return the tensors without copying, or None if an array is on disk."""
        kept = tuple(values for values in self.columns if isinstance(values, Tensor))
        return kept if len(kept) == len(self.columns) else None

    def check(self, *, allow_nan: bool = False) -> None:
        """Check that floating-point arrays are finite; integer arrays are not read."""
        floating = [values for values in self.columns if _is_floating(values)]
        if len(floating) < len(self.columns):
            return Arrays(self.name, floating).check(allow_nan=allow_nan) if floating else None
        return super().check(allow_nan=allow_nan)

    def _feed(self, sink: Callable[[Any], Any]) -> None:
        if len(self.columns) == 1:
            super()._feed(sink)
        else:
            for values in self.columns:
                Arrays(self.name, [values])._feed(sink)


def column(name: str, values: Any) -> Tensor | np.ndarray:
    """Convert one argument of a program to a dense tensor; a memory-mapped array is returned unchanged.

    Raises:
        TypeError: If the values are not an array of numbers, or are a sparse tensor.
    """
    if isinstance(values, Tensor):
        if values.layout != torch.strided:
            raise TypeError(f"{name} must be dense, but a tensor has layout {values.layout}. Call .to_dense() on it.")
        return values
    if is_table(values):
        return _of_table(name, values)
    if not isinstance(values, np.ndarray):
        raise TypeError(f"{name} holds a {type(values).__name__}, which is not an array. Call np.asarray on it.")
    if values.dtype.kind not in "fiub":
        raise TypeError(
            f"{name} must hold numbers, but an array has dtype {values.dtype}. Encode other values as integers."
        )
    return values if _is_mapped(values) else to_tensor(values)


def is_array(values: Any) -> bool:
    """Return whether values are a tensor, a NumPy array or memmap, or a table or column of pandas."""
    return isinstance(values, Tensor | np.ndarray) or is_table(values)


def is_table(values: Any) -> bool:
    """Return whether values are a DataFrame or a Series of pandas, without importing pandas."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(values, pandas.DataFrame | pandas.Series)


def to_tensor(array: np.ndarray) -> Tensor:
    """Return an array as a tensor, which shares the array's memory if the dtype allows it.

    Floating-point values get torch's default dtype. Integers and booleans keep their dtype, except that unsigned
    integers of 16 bits and more get the next wider signed dtype, because torch supports few operations on them.
    """
    wider = np.float64 if array.dtype.kind == "f" and array.dtype.itemsize > 8 else _WIDER.get(array.dtype.name)
    native = array.astype(wider or array.dtype.newbyteorder("="), copy=False)
    if any(stride < 0 for stride in native.strides):  # a reversed view, which torch does not accept
        native = native.copy()
    with warnings.catch_warnings():  # data are only read, so the array may be read-only
        warnings.filterwarnings("ignore", message="The given NumPy array is not writ")
        tensor = torch.from_numpy(native)
    return tensor.to(torch.get_default_dtype()) if tensor.is_floating_point() else tensor


def _names(values: Any) -> tuple[str, ...]:
    """Return the column names of a pandas DataFrame, or an empty tuple for other values."""
    return tuple(map(str, values.columns)) if is_table(values) and values.ndim == 2 else ()


def _of_table(name: str, table: Any) -> Tensor:
    """Return a DataFrame or a Series as one tensor, in which a missing value is NaN.

    A DataFrame becomes a floating-point tensor, shape ``(rows, columns)``. A Series, shape ``(rows,)``, stays integer
    or boolean if it has no missing values.
    """
    columns = [(name, table.dtype)] if table.ndim == 1 else list(zip(table.columns, table.dtypes, strict=True))
    other = {str(label): str(dtype) for label, dtype in columns if getattr(dtype, "kind", "O") not in "fiub"}
    if other:
        raise TypeError(
            f"{name} must be a table of numbers, but has columns of other dtypes: {other}. Encode these columns "
            f"with pandas.get_dummies or with the codes of a categorical column."
        )
    if table.ndim == 1 and columns[0][1].kind in "iub" and not table.isna().any():  # labels are integers
        return to_tensor(table.to_numpy(dtype=getattr(table.dtype, "numpy_dtype", table.dtype)))
    # pandas stores tables column by column. In this order, batches are slow to read and sums are rounded differently.
    return to_tensor(table.to_numpy(dtype=np.float64, na_value=np.nan)).contiguous()


def _is_floating(values: Tensor | np.ndarray) -> bool:
    return values.is_floating_point() if isinstance(values, Tensor) else values.dtype.kind == "f"


def _read(array: np.ndarray, rows: Any) -> np.ndarray:
    """Copy rows of a memory-mapped file, and release the file's pages from the memory of this process.

    Without the release, the resident memory of the process would grow to the size of the file. The system keeps the
    released pages in its cache.
    """
    found = array[rows]
    # A slice is a view of the file, which may be read-only or may change later.
    copied = np.array(found) if isinstance(rows, slice) else np.asarray(found)
    owner: Any = array
    while isinstance(owner, np.ndarray) and not isinstance(owner, np.memmap):
        owner = owner.base
    # Pages of a file that is mapped copy-on-write (mode "c") may hold changes that exist only in memory.
    if isinstance(owner, np.memmap) and owner.mode != "c" and hasattr(mmap, "MADV_DONTNEED"):
        owner._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]
    return copied


def _is_mapped(array: Any) -> bool:
    """Return whether an array is memory-mapped; a view of a ``numpy.memmap`` may be a plain ``numpy.ndarray``."""
    while isinstance(array, np.ndarray | memoryview):
        if isinstance(array, np.memmap):
            return True
        array = array.obj if isinstance(array, memoryview) else array.base
    return isinstance(array, mmap.mmap)
