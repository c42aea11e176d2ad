"""Pareto-smoothed importance sampling, computed by ArviZ 0.23 or ArviZ 1.x, which have different functions for it."""

import math
import warnings

import numpy as np
import torch
from torch import Tensor

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
        ``-inf`` if the largest weights of a datum are equal up to rounding, because there is no tail. Otherwise, k-hat
        is ``inf`` for 20 draws or fewer, because a tail cannot be fitted. k-hat is also ``inf`` if all weights of a
        datum are zero.

    Raises:
        ValueError: If ``log_weights`` is empty, not two-dimensional, or not floating-point.
        FloatingPointError: If a log-weight is NaN or +inf. A log-weight of -inf, a weight of zero, is allowed.

    Source:
        *Pareto Smoothed Importance Sampling* (Vehtari, Simpson, Gelman, Yao and Gabry, 2024), implemented by ArviZ.

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
            f"log-weights of {len(bad)} data are NaN or +inf, the first at index {bad[0]}. The model has diverged: "
            f"check its parameters and the scales that its networks return."
        )
    rows = np.array(log_weights.detach().cpu().double().numpy().T, order="C")
    num_samples = rows.shape[1]
    nothing = np.isneginf(rows).all(1)  # all weights of the datum are zero
    rows[nothing] = 0.0
    lowest = np.where(np.isneginf(rows), np.inf, rows).min(1, keepdims=True)
    zero = np.isneginf(rows)
    rows = np.where(zero, np.minimum(lowest, rows.max(1, keepdims=True) - 800.0) - 1.0, rows)
    tail = math.ceil(min(num_samples / 5, 3 * math.sqrt(num_samples)))  # number of draws to which ArviZ fits the tail
    below = max(0, num_samples - tail - 1)
    largest = np.partition(rows, below, axis=1)[:, below:]
    # Weights that differ by a factor of e are unequal, even if the dtype is coarse at their magnitude.
    rounding = np.minimum(64 * torch.finfo(log_weights.dtype).eps * np.abs(rows).max(1), 1.0)
    flat = np.ptp(largest, axis=1) <= rounding

    pareto_k = np.where(flat, -np.inf, np.inf)
    fitted = ~flat & (tail >= 5)
    if fitted.any():
        rows[fitted], pareto_k[fitted] = _psislw(rows[fitted])  # normalized
    rows[~fitted] -= np.logaddexp.reduce(rows[~fitted], axis=1, keepdims=True)
    rows[zero] = -np.inf
    pareto_k[nothing] = np.inf
    return torch.from_numpy(rows.T), torch.from_numpy(pareto_k)


def _psislw(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if array_stats is None:
        with np.errstate(over="ignore"):  # the inverse of an overflowing term is zero, which is right
            return psislw(rows)
    return array_stats.psislw(-rows, axis=-1)  # expects log-likelihoods, whose inverses are the weights
