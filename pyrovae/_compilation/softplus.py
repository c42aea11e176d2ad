r"""log(1 + e^x) in compiled graphs, without a call of log1p, which took half of the time of a Bernoulli density.

With s = e / (2 + e) and e = exp(-|x|), which is at most 1, so that s is at most 1/3,

.. math:: \log(1 + e^x) = \max(x, 0) + \log(1 + e), \qquad \log(1 + e) = 2 \operatorname{artanh} s
   = 2 s \left(1 + \frac{s^2}{3} + \frac{s^4}{5} + \dots\right).

What follows the term in s^12 is below 2e-8 of the sum, a quarter of what float32 can tell from it. A division and these
few products are a fraction of the vectorized log1p that inductor calls on a CPU; on a GPU both wait for the memory.

log(1 + e) is one operation of a graph, and inductor is told how to write the series. As several operations it would use
e twice, and what takes an exponential and is used twice, inductor keeps in memory on a CPU.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

TERMS = 7


@torch.library.custom_op("pyrovae::log1p_exp", mutates_args=(), device_types="cpu")
def log1p_exp(x: Tensor) -> Tensor:
    """log(1 + e^x) for x <= 0."""
    return _log1p(x.exp())


@log1p_exp.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def softplus(x: Tensor, beta: float = 1, threshold: float = 20) -> Any:
    """In the place of ``aten.softplus``; not implemented where that is as fast, or another function."""
    if not _by_log1p(x) or beta != 1 or threshold < 20:  # from 20 on, float32 does not tell log(1 + e^x) from x
        return NotImplemented
    return x.clamp(min=0) + log1p_exp(-x.abs())


def cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, pos_weight: Tensor | None = None, reduction: int = 1
) -> Any:
    """In the place of ``aten.binary_cross_entropy_with_logits``; not implemented with weights, sums and means."""
    if not _by_log1p(logits) or weight is not None or pos_weight is not None or reduction != 0:
        return NotImplemented
    return (1 - target) * logits - (logits.clamp(max=0) - log1p_exp(-logits.abs()))


@cache
def teach_inductor() -> None:
    """Has inductor write the series into its kernels."""
    from torch._inductor.lowering import make_pointwise, register_lowering
    from torch._inductor.virtualized import ops

    def series(x: Any) -> Any:
        return _log1p(ops.exp(x), lambda value: ops.constant(value, torch.float32))

    register_lowering(torch.ops.pyrovae.log1p_exp.default)(make_pointwise(series))


def _by_log1p(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32


def _log1p(e: Any, number: Callable[[float], Any] = float) -> Any:
    """log(1 + e) for 0 <= e <= 1, a tensor or a value of inductor's, which takes numbers in a form of its own."""
    s = e / (e + number(2))
    square = s * s
    series = number(1 / (2 * TERMS - 1))
    for n in reversed(range(TERMS - 1)):  # by Horner's rule
        series = series * square + number(1 / (2 * n + 1))
    return number(2) * s * series
