"""Large float32 matrix products of compiled graphs, computed by oneDNN instead of MKL.

If MKL and oneDNN are both available, torch uses MKL for float32 matrix products. On an AMD EPYC with AVX-512, oneDNN
took up to a fifth less time than MKL. The two libraries add in different orders, so their results differ by rounding.
"""

from typing import Any

import torch
from torch import Tensor

LARGE = 2**28  # number of multiplications; for smaller products, the call from Python costs what oneDNN gains


@torch.library.custom_op("pyrovae::linear", mutates_args=(), device_types="cpu")
def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``x @ weight.T + bias`` in float32 by oneDNN. Inductor itself calls oneDNN only for constant weights."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


@linear.register_fake
def _(x: Tensor, weight: Tensor, _: Tensor | None) -> Tensor:
    return x.new_empty(len(x), len(weight))


def multiply(left: Tensor, right: Tensor) -> Any:
    """Replace ``aten.mm`` for large products; return NotImplemented for other products."""
    if not _large(left, right):
        return NotImplemented
    if left.is_contiguous():
        return linear(left, right.t(), None)
    # This case occurs in the gradient of a weight. oneDNN multiplies rows, so the narrower matrix is stored by columns.
    # Inductor computes it in this order if it can.
    if right.shape[1] < left.shape[0]:
        return linear(right.t().contiguous(), left, None).t().contiguous()
    return linear(left.contiguous(), right.t(), None)


def multiply_and_add(bias: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
    """Replace ``aten.addmm`` for large products; return NotImplemented for other products."""
    if _large(left, right) and left.is_contiguous() and beta == alpha == 1 and bias.ndim == 1:
        return linear(left, right.t(), bias)
    return NotImplemented


def _large(left: Tensor, right: Tensor) -> bool:
    by_mkl = left.device.type == "cpu" and left.dtype == torch.float32 and torch.backends.mkl.is_available()
    return by_mkl and left.numel() * right.shape[1] >= LARGE and torch.backends.mkldnn.is_available()
