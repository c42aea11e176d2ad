"""The arguments of model and guide. Some of them are data, which an evaluation divides into batches."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae.data.arrays import is_array
from pyrovae.data.source import Batch, repeatable
from pyrovae.data.sources import as_source

HALF = torch.float16, torch.bfloat16

_CHUNK = 2**24  # bytes of data that a pass over all data holds in memory


class ProgramData:
    """The data of an evaluation, as the arguments of model and guide.

    Args:
        name: Name of the data in error messages.
        data: Data of a kind that :mod:`pyrovae.data.sources` lists, or a tuple of arrays and other arguments. Other
            arguments are passed to the programs unchanged. Data are read in the order of the data set; a stream is read
            into memory.

    Raises:
        TypeError: If the data have an unsupported type, or a tensor is not dense.
        ValueError: If there are no data, arrays have different lengths, or an array is in half precision.
    """

    def __init__(self, name: str, data: Any) -> None:
        self.others: dict[int, Any] = {}
        if isinstance(data, tuple) and any(map(is_array, data)):
            self.others = {place: part for place, part in enumerate(data) if not is_array(part)}
            data = tuple(filter(is_array, data))
        # A source converts NumPy's half precision to float32, so the arrays themselves must be checked as well.
        _check_half(name, [getattr(part, "dtype", None) for part in (data if isinstance(data, tuple) else (data,))])
        self.source = as_source(name, data, indexed=True)
        with repeatable():
            self.datum = self.source.slice(0, 1)
        _check_half(name, [tensor.dtype for tensor in self.datum])

    @property
    def device(self) -> torch.device:
        """Device of the data; of the first array if there are several."""
        return self.datum[0].device

    def __len__(self) -> int:
        """Return the number of data."""
        return len(self.source)

    @property
    def bytes_per_datum(self) -> int:
        """Size of one datum in bytes, at least 1."""
        return max(1, sum(tensor.nbytes for tensor in self.datum))

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the data; of the first array if there are several."""
        return self.datum[0].dtype

    def batch(self, start: int, stop: int, device: torch.device) -> tuple[Any, ...]:
        """Return the arguments of the programs for the data from ``start`` to ``stop``, on a device."""
        with repeatable():
            return self._arguments(self.source.slice(start, stop), device)

    def select(self, indices: Tensor, device: torch.device) -> tuple[Any, ...]:
        """Return the arguments of the programs for the data at ``indices``, on a device."""
        with repeatable():
            return self._arguments(self.source.batch(indices), device)

    def finite(self) -> Tensor:
        """Return the indices of the data that hold neither NaN nor infinite values."""
        finite = torch.ones(len(self), dtype=torch.bool)
        if not any(map(torch.is_floating_point, self.datum)):
            return finite.nonzero().flatten()
        stop = 0
        with repeatable():
            for batch in self.source.batches(max(1, _CHUNK // self.bytes_per_datum)):
                start, stop = stop, stop + len(batch[0])
                for tensor in filter(torch.is_floating_point, batch):
                    finite[start:stop] &= tensor.detach().isfinite().reshape(len(tensor), -1).all(1).cpu()
        return finite.nonzero().flatten()

    def fingerprint(self) -> str:
        """Return the SHA-1 of the arrays. Two results with the same SHA-1 are results for the same data.

        Elements of a tuple that are not arrays are left out, because they are options of the programs. They have their
        own checksum, :func:`pyrovae.evaluation.provenance.arguments_sha1`.
        """
        return self.source.fingerprint()

    def _arguments(self, batch: Batch, device: torch.device) -> tuple[Any, ...]:
        arguments: list[Any] = [tensor.to(device) for tensor in batch]
        for place, other in self.others.items():  # in the order of their places
            arguments.insert(place, other)
        return tuple(arguments)


def _check_half(name: str, dtypes: list[Any]) -> None:
    """Raise ValueError if data are in half precision.

    Raises:
        ValueError: If a dtype of torch or NumPy is a 16-bit floating-point type.
    """
    for dtype in dtypes:
        if dtype in HALF or (isinstance(dtype, np.dtype) and dtype == np.float16):
            raise ValueError(
                f"{name} is in half precision, {dtype}, whose rounding errors exceed the Monte Carlo error. Pass "
                f"{name} as float32, and precision='bfloat16' for fast matrix products."
            )
