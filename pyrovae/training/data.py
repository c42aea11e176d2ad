"""Training data: tensors in memory, data that are read batch by batch, and streams. Batches lie on the run's device."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pyrovae.arguments import as_digest
from pyrovae.data.source import Batch, Source, repeatable
from pyrovae.data.sources import Stream, as_source


class TrainingData(Protocol):
    """Data from which a run takes its batches.

    Attributes:
        name: Name of the data in error messages.
        device: Device of the batches.
        datum: The first datum, one tensor of shape ``(1, *event)`` for each argument of the programs.
        batch_size: Batch size of a ``DataLoader``, or None.
        column_names: For each argument of the programs, the names of its columns; empty if the argument is not a table.
    """

    name: str
    column_names: tuple[tuple[str, ...], ...]
    device: torch.device
    datum: Batch
    batch_size: int | None

    def __len__(self) -> int:
        """Return the number of data."""

    def count(self, size: int) -> int:
        """Return the number of batches per epoch if batches have the given size."""

    def order(self, size: int) -> Tensor:
        """Return the indices of the data in a random order, for one epoch.

        A single batch of all data keeps the stored order, because a guide may have parameters for each datum.
        """

    def batches(self, size: int, order: Tensor | None = None, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, beginning with the batch of index ``start``.

        Without ``order``, the data keep their stored order.
        """

    def check_finite(self) -> None:
        """Raise ValueError if a datum is NaN or infinite. The check runs only if a program fails on the data."""

    def describe(self) -> dict[str, Any]:
        """Return the shapes and a checksum of the data, for comparison with the description in a checkpoint."""

    def digest(self) -> Tensor:
        """Return a checksum of the data, which shows whether all processes train on the same data."""


def as_training_data(name: str, data: Any, device: torch.device | None, *, held_out: bool = False) -> TrainingData:
    """Return data of any kind as an object from which a run takes its batches.

    Args:
        name: Name of the data in error messages.
        data: Data of a kind that :mod:`pyrovae.data.sources` lists.
        device: Device of the batches; ``None`` leaves them on the device of the data.
        held_out: If true, every pass must read the same data. A stream is then read into memory.

    Raises:
        TypeError: If the data have an unsupported type.
        ValueError: If the data are empty or differ in length.
    """
    source = as_source(name, data, indexed=held_out)
    if isinstance(source, Stream):
        return StreamedData(source, device)
    return DataOnRequest(source, device) if source.tensors() is None else DataInMemory(source, device)


