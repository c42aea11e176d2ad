"""Readers of all kinds of data that training and evaluation accept; a reader returns batches of tensors.

``as_source(name, data)`` accepts each kind of data in the following table. Integers are allowed. Bytes (``uint8``) stay
bytes until a ``transform`` converts them on the device.

=========================  ============================================================================================
data                       what a program gets
=========================  ============================================================================================
tensor                     The tensor itself. ``tensors()`` returns it, so that a training loop indexes it directly.
NumPy array                A tensor that shares the array's memory, if the dtype allows it. Floating-point values get
                           torch's default dtype, as a network expects. Integers and booleans keep their dtype, but
                           ``uint16`` becomes ``int32``, and ``uint32`` and ``uint64`` become ``int64``.
NumPy memmap, or a view    The same as for a NumPy array, but one batch at a time. The file is never copied as a whole.
pandas DataFrame           One tensor of shape ``(rows, columns)`` in torch's default dtype; a missing value is NaN.
pandas Series              One tensor of shape ``(rows,)``; integers and booleans stay integers and booleans.
tuple of these             One argument for each element; all elements have the same first dimension.
``TensorDataset``          Its tensors, as a tuple. A ``Subset``, as ``random_split`` returns it, gives only the rows of
                           the subset.
map-style ``Dataset``      Its items, stacked. An item that is a tensor, number, NumPy array or PIL image gives one
                           argument; a tuple gives one argument per entry. A PIL image becomes ``uint8``, shape
                           ``(channels, height, width)``. A Python float gets torch's default dtype. No base class is
                           needed: ``__getitem__`` and ``__len__`` are enough.
``DataLoader``             Its data set, with its ``batch_size``, ``collate_fn``, ``num_workers``, ``worker_init_fn``,
                           ``timeout``, ``prefetch_factor`` and ``multiprocessing_context``. Its ``shuffle``,
                           ``drop_last`` and ``generator`` are not used, because training and evaluation choose the
                           order of the data. Batches are pinned if they are copied to CUDA.
``IterableDataset``        A :class:`Stream`: batches in the order of the stream, without a length or a checksum. A
                           ``DataLoader`` of an ``IterableDataset`` is a stream too. A ``DataLoader`` with a custom
                           sampler is also a stream, because the sampler's order, weights and repetitions are part of
                           the data.
=========================  ============================================================================================

Worker processes are seeded as in torch. Each call of :meth:`Source.batches` draws one number from its argument
``generator``, by default torch's global generator. Worker ``i`` is seeded with this number plus ``i``. New workers
start for each pass over the data.

Example:
    >>> import numpy as np, torch
    >>> from pyrovae.data.sources import as_source
    >>> source = as_source("train", (np.eye(3), np.array([0, 1, 2], np.uint8)))
    >>> source.check()
    >>> x, y = source.batch(torch.tensor([2, 0]))
    >>> x.dtype, y
    (torch.float32, tensor([2, 0], dtype=torch.uint8))
    >>> source.fingerprint() == as_source("train", (torch.eye(3), torch.arange(3).byte())).fingerprint()
    True
"""

from __future__ import annotations

from typing import Any, Literal, overload

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)

from pyrovae.data.arrays import Arrays, is_array
from pyrovae.data.datasets import Items, Stream, own_collate
from pyrovae.data.source import Batch, Source

__all__ = ["Batch", "Source", "Stream", "as_source"]

_KINDS = (
    "a tensor, a NumPy array or memmap, a pandas DataFrame, a tuple of these, a torch Dataset with a length, or a "
    "DataLoader"
)


@overload
def as_source(name: str, data: Any, *, indexed: Literal[True]) -> Source: ...


@overload
def as_source(name: str, data: Any, *, indexed: bool = False) -> Source | Stream: ...


