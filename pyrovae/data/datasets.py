"""Readers of torch data sets: map-style data sets are read by index, iterable data sets as a stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from pyrovae.data.arrays import Arrays, to_tensor
from pyrovae.data.source import Batch, Source


class Items(Source):
    """A map-style data set. If a ``DataLoader`` is given, it sets batch size, ``collate_fn`` and workers."""

    def __init__(self, name: str, dataset: Any, loader: DataLoader[Any] | None = None) -> None:
        """Store the data set and its ``DataLoader``.

        Raises:
            TypeError: If the data set has no length.
            ValueError: If the data set is empty.
        """
        if not hasattr(dataset, "__len__"):
            raise TypeError(f"{name}: a {type(dataset).__name__} has no length. Add a method __len__.")
        if not len(dataset):
            raise ValueError(f"{name} is empty: len({type(dataset).__name__}) is 0. Pass at least one datum.")
        self.name = name
        self.reader = _Reader(name, dataset, None if loader is None else own_collate(loader))
        self.loader = loader
        self.batch_size = None if loader is None else loader.batch_size

    def __len__(self) -> int:
        return len(self.reader.dataset)

    def batch(self, indices: Tensor) -> Batch:
        """Read the data with the given indices in this process, and stack them."""
        return self.reader[indices.tolist()]

    def batches(
        self,
        size: int,
        order: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        pin_memory: bool = False,
    ) -> Iterator[Batch]:
        """Yield mini-batches, read by the ``DataLoader``'s worker processes, or by this process if there are none."""
        if self.loader is None or not self.loader.num_workers:
            yield from super().batches(size, order, generator=generator, pin_memory=pin_memory)
            return
        indices = torch.arange(len(self)) if order is None else order
        yield from DataLoader(
            self.reader,
            batch_size=None,  # an item of the reader is a batch
            sampler=[part.tolist() for part in indices.split(size)],
            collate_fn=_unchanged,
            generator=generator,
            pin_memory=pin_memory,
            **{name: getattr(self.loader, name) for name in _OF_WORKERS},
        )


_OF_WORKERS = ("num_workers", "timeout", "worker_init_fn", "multiprocessing_context", "prefetch_factor")


class Stream:
    """A stream of mini-batches with an unknown number of data, for training only.

    A pass over the stream is an epoch. Batches are read ahead only by the worker processes of a ``DataLoader``. The
    stream determines the order of the data, and whether data repeat. An interrupted run continues with its parameters
    and optimizer, but with a new pass over the stream.

    Attributes:
        name: Name of the data in error messages, such as ``"train"``.
        batch_size: Batch size of the ``DataLoader``, or None if the data are not a ``DataLoader``.
    """

    def __init__(self, name: str, data: Any) -> None:
        """Store an ``IterableDataset``, or a ``DataLoader`` whose batches are used unchanged."""
        self.name, self.data = name, data
        self.batch_size = data.batch_size if isinstance(data, DataLoader) else None

    def batches(self, size: int) -> Iterator[Batch]:
        """Yield the batches of one pass over the stream.

        The batches have ``size`` data, except those of a ``DataLoader``, which has its own batch size.
        """
        loader: Any = self.data
        if not isinstance(loader, DataLoader):
            loader = DataLoader(loader, batch_size=size, collate_fn=_Collate(self.name))
        for batch in loader:
            parts = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
            tensors = tuple(_part(f"a batch of {self.name}", part) for part in parts)
            if not tensors or len({tensor.shape[:1] for tensor in tensors}) > 1 or not tensors[0].ndim:
                shapes = [tuple(tensor.shape) for tensor in tensors]
                raise ValueError(
                    f"the tensors in a batch of {self.name} must share a first dimension, but have shapes {shapes}. "
                    f"Return one row of each tensor for each datum."
                )
            yield tensors

    def read(self) -> Arrays:
        """Read the stream once into memory, and return the data as arrays."""
        batches = list(self.batches(100))
        if not batches:
            raise ValueError(f"{self.name} is empty: its stream ended at once. Pass at least one datum.")
        return Arrays(self.name, [torch.cat(tensors) for tensors in zip(*batches, strict=True)])


def own_collate(loader: DataLoader[Any]) -> Any:
    """Return the ``collate_fn`` of a loader, or None if it is torch's default."""
    return None if loader.collate_fn is default_collate else loader.collate_fn


class _Collate:
    """Function that stacks data into a batch. It accepts PIL images, and its errors name the datum."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, items: Sequence[Any], indices: Sequence[int] | None = None) -> Batch:
        rows = []
        for position, item in enumerate(items):
            place = f"datum {indices[position]} of {self.name}" if indices else f"a datum of {self.name}"
            parts = item if isinstance(item, tuple | list) else (item,)
            rows.append(tuple(_part(place, part) for part in parts))
            shapes = [[tuple(part.shape) for part in row] for row in (rows[0], rows[-1])]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"{place} has shapes {shapes[1]}, but the previous datum has {shapes[0]}. Crop or pad the data, or "
                    f"pass a DataLoader whose collate_fn does this."
                )
        return tuple(torch.stack(parts) for parts in zip(*rows, strict=True))


class _Reader(Dataset[Batch]):
    """Data set whose items are whole batches of another data set, read in this process or in workers."""

    def __init__(self, name: str, dataset: Any, collate: Any) -> None:
        self.name, self.dataset, self.collate = name, dataset, collate

    def __getitem__(self, indices: list[int]) -> Batch:
        many = getattr(self.dataset, "__getitems__", None)  # torch's own loader uses this method too if it exists
        items = many(indices) if many else [self.dataset[index] for index in indices]
        if self.collate is None:
            return _Collate(self.name)(items, indices)
        batch = self.collate(items)
        parts = batch if isinstance(batch, tuple | list) else (batch,)
        return tuple(_part(f"a batch of {self.name}", part) for part in parts)


def _part(place: str, part: Any) -> Tensor:
    """Convert one entry of a datum or of a batch to a tensor. Each entry becomes one argument of a program."""
    if isinstance(part, Tensor):
        return part
    if isinstance(part, bool | int):
        return torch.tensor(part)
    if isinstance(part, float):
        return torch.tensor(part, dtype=torch.get_default_dtype())
    if isinstance(part, np.ndarray | np.generic) and part.dtype.kind in "fiub":
        return to_tensor(np.asarray(part))
    if hasattr(part, "getbands"):  # a PIL image, recognized without importing PIL
        return _of_image(part)
    raise TypeError(
        f"{place} holds a {type(part).__name__}. Return a tensor, an array, a number or a PIL image, or a tuple of "
        f"these with one entry for each argument of the program."
    )


def _of_image(image: Any) -> Tensor:
    """Return the pixels of a PIL image without rescaling, channels first: shape ``(channels, height, width)``."""
    pixels = np.array(image.convert("RGB") if image.mode == "P" else image)
    pixels = pixels.astype(np.uint8) if pixels.dtype == bool else pixels
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    return to_tensor(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def _unchanged(batch: Any) -> Any:
    return batch
