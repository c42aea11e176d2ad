"""The arguments of a program: which of them are data, and how they are cut into batches."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae.arguments import as_tuple, fingerprint

HALF = torch.float16, torch.bfloat16


class ProgramData:
    """The data of an evaluation, as the arguments of model and guide.

    Args:
        name: Name of the data in error messages.
        data: A tensor or array, or a tuple of arguments. Tensors and arrays share the first dimension, that of the
            data. Other arguments are passed to the programs as they are.

    Raises:
        TypeError: If there is no tensor or array among them, or a tensor is not dense.
        ValueError: If there are no data, they have different lengths, or are in half precision.
    """

    def __init__(self, name: str, data: Any) -> None:
        self.name = name
        given: tuple[Any, ...] = as_tuple(data)
        self.arguments = [torch.as_tensor(arg) if isinstance(arg, np.ndarray) else arg for arg in given]
        tensors = self.tensors
        if not tensors:
            found = [type(arg).__name__ for arg in self.arguments]
            raise TypeError(
                f"{name} must be a tensor or a NumPy array, or a tuple with one among its arguments, got {found}; use "
                f"torch.as_tensor(...)"
            )
        shapes = [tuple(tensor.shape) for tensor in tensors]
        if not all(shapes) or len({shape[0] for shape in shapes}) > 1:
            raise ValueError(
                f"the tensors of {name} must share a first dimension, that of the data, got shapes {shapes}; pass "
                f"other arguments by keyword, kwargs={{...}}"
            )
        if not shapes[0][0]:
            raise ValueError(f"{name} is empty, shape {shapes[0]}; give at least one datum")
        if any(tensor.layout != torch.strided for tensor in tensors):
            raise TypeError(f"{name} must be dense, got {[str(tensor.layout) for tensor in tensors]}; call .to_dense()")
        if half := [tensor.dtype for tensor in tensors if tensor.dtype in HALF]:
            raise ValueError(
                f"{name} is in half precision, {half[0]}, whose rounding errors are larger than Monte Carlo errors; "
                f"pass {name}.float(), and precision='bfloat16' for fast products"
            )

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The arguments that are data."""
        return tuple(arg for arg in self.arguments if isinstance(arg, Tensor))

    @property
    def device(self) -> torch.device:
        """Device of the first tensor."""
        return self.tensors[0].device

    def __len__(self) -> int:
        """Return the number of data."""
        return len(self.tensors[0])

    @property
    def bytes_per_datum(self) -> int:
        """Bytes of one datum."""
        return max(1, sum(tensor.nbytes for tensor in self.tensors) // len(self))

    def batch(self, start: int, stop: int, device: torch.device) -> tuple[Any, ...]:
        """Return the arguments with the data from ``start`` to ``stop``, on a device."""
        return tuple(arg[start:stop].to(device) if isinstance(arg, Tensor) else arg for arg in self.arguments)

    def finite(self) -> Tensor:
        """Return the indices of the data that hold neither NaN nor infinite values."""
        finite = torch.ones(len(self), dtype=torch.bool)
        for tensor in filter(torch.is_floating_point, self.tensors):
            finite &= tensor.isfinite().reshape(len(self), -1).all(1).cpu()
        return finite.nonzero().flatten()

    def select(self, indices: Tensor, device: torch.device) -> tuple[Any, ...]:
        """Return the arguments with chosen data, on a device."""
        return tuple(
            arg[indices.to(arg.device)].to(device) if isinstance(arg, Tensor) else arg for arg in self.arguments
        )

    def fingerprint(self) -> str:
        """Return the SHA-1 of the data, by which two results are known to be of the same."""
        return fingerprint(self.tensors)
