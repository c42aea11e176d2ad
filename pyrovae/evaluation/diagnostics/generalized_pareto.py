r"""Pareto smoothing of the largest weights of many data at once.

Let :math:`e_1 \le \dots \le e_M` be the M largest weights of a datum, minus the next largest weight. They are modelled
by a generalized Pareto distribution with the survival function :math:`(1 + k e / \sigma)^{-1/k}`. Let
:math:`b = -k / \sigma`. The profile log-likelihood of b, and the shape that maximizes the likelihood for given b, are

.. math:: \ell(b) = M \big(\log(-b / \kappa(b)) - \kappa(b) - 1\big), \qquad
    \kappa(b) = \frac1M \sum_i \log(1 - b e_i).

The estimate of b is its mean under a discrete posterior on a grid of :math:`30 + \lfloor\sqrt M\rfloor` values, and
:math:`\kappa` of this mean is the estimate of k. A prior that counts as ten further weights then shrinks this estimate
towards 1/2: it becomes :math:`(M k + 5) / (M + 10)`. The largest weights are replaced by quantiles of the fitted
distribution.

Source:
    *A New and Efficient Estimation Method for the Generalized Pareto Distribution* (Zhang and Stephens, 2009), for the
    grid; *Pareto Smoothed Importance Sampling* (Vehtari, Simpson, Gelman, Yao and Gabry, 2024), for the prior of k and
    the smoothing.
"""

import math

import torch
from torch import Tensor

NUMBERS = 2**18  # numbers of the grid that a chunk of data evaluates, so that a chunk fits into a processor's cache


def smooth(log_weights: Tensor, tail: int) -> tuple[Tensor, Tensor, Tensor]:
    """Smooth the largest weights of each datum by a generalized Pareto distribution.

    Args:
        log_weights: Finite log-weights in float64, shape ``(N, num_samples)``.
        tail: Number of weights that are smoothed, less than ``num_samples``.

    Returns:
        Three tensors: the smoothed log-weights, normalized so that the weights of a datum sum to one, in the shape of
        ``log_weights``; k-hat, shape ``(N,)``; and a boolean tensor, true if the fit applies to a datum, shape
        ``(N,)``. The fit does not apply if the smallest of the weights to be smoothed equals the largest of all other
        weights, or if a number underflows or overflows. The other results of such a datum have no meaning.
    """
    largest, places = log_weights.topk(tail + 1, dim=1)
    top, cutoff = largest[:, :1], largest[:, -1:] - largest[:, :1]
    exceedances = ((largest[:, :-1] - top).exp() - cutoff.exp()).flip(1)
    chunks = exceedances.split(max(1, NUMBERS // (tail * _grid_size(tail))))
    k, sigma = (torch.cat(parts) for parts in zip(*map(fit, chunks), strict=True))
    levels = (torch.arange(tail, dtype=k.dtype, device=k.device) + 0.5) / tail
    quantiles = _quantiles(levels, k[:, None], sigma[:, None]) + cutoff.exp()
    smoothed = (log_weights - top).scatter(1, places[:, :-1], quantiles.log().clamp(max=0.0).flip(1))
    applies = (exceedances[:, 0] > 0) & (cutoff[:, 0] > math.log(torch.finfo(k.dtype).tiny)) & k.isfinite()
    return smoothed - smoothed.logsumexp(1, keepdim=True), k, applies


def fit(exceedances: Tensor) -> tuple[Tensor, Tensor]:
    """Fit a generalized Pareto distribution to each row, and return the shapes k and the scales, each ``(N,)``.

    Args:
        exceedances: Positive numbers in increasing order, shape ``(N, M)``.
    """
    count = exceedances.shape[1]
    size = _grid_size(count)
    steps = torch.arange(1, size + 1, dtype=exceedances.dtype, device=exceedances.device)
    quartile = exceedances[:, int(count / 4 + 0.5) - 1, None]
    b = (1 - (size / (steps - 0.5)).sqrt()) / (3 * quartile) + 1 / exceedances[:, -1:]
    k = torch.log1p(-b[:, :, None] * exceedances[:, None]).mean(2)
    weights = (count * ((-b / k).log() - k - 1)).softmax(1)
    weights = torch.where(weights < 10 * torch.finfo(weights.dtype).eps, 0.0, weights)
    mean_b = (weights * b).sum(1) / weights.sum(1)
    shape = torch.log1p(-mean_b[:, None] * exceedances).mean(1)
    return (count * shape + 5) / (count + 10), -shape / mean_b


def _grid_size(count: int) -> int:
    return 30 + math.isqrt(count)


def _quantiles(levels: Tensor, k: Tensor, sigma: Tensor) -> Tensor:
    """Return quantiles of the generalized Pareto distribution, which is exponential for ``k = 0``."""
    logs = torch.log1p(-levels)
    is_zero = k.abs() < torch.finfo(k.dtype).eps
    return sigma * torch.where(is_zero, -logs, torch.expm1(-k * logs) / torch.where(is_zero, 1.0, k))
