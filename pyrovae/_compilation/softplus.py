r"""The function log(1 + e^x) in compiled graphs, without log1p.

With log1p, half of the time of Bernoulli densities is spent in this operation.

Let e = exp(-\|x\|), which is at most 1, and s = e / (2 + e), which is at most 1/3. Then

.. math:: \log(1 + e^x) = \max(x, 0) + \log(1 + e), \qquad \log(1 + e) = 2 \operatorname{artanh} s
   = 2 s \left(1 + \frac{s^2}{3} + \frac{s^4}{5} + \dots\right).

The terms after s^12 are omitted. They are less than 1.5e-8 of the sum, a quarter of the largest relative rounding error
of float32, 6e-8. A division and a few products take a fraction of the time of the vectorized log1p that inductor calls
on a CPU. On a GPU, memory bandwidth limits the speed of both methods.

In the graph, the exponential and the series are one operation, whose code :func:`teach_inductor` gives to inductor. If
the exponential were an operation of its own, inductor on a CPU would store it in memory, because the series uses e
twice.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

TERMS = 7


@torch.library.custom_op("pyrovae::log1p_exp", mutates_args=(), device_types="cpu")
def log1p_exp(x: Tensor) -> Tensor:
    """Return log(1 + e^x) for x <= 0."""
    return _log1p(x.exp())


@log1p_exp.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def softplus(x: Tensor, beta: float = 1, threshold: float = 20) -> Any:
    """Replace ``aten.softplus`` for float32 on a CPU, if ``beta`` is 1 (the default) and ``threshold`` is at least 20.

    Return NotImplemented in all other cases.
    """
    if not _by_log1p(x) or beta != 1 or threshold < 20:  # in float32, log(1 + e^x) equals x from 20 on
        return NotImplemented
    return x.clamp(min=0) + log1p_exp(-x.abs())


def cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, pos_weight: Tensor | None = None, reduction: int = 1
) -> Any:
    """Replace ``aten.binary_cross_entropy_with_logits`` for float32 logits on a CPU.

    Return NotImplemented for other logits, for weighted losses, and for a sum or mean of the losses.
    """
    if not _by_log1p(logits) or weight is not None or pos_weight is not None or reduction != 0:
        return NotImplemented
    return (1 - target) * logits - (logits.clamp(max=0) - log1p_exp(-logits.abs()))


@cache
def teach_inductor() -> None:
    """Register the series of :func:`_log1p` with inductor, which then compiles ``log1p_exp`` to this series."""
    from torch._inductor.lowering import make_pointwise, register_lowering
    from torch._inductor.virtualized import ops

    def series(x: Any) -> Any:
        return _log1p(ops.exp(x), lambda value: ops.constant(value, torch.float32))

    register_lowering(torch.ops.pyrovae.log1p_exp.default)(make_pointwise(series))


def _by_log1p(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32


def _log1p(e: Any, number: Callable[[float], Any] = float) -> Any:
    """Return log(1 + e) for 0 <= e <= 1. ``number`` converts constants to the form that inductor's kernels need."""
    s = e / (e + number(2))
    square = s * s
    series = number(1 / (2 * TERMS - 1))
    for n in reversed(range(TERMS - 1)):  # Horner's rule
        series = series * square + number(1 / (2 * n + 1))
    return number(2) * s * series
