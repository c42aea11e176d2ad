"""Checks that raise an error for half precision, whose rounding errors in log-weights exceed the Monte Carlo error."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pyrovae.evaluation.program_data import HALF


def check_parameters(modules: Iterable[nn.Module]) -> None:
    """Check that no parameter or buffer of the modules is in half precision.

    Raises:
        ValueError: If a parameter or buffer is in half precision.
    """
    for module in modules:
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if tensor.dtype in HALF:
                raise ValueError(
                    f"parameter {name!r} of {type(module).__name__} is in half precision, {tensor.dtype}, whose "
                    f"rounding errors in log-weights exceed the Monte Carlo error. Evaluate module.float(), and pass "
                    f"precision='bfloat16' for fast matrix products."
                )


@contextmanager
def full_precision() -> Iterator[None]:
    """Context manager that checks that the programs compute nothing in half precision.

    Raises:
        ValueError: On exit, if a tensor in half precision was created.
    """
    with HalfPrecision() as half:
        yield
    if half.found is not None:
        raise ValueError(
            f"the program computes in half precision, {half.found}. The rounding errors of the log-weights then exceed "
            f"the Monte Carlo error. Remove casts and torch.autocast from the program. For fast matrix products, pass "
            f"precision='bfloat16'."
        )


class HalfPrecision(TorchFunctionMode):
    """Context manager that records whether a tensor in half precision is created.

    Attributes:
        found: Dtype of the first such tensor, or None.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: torch.dtype | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dtype in HALF:
            self.found = self.found or result.dtype
        return result
