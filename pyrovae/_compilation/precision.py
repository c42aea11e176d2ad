"""The precision of matrix products. All other operations, in particular densities, keep their precision."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

Precision = Literal["tf32", "bfloat16"]

_LAYERS = {
    functional.linear,
    functional.conv1d,
    functional.conv2d,
    functional.conv3d,
    functional.conv_transpose1d,
    functional.conv_transpose2d,
    functional.conv_transpose3d,
}


def check_precision(precision: Precision | None, device: torch.device) -> None:
    """Check that a precision is known and that the device supports it.

    Raises:
        ValueError: If the precision is unknown, or the device does not support it.
    """
    if precision is not None and precision not in get_args(Precision):
        raise ValueError(
            f"precision must be one of {get_args(Precision)}, or None for torch's own setting, got {precision!r}. "
            f"This option sets the precision of matrix products. To set a Monte Carlo error in nats, pass precision= "
            f"to log_likelihood, verdicts or draws_needed."
        )
    if precision == "tf32" and device.type != "cuda":
        raise ValueError(
            f"precision='tf32' is available only on CUDA devices, not on {device.type!r}. Use precision='bfloat16' or "
            f"None."
        )


@contextmanager
def products(precision: Precision | None) -> Iterator[None]:
    """Context manager: compute the matrix products of linear and convolutional layers in the given precision.

    ``"bfloat16"`` rounds the arguments and results of these products to 8 significant bits, and returns the results in
    float32. All densities are computed in float32, in contrast to ``torch.autocast``. On a CUDA device, ``"tf32"``
    rounds the arguments of all float32 matrix products to 11 significant bits.
    """
    if precision == "tf32":
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
    elif precision == "bfloat16":
        with _Rounded():
            yield
    else:
        yield


class _Rounded(TorchFunctionMode):
    """Context manager that runs layers on rounded copies of their float32 arguments."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _LAYERS or args[0].dtype != torch.float32:
            return func(*args, **kwargs)
        rounded = [arg.bfloat16() if isinstance(arg, Tensor) else arg for arg in args]
        named = {name: arg.bfloat16() if isinstance(arg, Tensor) else arg for name, arg in kwargs.items()}
        return func(*rounded, **named).float()
