"""Base class of all kinds of data, which are read in batches, checked for NaN, and summarized by a checksum."""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from tempfile import SpooledTemporaryFile
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae.arguments import as_bytes

Batch = tuple[Tensor, ...]

_CHUNK = 2**24  # bytes that a pass over the data holds in memory
_SPOOLED = 2**26  # bytes of further arguments that a checksum keeps in memory before it uses a temporary file


class Source(ABC):
    """Base class of data with a known length, which are read by index. A batch holds the arguments of a program.

    Attributes:
        name: Name of the data in error messages, such as ``"train"``.
        batch_size: Batch size of the ``DataLoader``, or None if the data are not a ``DataLoader``.
        column_names: For each argument of the programs, the names of its columns; empty if the argument is not a table.
    """

    name: str
    batch_size: int | None = None
    column_names: tuple[tuple[str, ...], ...] = ()

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of data."""

    @abstractmethod
    def batch(self, indices: Tensor) -> Batch:
        """Read the data with given indices.

        Args:
            indices: Indices of the data, shape ``(B,)``.

        Returns:
            One tensor, shape ``(B, *event)``, for each argument of a program.
        """

    def slice(self, start: int, stop: int) -> Batch:
        """Read the data from ``start`` up to, but excluding, ``stop``."""
        return self.batch(torch.arange(start, min(stop, len(self))))

    def batches(
        self,
        size: int,
        order: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        pin_memory: bool = False,
    ) -> Iterator[Batch]:
        """Read data in mini-batches.

        Args:
            size: Number of data per batch; the last batch may be smaller.
            order: Indices of the data in reading order, shape ``(M,)``, on the CPU; by default all data are read in
                order.
            generator: Generator from which worker processes are seeded, as in ``DataLoader``; by default torch's global
                generator. The argument has no effect without worker processes.
            pin_memory: If true, tensors are in page-locked memory, from which a copy to CUDA is asynchronous.

        Yields:
            Batches, as returned by :meth:`batch`.
        """
        del generator
        for start in range(0, len(self) if order is None else len(order), size):
            batch = self.slice(start, start + size) if order is None else self.batch(order[start : start + size])
            yield tuple(tensor.pin_memory() for tensor in batch) if pin_memory else batch

    def tensors(self) -> Batch | None:
        """Return all data, one tensor for each argument, without copying. Return None if they are not in memory."""
        return None

    def fingerprint(self) -> str:
        """Return the SHA-1 of shapes, dtypes and values, computed in one pass.

        The checksum is the same as that of :func:`pyrovae.arguments.fingerprint`. Data of different kinds, such as a
        tensor and a data set, have equal checksums if their values are equal. A data set that draws random numbers
        (augmentations) is read with fixed seeds.
        """
        digest = hashlib.sha1(usedforsecurity=False)
        with repeatable():
            self._feed(digest.update)
        return digest.hexdigest()

    def check(self, *, allow_nan: bool = False) -> None:
        """Check that all data are finite, in one pass.

        If all tensors hold integers, which are always finite, no pass is made.

        Args:
            allow_nan: If true, NaN is allowed, for example for missing values. Infinite values always raise an error.

        Raises:
            ValueError: If values are not finite. The message states the number of data with such values and the index
                of the first.
        """
        bad, first = 0, -1
        with repeatable():
            if not any(tensor.is_floating_point() for tensor in self.slice(0, 1)):
                return
            for start, batch in self._chunks():
                wrong = _wrong_rows(batch, allow_nan)
                if count := int(wrong.sum()):
                    first = first if bad else start + int(wrong.int().argmax())
                    bad += count
        if bad:
            kind = "infinite values" if allow_nan else "NaN or infinite values"
            raise ValueError(
                f"{bad} of {len(self)} data in {self.name} hold {kind}, the first at index {first}. Remove them, or "
                f"replace the values by zeros and pass a mask (pyrovae.likelihoods.Masked)."
            )

    def _feed(self, sink: Callable[[Any], Any]) -> None:
        """Pass the bytes of all data to a checksum, in the order of the arguments of a program."""
        with ExitStack() as files:
            sinks: list[Callable[[Any], Any]] = [sink]
            spools: list[Any] = []
            for start, batch in self._chunks():
                if start == 0:  # the pass reads all arguments at once, so the bytes of later arguments are stored
                    spools = [files.enter_context(SpooledTemporaryFile(_SPOOLED)) for _ in batch[1:]]
                    sinks += [spool.write for spool in spools]
                    for write, tensor in zip(sinks, batch, strict=True):
                        write(f"{(len(self), *tensor.shape[1:])} {tensor.dtype}".encode())
                for write, tensor in zip(sinks, batch, strict=True):
                    write(as_bytes(tensor))
            for spool in spools:
                spool.seek(0)
                while content := spool.read(_CHUNK):
                    sink(content)

    def _chunks(self) -> Iterator[tuple[int, Batch]]:
        """Yield all data in chunks of bounded size: the index of the first datum of each chunk, and the chunk."""
        size = max(1, _CHUNK // max(1, sum(tensor.nbytes for tensor in self.slice(0, 1))))
        start = 0
        for batch in self.batches(size):
            yield start, batch
            start += len(batch[0])


def _wrong_rows(batch: Batch, allow_nan: bool) -> Tensor:
    """Return a mask, shape ``(B,)``, that is true for data with infinite values.

    If ``allow_nan`` is false, the mask is also true for data with NaN.
    """
    floating = [tensor.detach().reshape(len(tensor), -1) for tensor in batch if tensor.is_floating_point()]
    wrong = [(tensor.isinf() if allow_nan else ~tensor.isfinite()).any(1).cpu() for tensor in floating]
    return torch.stack(wrong).any(0)


@contextmanager
def repeatable() -> Iterator[None]:
    """Context manager that seeds the generators of torch (CPU), NumPy and Python with 0, and restores them at exit."""
    saved = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # torch.manual_seed would seed CUDA as well, which is not restored
        random.seed(0)
        np.random.seed(0)
        try:
            yield
        finally:
            random.setstate(saved[0])
            np.random.set_state(saved[1])
