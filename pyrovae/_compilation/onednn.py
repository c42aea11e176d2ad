"""Large matrix products of compiled graphs by oneDNN, which took up to a fifth less time for them than MKL.

torch multiplies float32 matrices by MKL wherever it has it, though it has oneDNN as well. The figures are those of an
AMD EPYC with AVX-512. The sums are rounded in another order, no less precisely.
"""

from typing import Any

import torch
from torch import Tensor

LARGE = 2**28  # multiplications; for fewer the call of an operation from Python costs what oneDNN gains


@torch.library.custom_op("pyrovae::linear", mutates_args=(), device_types="cpu")
def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The rows of a float32 matrix times the transpose of a weight; inductor takes torch's own for constants only."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


@linear.register_fake
def _(x: Tensor, weight: Tensor, _: Tensor | None) -> Tensor:
    return x.new_empty(len(x), len(weight))


def multiply(left: Tensor, right: Tensor) -> Any:
    """In the place of ``aten.mm``; not implemented where that is as fast."""
    if not _large(left, right):
        return NotImplemented
    if left.is_contiguous():
        return linear(left, right.t(), None)
    # As in the gradient of a weight. oneDNN multiplies rows, so one matrix, the narrower one, is written columns first:
    # inductor does so where it computes it.
    if right.shape[1] < left.shape[0]:
        return linear(right.t().contiguous(), left, None).t().contiguous()
    return linear(left.contiguous(), right.t(), None)


def multiply_and_add(bias: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
    """In the place of ``aten.addmm``; not implemented where that is as fast."""
    if _large(left, right) and left.is_contiguous() and beta == alpha == 1 and bias.ndim == 1:
        return linear(left, right.t(), bias)
    return NotImplemented


def _large(left: Tensor, right: Tensor) -> bool:
    by_mkl = left.device.type == "cpu" and left.dtype == torch.float32 and torch.backends.mkl.is_available()
    return by_mkl and left.numel() * right.shape[1] >= LARGE and torch.backends.mkldnn.is_available()
