"""Pareto-smoothed importance sampling, computed for many data at once on the device of the weights.

The tails of all data are fitted in one batch. This fit agrees with ArviZ up to rounding. It does not apply to a few
data, for example if the smallest weight of a tail equals the largest weight below the tail. ArviZ smooths the weights
of these data. ArviZ 0.23 and ArviZ 1.x have different functions for Pareto smoothing, and this module supports both.
"""

import math
import warnings

import numpy as np
import torch
from torch import Tensor

from pyrovae.evaluation.diagnostics.generalized_pareto import smooth

with warnings.catch_warnings():
    # ArviZ 0.23 announces 1.0 at every import. This module supports both versions, so the warning does not apply.
    warnings.simplefilter("ignore", FutureWarning)
    try:
        from arviz_stats.base import array_stats  # ArviZ 1.x
    except ModuleNotFoundError:
        array_stats = None
        from arviz import psislw


def psis(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    r"""Smooth the largest importance weights of each datum by a generalized Pareto distribution that is fitted to them.

    The fitted shape :math:`\hat k` tells whether the draws can estimate the mean of the weights. If k-hat is below 0.5,
    the estimate is reliable. If k-hat is above 0.7, the estimate should not be trusted, however small its standard
    error is.

    Args:
        log_weights: Logarithms of importance weights, shape ``(num_samples, N)``, nats.

    Returns:
        Two float64 tensors on the CPU. The first, shape ``(num_samples, N)``, holds the smoothed log-weights,
        normalized so that the weights of each datum sum to one. The second, shape ``(N,)``, holds k-hat. k-hat is
        ``inf`` if all weights of a datum are zero. k-hat is ``-inf`` if the largest weights are positive and equal up
        to rounding, because there is no tail. For all other weights, k-hat is ``inf`` if there are 20 draws or fewer,
        because a tail cannot be fitted.

    Raises:
        ValueError: If ``log_weights`` is empty, not two-dimensional, or not floating-point.
        FloatingPointError: If a log-weight is NaN or +inf. A log-weight of -inf, a weight of zero, is allowed.

    Source:
        *Pareto Smoothed Importance Sampling* (Vehtari, Simpson, Gelman, Yao and Gabry, 2024).

    Example:
        >>> import torch, pyrovae as pv
        >>> generator = torch.Generator().manual_seed(0)
        >>> light = torch.randn(1000, 1, generator=generator)  # logarithms of weights with all moments
        >>> smoothed, pareto_k = pv.evaluation.psis(torch.cat([light, 5 * light], dim=1))
        >>> bool(pareto_k[0] < 0.7), bool(pareto_k[1] > 0.7)
        (True, True)
        >>> torch.allclose(smoothed.exp().sum(0), torch.ones(2, dtype=torch.float64))
        True
    """
    if log_weights.ndim != 2 or not log_weights.numel() or not log_weights.is_floating_point():
        raise ValueError(
            f"psis needs non-empty floating-point log-weights of shape (num_samples, N), got shape "
            f"{tuple(log_weights.shape)} and {log_weights.dtype}"
        )
    if (log_weights.isnan() | (log_weights == math.inf)).any():
        bad = (log_weights.isnan() | (log_weights == math.inf)).any(0).nonzero().flatten().tolist()
        raise FloatingPointError(
            f"log-weights of {len(bad)} data are NaN or +inf, the first at index {bad[0]}. Check the "
            f"computation of the log-weights: the model may have diverged."
        )
    rows = log_weights.detach().double().T.clone(memory_format=torch.contiguous_format)
    num_samples = rows.shape[1]
    nothing = rows.isneginf().all(1)  # all weights of the datum are zero
    rows[nothing] = 0.0
    zero = rows.isneginf()
    lowest = rows.masked_fill(zero, math.inf).amin(1, keepdim=True)
    rows = torch.where(zero, torch.minimum(lowest, rows.amax(1, keepdim=True) - 800.0) - 1.0, rows)
    tail = math.ceil(min(num_samples / 5, 3 * math.sqrt(num_samples)))  # number of weights that the fit uses
    largest = rows.topk(min(num_samples, tail + 1), dim=1).values
    # Weights that differ by a factor of e are unequal, even if the dtype is coarse at their magnitude.
    rounding = (64 * torch.finfo(log_weights.dtype).eps * rows.abs().amax(1)).clamp(max=1.0)
    flat = largest[:, 0] - largest[:, -1] <= rounding

    pareto_k = torch.full_like(rows[:, 0], math.inf).masked_fill(flat, -math.inf)
    fitted = ~flat & (tail >= 5)
    if fitted.any():
        rows[fitted], pareto_k[fitted] = _smoothed(rows[fitted], tail)  # normalized
    rows[~fitted] = rows[~fitted].log_softmax(1)
    rows[zero] = -math.inf
    pareto_k[nothing] = math.inf
    return rows.T.cpu(), pareto_k.cpu()


def _smoothed(rows: Tensor, tail: int) -> tuple[Tensor, Tensor]:
    """Return the smoothed log-weights and k-hat of each row of log-weights.

    All rows are fitted together. If the fit does not apply to a row, ArviZ smooths this row.
    """
    smoothed, pareto_k, applies = smooth(rows, tail)
    if not applies.all():
        others = _psislw(rows[~applies].cpu().numpy())
        smoothed[~applies], pareto_k[~applies] = (torch.from_numpy(part).to(rows) for part in others)
    return smoothed, pareto_k


def _psislw(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if array_stats is None:
        with np.errstate(over="ignore"):  # the inverse of an overflowing term is zero, which is right
            return psislw(rows)
    return array_stats.psislw(-rows, axis=-1)  # expects log-likelihoods, whose inverses are the weights
