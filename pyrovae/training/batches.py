"""The data of a run, and the mini-batches that the loop takes from them."""

import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from pyrovae.arguments import Data, as_tensors, as_tuple, fingerprint

Batch = tuple[Tensor, ...]
Transform = Callable[..., Data]


class Source(Protocol):
    """Data of known length, from which batches are read by index.

    Attributes:
        device: Device of the batches.
    """

    device: torch.device

    def __len__(self) -> int:
        """Return the number of data."""

    def batch(self, indices: Tensor) -> Batch:
        """Return the data at some indices, one tensor for each argument of the programs."""

    def check_finite(self) -> None:
        """Raise ValueError if a datum is NaN or infinite; called if a program cannot take the data."""

    def describe(self) -> dict[str, Any]:
        """Return the shapes and a checksum, by which a checkpoint knows its data."""

    def shapes(self) -> list[tuple[int, ...]]:
        """Return the shape of a datum in each tensor of a batch."""


class TensorSource:
    """Tensors in memory that share their first dimension.

    Args:
        name: Name of the argument, for error messages.
        data: A tensor of shape ``(N, *event)``, or a tuple of tensors of that length.
        device: Device to which the tensors are moved; ``None`` leaves them where they are.
    """

    def __init__(self, name: str, data: Data, device: torch.device | None) -> None:
        self.name = name
        tensors = as_tensors(name, data, check_finite=False)
        self.tensors = tensors if device is None else tuple(tensor.to(device) for tensor in tensors)
        self.device = self.tensors[0].device

    def __len__(self) -> int:
        return len(self.tensors[0])

    def batch(self, indices: Tensor) -> Batch:
        """Return the data at some indices."""
        return tuple(tensor[indices] for tensor in self.tensors)

    def check_finite(self) -> None:
        """Raise ValueError if a datum is NaN or infinite."""
        as_tensors(self.name, self.tensors)

    def describe(self) -> dict[str, Any]:
        """Return the shapes and a checksum."""
        return {"shapes": [list(tensor.shape) for tensor in self.tensors], "SHA-1": fingerprint(self.tensors)}

    def shapes(self) -> list[tuple[int, ...]]:
        """Return the shape of a datum in each tensor."""
        return [tuple(tensor.shape[1:]) for tensor in self.tensors]


class Batches:
    """The batches of a source.

    Args:
        source: The data.
        size: Data of a batch; the last one of an epoch may be shorter.
        transform: Applied to the tensors of each batch.
        accumulate: Batches of a step.
    """

    def __init__(self, source: Source, size: int, transform: Transform | None = None, accumulate: int = 1) -> None:
        self.source, self.size, self.transform, self.accumulate = source, size, transform, accumulate

    @property
    def steps(self) -> int:
        """Return the number of steps of an epoch."""
        return math.ceil(math.ceil(len(self.source) / self.size) / self.accumulate)

    def order(self) -> Tensor:
        """Return a random order of the data, shape ``(N,)``.

        One batch of all data keeps their order, because a guide may have parameters for each datum.
        """
        count, device = len(self.source), self.source.device
        return torch.randperm(count, device=device) if self.size < count else torch.arange(count, device=device)

    def __iter__(self) -> Iterator[Batch]:
        """Yield all batches in the order of the data."""
        yield from self._batches(torch.arange(len(self.source), device=self.source.device).split(self.size))

    def in_steps(self, order: Tensor, start: int) -> Iterator[list[Batch]]:
        """Yield the batches of each step of an epoch, from the step of index ``start`` on."""
        parts = order.split(self.size)
        for first in range(start * self.accumulate, len(parts), self.accumulate):
            yield list(self._batches(parts[first : first + self.accumulate]))

    def first(self, count: int) -> Batch:
        """Return the first data, without the transform."""
        return self.source.batch(torch.arange(min(count, len(self.source)), device=self.source.device))

    def _batches(self, parts: Any) -> Iterator[Batch]:
        for indices in parts:
            batch = self.source.batch(indices)
            yield batch if self.transform is None else as_tuple(self.transform(*batch))