def as_source(name: str, data: Any, *, indexed: bool = False) -> Source | Stream:
    """Return data of any kind as a source of batches.

    This function checks kinds and lengths; :meth:`Source.check` checks values.

    Args:
        name: Name of the data in error messages, such as ``"train"``.
        data: Data of any kind that :func:`pyrovae.fit` accepts, or a source, which is returned unchanged.
        indexed: If true, the result can be read by index, as evaluation requires. A stream is then read into memory, in
            a single pass to its end.

    Returns:
        A :class:`Source`, or a :class:`Stream` if the data have no length and ``indexed`` is false.

    Raises:
        TypeError: If the data have an unsupported type, do not hold numbers, or are sparse.
        ValueError: If the data are empty or differ in length, or if ``indexed`` is true for a ``DataLoader`` with a
            custom sampler.
    """
    if isinstance(data, Source):
        return data
    source = data if isinstance(data, Stream) else _source(name, data)
    if not (indexed and isinstance(source, Stream)):
        return source
    if isinstance(source.data, DataLoader) and not isinstance(source.data.dataset, IterableDataset):
        loader = source.data
        is_of_batches = type(loader.batch_sampler) not in (BatchSampler, type(None))
        sampler = type(loader.batch_sampler if is_of_batches else loader.sampler).__name__
        raise ValueError(f"{name} is a DataLoader with a {sampler}, which may omit or repeat data. Pass its dataset.")
    return source.read()


def _source(name: str, data: Any) -> Source | Stream:
    if is_array(data):
        return Arrays(name, [data])
    if isinstance(data, tuple) and data and all(map(is_array, data)):
        return Arrays(name, data)
    if isinstance(data, DataLoader):
        return _of_loader(name, data)
    if isinstance(data, IterableDataset):
        return Stream(name, data)
    if isinstance(data, list | tuple | dict | str | bytes) or not hasattr(data, "__getitem__"):
        remedy = "Pass its parts, such as .train" if _is_splits(data) else "Convert it to one of these"
        raise TypeError(f"{name} must be {_KINDS}, but it is {_described(data)}. {remedy}.")
    return _of_dataset(name, data)


def _is_splits(data: Any) -> bool:
    return all(hasattr(data, part) for part in ("train", "valid", "test"))


def _described(data: Any) -> str:
    if _is_splits(data):
        return f"a {type(data).__name__} with .train, .valid and .test"
    if isinstance(data, list | tuple):
        return f"a {type(data).__name__} of {sorted({type(part).__name__ for part in data}) or 'nothing'}"
    return f"a {type(data).__name__}"


def _of_dataset(name: str, dataset: Any) -> Source:
    if type(dataset) is TensorDataset:  # the items of a subclass may differ from the tensors
        return Arrays(name, dataset.tensors)
    if type(dataset) is Subset:
        whole = _of_dataset(name, dataset.dataset)
        if (tensors := whole.tensors()) is not None:
            indices = list(dataset.indices)
            return Arrays(name, [tensor[indices] for tensor in tensors])
    return Items(name, dataset)


def _of_loader(name: str, loader: DataLoader[Any]) -> Source | Stream:
    if isinstance(loader.dataset, IterableDataset) or not _takes_all(loader):
        return Stream(name, loader)
    dataset: Any = loader.dataset
    if isinstance(loader.sampler, SubsetRandomSampler):
        dataset = Subset(dataset, list(loader.sampler.indices))
    source = _of_dataset(name, dataset)
    if source.tensors() is None or own_collate(loader) is not None:
        return Items(name, dataset, loader)
    source.batch_size = loader.batch_size
    return source


def _takes_all(loader: DataLoader[Any]) -> bool:
    """Return true if each epoch of a loader contains every datum exactly once, in any order."""
    sampler = loader.sampler
    if type(loader.batch_sampler) is not BatchSampler:  # a custom batch sampler, or items that are batches
        return False
    if type(sampler) is RandomSampler:
        return not sampler.replacement and sampler.num_samples == len(loader.dataset)  # type: ignore[arg-type]
    return type(sampler) in (SequentialSampler, SubsetRandomSampler, DistributedSampler)
