"""How exactly matrix products are computed, while everything around them, densities above all, stays as it is."""

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
    """Refuses precisions that there are not.

    Raises:
        ValueError: If there is no such precision, or the device does not have it.
    """
    if precision is not None and precision not in get_args(Precision):
        raise ValueError(
            f"precision is one of {get_args(Precision)}, or None for torch's own, got {precision!r}; it "
            f"sets matrix products. A Monte Carlo error in nats is the precision of log_likelihood, verdicts and "
            f"draws_needed"
        )
    if precision == "tf32" and device.type != "cuda":
        raise ValueError(f"TF32 is a format of CUDA devices, not of {device.type!r}; use precision='bfloat16' or None")


@contextmanager
def products(precision: Precision | None) -> Iterator[None]:
    """Computes the products of linear and convolutional layers in another precision.

    ``"bfloat16"`` rounds what goes into them and their results to 8 significant bits, and gives the results back in
    float32: unlike under ``torch.autocast``, no density is computed from less than a float32. ``"tf32"`` rounds what
    goes into any product of float32 matrices on a CUDA device to 11 bits.
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
    """Runs layers on rounded copies of their float32 arguments."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _LAYERS or args[0].dtype != torch.float32:
            return func(*args, **kwargs)
        rounded = [arg.bfloat16() if isinstance(arg, Tensor) else arg for arg in args]
        named = {name: arg.bfloat16() if isinstance(arg, Tensor) else arg for name, arg in kwargs.items()}
        return func(*rounded, **named).float()
