"""Data sets of every kind with the same numbers."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)


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
    """A stream of the rows of an array. ``lengths`` are the numbers of rows in its passes."""

    def __init__(self, x: Any, lengths: Iterator[int] | None = None) -> None:
        self.x, self.lengths = x, lengths

    def __iter__(self) -> Iterator[Any]:
        return iter(self.x if self.lengths is None else self.x[: next(self.lengths)])


class Noisy(Rows):
    """Rows with noise from three generators, as in data augmentation."""

    def __getitem__(self, index: int) -> Tensor:
        return self.columns[0][index] + torch.rand(()) + float(np.random.rand()) + random.random()


def mapped(folder: Path, array: np.ndarray) -> np.memmap:
    np.save(folder / "x.npy", array)
    return np.load(folder / "x.npy", mmap_mode="r")


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
