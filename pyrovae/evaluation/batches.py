"""Division of the data into batches, each of which the programs can score in one run."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from pyrovae.evaluation.program_data import ProgramData


@dataclass(frozen=True)
class Batch:
    """Data that the programs score in one run, with the arguments of this run.

    Attributes:
        args: Arguments of the programs.
        start: Index of the first datum in the data set.
        kept: Number of data whose results are used, starting with the first datum of the batch. It is smaller than
            ``size`` only if the data plate has a fixed size and the data do not fill the last batch. The first data of
            the data set then fill this batch, and the results of these repeated data are not used.
        size: Number of data in the batch.
        subsample: Indices that each subsampling plate must choose, by name of the plate.
    """

    args: tuple[Any, ...]
    start: int
    kept: int
    size: int
    subsample: dict[str, Tensor]


def batches(
    data: ProgramData, device: torch.device, plate: CondIndepStackFrame, width: int, *, cuttable: bool
) -> Iterator[Batch]:
    """Yield all data in batches.

    Args:
        data: Data to divide into batches.
        device: Device of the batches.
        plate: The data plate.
        width: Number of data in a batch. A program whose data plate has a fixed size gets batches of that size instead.
        cuttable: True if the program runs on any number of data.
    """
    size = len(data)
    if cuttable:
        for start in range(0, size, width):
            yield consecutive(data, device, start, min(start + width, size))
    elif plate.size == size:
        yield consecutive(data, device, 0, size)
    else:
        indices = torch.arange(plate.size, device=device)
        for start in range(0, size, plate.size):
            taken = {plate.name: (start + indices) % size}  # the first data fill up the last batch
            kept = min(plate.size, size - start)
            yield Batch(data.batch(0, size, device), start, kept, plate.size, taken)


def consecutive(data: ProgramData, device: torch.device, start: int, stop: int) -> Batch:
    """Return a batch of the data from index ``start`` up to, but not including, ``stop``."""
    return Batch(data.batch(start, stop, device), start, stop - start, stop - start, {})
