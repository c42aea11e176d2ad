"""Pareto-smoothed importance sampling, from ArviZ 0.23 or 1.x: the one place that knows which."""

import math
import warnings

import numpy as np
import torch
from torch import Tensor

with warnings.catch_warnings():
    # ArviZ 0.23 announces 1.0 at every import; this module is what will need no change then.
    warnings.simplefilter("ignore", FutureWarning)
    try:
        from arviz_stats.base import array_stats  # ArviZ 1.x
    except ModuleNotFoundError:
        array_stats = None
        from arviz import psislw


def psis(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    r"""Smooths the largest importance weights of each datum by a generalized Pareto distribution fitted to them.

    The fitted shape :math:`\hat k` says whether the weights have a mean and a variance that the draws can show: below
    0.5 all is well, above 0.7 estimates from these draws are not to be trusted, however small their standard error.

    Args:
        log_weights: Shape ``(num_samples, N)``, nats.

    Returns:
        The smoothed log-weights, normalized so that each datum's weights sum to one, shape ``(num_samples, N)``, and
        k-hat, shape ``(N,)``. It is ``-inf`` where a datum's largest weights are equal up to rounding, for then there
        is no tail, and ``inf`` where there are too few draws to fit one, 20 or fewer. Both float64, on the CPU.

    Raises:
        ValueError: If the log-weights do not have that shape, or are not floating-point.
        FloatingPointError: If one is NaN or +inf. A weight of zero, -inf, is legal.

    Source:
        *Pareto Smoothed Importance Sampling* (Vehtari, Simpson, Gelman, Yao and Gabry, 2024), by ArviZ.

    Example:
        >>> import torch, pyrovae as pv
        >>> smoothed, pareto_k = pv.evaluation.psis(torch.randn(1000, 3, generator=torch.manual_seed(0)))
        >>> bool((pareto_k < 0.7).all()), torch.allclose(smoothed.exp().sum(0), torch.ones(3, dtype=torch.float64))
        (True, True)
    """
    if log_weights.ndim != 2 or not log_weights.numel() or not log_weights.is_floating_point():
        raise ValueError(
            f"psis takes floating-point log-weights of shape (num_samples, N), at least one of each, got "
            f"{tuple(log_weights.shape)} of {log_weights.dtype}"
        )
    if (log_weights.isnan() | (log_weights == math.inf)).any():
        bad = (log_weights.isnan() | (log_weights == math.inf)).any(0).nonzero().flatten().tolist()
        raise FloatingPointError(
            f"log-weights of {len(bad)} data are NaN or infinite, the first at index {bad[0]}; the model has diverged "
            f"there: look at its parameters and at the scales that it gives"
        )
    rows = np.array(log_weights.detach().cpu().double().numpy().T, order="C")
    num_samples = rows.shape[1]
    nothing = np.isneginf(rows).all(1)  # no draw has a weight
    rows[nothing] = 0.0
    lowest = np.where(np.isneginf(rows), np.inf, rows).min(1, keepdims=True)
    zero = np.isneginf(rows)
    rows = np.where(zero, np.minimum(lowest, rows.max(1, keepdims=True) - 800.0) - 1.0, rows)
    tail = math.ceil(min(num_samples / 5, 3 * math.sqrt(num_samples)))  # the draws that ArviZ fits
    below = max(0, num_samples - tail - 1)
    largest = np.partition(rows, below, axis=1)[:, below:]
    # Weights that differ by a factor of e are not equal, however coarse their dtype is at such magnitudes.
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
        with np.errstate(over="ignore"):  # of terms whose inverse is then zero, as it should be
            return psislw(rows)
    return array_stats.psislw(-rows, axis=-1)  # takes the log-likelihoods whose inverses are the weights
