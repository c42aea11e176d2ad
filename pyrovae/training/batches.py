"""The mini-batches that the training loop takes from the data of a run."""

import math
from collections.abc import Callable, Iterator
from itertools import islice

from torch import Tensor

from pyrovae.arguments import as_tuple
from pyrovae.data.source import Batch
from pyrovae.isolation import seeded
from pyrovae.training.data import TrainingData

__all__ = ["Batch", "Batches", "Transform"]

Transform = Callable[..., Tensor | tuple[Tensor, ...]]


class Batches:
    """The mini-batches into which the training or validation data of a run are divided.

    Args:
        source: Data of the run.
        size: Number of data in a batch; the last batch of an epoch may be smaller.
        transform: Function that is applied to the tensors of each batch.
        accumulate: Number of batches per step of the optimizer.
    """

    def __init__(
        self, source: TrainingData, size: int, transform: Transform | None = None, accumulate: int = 1
    ) -> None:
        self.source, self.size, self.transform, self.accumulate = source, size, transform, accumulate

    @property
    def steps(self) -> int:
        """Return the number of steps per epoch."""
        return math.ceil(self.source.count(self.size) / self.accumulate)

    def order(self) -> Tensor:
        """Return the indices of the data in a random order, or in their stored order if one batch holds all data."""
        return self.source.order(self.size)

    def __iter__(self) -> Iterator[Batch]:
        """Yield all batches in the order of the data."""
        return self._transformed(self.source.batches(self.size))

    def in_steps(self, order: Tensor, start: int) -> Iterator[list[Batch]]:
        """Yield a list of batches for each step of an epoch, beginning with the step of index ``start``."""
        batches = self._transformed(self.source.batches(self.size, order, start * self.accumulate))
        while step := list(islice(batches, self.accumulate)):
            yield step

    def first(self, count: int) -> Batch:
        """Return the first ``count`` data, transformed, and leave the random generators unchanged."""
        with seeded(0):
            first = next(self.source.batches(min(count, len(self.source))))
            return next(self._transformed(iter([tuple(tensor[:count] for tensor in first)])))

    def check(self, error: Exception | None = None) -> None:
        """Raise an error if the data explain why the program failed or returned a density that is not finite.

        Args:
            error: Error of the program, if it raised one.

        Raises:
            TypeError: If the program raised an error and the data are not floating-point.
            ValueError: If a datum is NaN or infinite.
        """
        self.source.check_finite()
        dtype = self.first(1)[0].dtype
        if error is None or dtype.is_floating_point:
            return
        raise TypeError(
            f"{self.source.name} must be floating-point, but the program got {dtype} ({str(error).splitlines()[0]}). "
            f"Convert training data with transform=lambda x: x.float(). Pass validation data as floats, because they "
            f"are not transformed."
        ) from error

    def _transformed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        if self.transform is None:
            return batches
        return (as_tuple(self.transform(*batch)) for batch in batches)