class _IndexedData(ABC):
    """Data of known length that are read by index."""

    def __init__(self, source: Source, device: torch.device | None) -> None:
        self.source, self.name, self.batch_size = source, source.name, source.batch_size
        self.column_names = source.column_names
        with repeatable():
            self.datum = source.slice(0, 1)
        self.device = self.datum[0].device if device is None else device

    def __len__(self) -> int:
        return len(self.source)

    def count(self, size: int) -> int:
        """Return the number of batches in an epoch; the last batch may be smaller."""
        return math.ceil(len(self) / size)

    @abstractmethod
    def order(self, size: int) -> Tensor:
        """Return the indices of the data in the order of an epoch."""

    @abstractmethod
    def batches(self, size: int, order: Tensor | None = None, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch."""

    def check_finite(self) -> None:
        """Raise ValueError if a datum is NaN or infinite."""
        self.source.check()

    def describe(self) -> dict[str, Any]:
        """Return the shapes and a checksum of the data.

        The same data give the same result, whether they are passed as a tensor, an array or a data set.
        """
        shapes = [[len(self), *tensor.shape[1:]] for tensor in self.datum]
        return {"shapes": shapes, "SHA-1": self.source.fingerprint()}

    def digest(self) -> Tensor:
        """Return the checksum."""
        return as_digest(self.source.fingerprint())


class DataInMemory(_IndexedData):
    """Tensors that are kept on the device, where batches are selected by index."""

    def __init__(self, source: Source, device: torch.device | None) -> None:
        super().__init__(source, device)
        tensors = source.tensors()
        assert tensors is not None
        self.tensors = tensors if device is None else tuple(tensor.to(device) for tensor in tensors)

    def order(self, size: int) -> Tensor:
        """Return the indices of the data in a random order, or in their stored order if one batch holds all data.

        The indices are on the device of the batches.
        """
        count = len(self)
        return torch.randperm(count, device=self.device) if size < count else torch.arange(count, device=self.device)

    def batches(self, size: int, order: Tensor | None = None, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch."""
        order = torch.arange(len(self), device=self.device) if order is None else order
        for indices in order.split(size)[start:]:
            yield tuple(tensor[indices] for tensor in self.tensors)


class DataOnRequest(_IndexedData):
    """Data on disk or in a data set, which are read batch by batch and then moved to the device."""

    def order(self, size: int) -> Tensor:
        """Return the order of the data in an epoch, drawn on the CPU."""
        return torch.randperm(len(self)) if size < len(self) else torch.arange(len(self))

    def batches(self, size: int, order: Tensor | None = None, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch. Each batch is read on request, or ahead of time by a worker process."""
        # A copy of the global generator seeds the workers. An interrupted run starts them once more often than an
        # uninterrupted run, which must not change the noise of the run.
        generator = torch.Generator()
        generator.set_state(torch.get_rng_state())
        order = torch.arange(len(self)) if order is None else order.cpu()
        pins = self.device.type == "cuda" and not any(tensor.is_cuda for tensor in self.datum)
        read = self.source.batches(size, order[start * size :], generator=generator, pin_memory=pins)
        for batch in read:
            yield _moved(batch, self.device)


class StreamedData:
    """Data from a stream. An epoch has as many batches as the first pass over the stream.

    The first pass is made at construction and counts the data. If a later pass is shorter, another pass follows in the
    same epoch. If a later pass is longer, the rest of it is not used.

    Args:
        stream: The stream. The batches of a ``DataLoader`` are used unchanged, unless another size is requested.
        device: Device of the batches; ``None`` leaves them on the device of the stream's batches.

    Raises:
        ValueError: If the stream is empty.
    """

    def __init__(self, stream: Stream, device: torch.device | None) -> None:
        self.stream, self.name = stream, stream.name
        self.column_names: tuple[tuple[str, ...], ...] = ()
        sizes, datum = [], None
        with repeatable():
            for batch in stream.batches(100):
                datum = tuple(tensor[:1].clone() for tensor in batch) if datum is None else datum
                sizes.append(len(batch[0]))
        if datum is None:
            raise ValueError(f"{self.name} is empty: its stream ended at once. Pass at least one datum.")
        self.datum, self.total, self.passed = datum, sum(sizes), len(sizes)
        self.batch_size = max(sizes) if isinstance(stream.data, DataLoader) else None
        self.device = datum[0].device if device is None else device

    def __len__(self) -> int:
        return self.total

    def count(self, size: int) -> int:
        """Return the number of batches of an epoch. An epoch has as many data as the first pass over the stream."""
        return self.passed if size == self.batch_size else math.ceil(self.total / size)

    def order(self, size: int) -> Tensor:
        """Return an empty tensor, because a stream determines its own order."""
        del size
        return torch.empty(0, dtype=torch.long)

    def batches(self, size: int, order: Tensor | None = None, start: int = 0) -> Iterator[Batch]:
        """Yield the rest of an epoch, which is ``count(size) - start`` batches.

        A stream cannot return to an earlier position. The batches therefore come from a new pass, which begins with the
        first batch of the stream. If this pass has too few batches, another pass follows.

        Raises:
            ValueError: If a later pass over the stream is empty.
        """
        del order
        left = self.count(size) - start
        while left > 0:
            made = 0
            for batch in islice(self._one_pass(size), left):
                yield _moved(batch, self.device)
                made += 1
            if not made:
                raise ValueError(
                    f"{self.name} had {self.total} data in its first pass but a later pass is empty. Each epoch "
                    f"makes a pass, so the __iter__ of the stream must return a new iterator."
                )
            left -= made

    def check_finite(self) -> None:
        """Raise ValueError if a datum is NaN or infinite; the message names the batch."""
        for index, batch in enumerate(self.stream.batches(100)):
            as_source(f"batch {index} of {self.name}", batch, indexed=True).check()

    def describe(self) -> dict[str, Any]:
        """Return a dictionary with the shapes of a datum. A checksum is left out, because a stream has none."""
        return {"stream": [list(tensor.shape[1:]) for tensor in self.datum]}

    def digest(self) -> Tensor:
        """Raise ValueError, because several processes cannot train on a stream.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            f"{self.name} is a stream, from which several processes would read different batches. Pass data with a "
            f"length, or train in one process."
        )

    def _one_pass(self, size: int) -> Iterator[Batch]:
        batches = self.stream.batches(size)
        return batches if self.batch_size in (None, size) else _resized(batches, size)


def _resized(batches: Iterator[Batch], size: int) -> Iterator[Batch]:
    """Join and split batches, so that each holds ``size`` data; the last batch may be smaller."""
    rest: Batch | None = None
    for batch in batches:
        held = batch if rest is None else tuple(torch.cat(pair) for pair in zip(rest, batch, strict=True))
        *full, rest = zip(*(tensor.split(size) for tensor in held), strict=True)
        if len(rest[0]) == size:
            full, rest = [*full, rest], None
        yield from full
    if rest is not None:
        yield rest


def _moved(batch: Batch, device: torch.device) -> Batch:
    """Return a batch on a device. Copies from the CPU to CUDA are asynchronous, and use page-locked memory."""
    if device.type != "cuda":
        return tuple(tensor.to(device) for tensor in batch)
    return tuple(
        tensor.to(device) if tensor.is_cuda else tensor.pin_memory().to(device, non_blocking=True) for tensor in batch
    )
