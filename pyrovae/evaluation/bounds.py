r"""Bounds, Monte Carlo errors and effective sample size, computed from log-weights of shape ``(num_samples, N)``.

With :math:`K` draws per datum and their weights :math:`w_k`, :math:`\mathrm{ELBO} = \frac{1}{K} \sum_k \log w_k` and
:math:`\log \hat p(x) = \log \frac{1}{K} \sum_k w_k`, which is :math:`\mathrm{IWAE}_K`. For :math:`k < K`,

.. math:: \mathrm{IWAE}_k = \frac{1}{K} \sum_{i=1}^K \log \frac{1}{k} \sum_{j=0}^{k-1} w_{(i + j) \bmod K}.

The outer sum runs over all cyclic windows of k neighbouring draws, so every draw counts k times. By Jensen's
inequality, :math:`\mathrm{ELBO} \le \mathrm{IWAE}_k \le \mathrm{IWAE}_{mk} \le \log \hat p(x)` holds exactly for the
given draws, for every integer m with :math:`mk \le K`.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def of_valid(
    log_weights: Tensor, columns: Callable[[Tensor], Mapping[str, Tensor]], *, draws_dims: int = 1
) -> dict[str, Tensor]:
    """Return statistics of each datum, by name. They are NaN if a log-weight of the datum is NaN or +inf.

    All results are on the CPU, whatever the device of the log-weights.

    Args:
        log_weights: Log-weights, shape ``(*draws, N)``, nats.
        columns: Function that takes the log-weights of n data. It returns a dictionary of statistics, each of shape
            ``(n,)`` or ``(n, *rest)``.
        draws_dims: Number of leading dimensions that hold draws.
    """
    valid = ~(log_weights.isnan() | (log_weights == math.inf)).flatten(0, draws_dims - 1).any(0)
    if valid.all():
        return {name: values.cpu() for name, values in columns(log_weights).items()}
    size, found = len(valid), columns(log_weights[..., valid] if valid.any() else torch.zeros_like(log_weights))
    result = {}
    for name, values in found.items():
        result[name] = torch.full((size, *values.shape[1:]), math.nan, dtype=torch.float64)
        if valid.any():
            result[name][valid.cpu()] = values.double().cpu()
    return result


def elbo(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ELBO of each datum and its Monte Carlo standard error, shapes ``(N,)``, nats."""
    return log_weights.mean(0), _std(log_weights) / math.sqrt(len(log_weights))


def iwae(log_weights: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the bound IWAE_k of each datum and its Monte Carlo standard error, shapes ``(N,)``, nats.

    With K draws, IWAE_k is a mean over K windows of k draws each. The windows overlap, so the error is computed as if
    only K / k of them were independent. If K / k is less than ten, the returned error is that of IWAE_K, computed by
    :func:`log_likelihood`.

    Raises:
        ValueError: If ``k`` is not between 1 and the number of draws.
    """
    num_samples = len(log_weights)
    if not 1 <= k <= num_samples:
        raise ValueError(f"k must be between 1 and the number of draws, {num_samples}, got k={k}")
    if k == num_samples:
        return log_likelihood(log_weights)
    windows = _window_sums(log_weights, k) - math.log(k)
    mcse = _std(windows) * math.sqrt(k / num_samples) if 10 * k <= num_samples else log_likelihood(log_weights)[1]
    return windows.mean(0), mcse


def log_likelihood(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return two tensors of shape ``(N,)``, nats: the estimate of log p(x) from all draws, and its standard error.

    The Monte Carlo standard error follows from the delta method: :math:`\mathrm{sd}(w) / (\sqrt{K}\, \bar w)`.
    """
    num_samples = len(log_weights)
    estimate = log_weights.logsumexp(0) - math.log(num_samples)
    if num_samples == 1:
        return estimate, torch.full_like(estimate, math.nan)
    relative_variance = (num_samples / effective_sample_size(log_weights) - 1).clamp(min=0) / (num_samples - 1)
    return estimate, relative_variance.sqrt()


def rounding_error(log_weights: Tensor) -> Tensor:
    """Return the error that rounded log-weights cause in the estimate of log p(x), shape ``(N,)``, nats.

    A log-weight is a sum of many terms, each of which is rounded. The error is taken as the absolute value of
    the largest log-weight times the machine epsilon of the dtype.
    """
    largest = log_weights.amax(0).abs()
    return torch.finfo(log_weights.dtype).eps * torch.where(largest.isfinite(), largest, 0.0).double()


def effective_sample_size(log_weights: Tensor) -> Tensor:
    r"""Return Kish's effective sample size of each datum, :math:`(\sum_k w_k)^2 / \sum_k w_k^2`, shape ``(N,)``.

    The value lies between 1 and the number of draws, K. It is 0 if all weights are zero.

    Source:
        *Survey Sampling* (Kish, 1965); *A Note on Importance Sampling using Standardized Weights* (Kong, 1992).
    """
    total = log_weights.logsumexp(0)
    ess = (2 * total - (2 * log_weights).logsumexp(0)).exp()
    return torch.where(total == -math.inf, 0.0, ess)  # all weights are zero


def _window_sums(log_weights: Tensor, k: int) -> Tensor:
    """Return the log of the sum of weights in each cyclic window of k draws, shape ``(num_samples, N)``, nats."""
    rows = log_weights.T.contiguous()  # shifting is fastest along contiguous memory
    highest = rows.amax(1, keepdim=True)
    lowest = rows.amin(1, keepdim=True)
    if k > 1 and lowest.isfinite().all() and (highest - lowest).max() < -math.log(torch.finfo(rows.dtype).tiny):
        sums = _by_doubling(torch.add, (rows - highest).exp(), k).log() + highest
    else:  # the exponential of some weights underflows, so the sums are computed from the logarithms
        sums = _by_doubling(torch.logaddexp, rows, k)
    return sums.T


def _by_doubling(add: Callable[[Tensor, Tensor], Tensor], rows: Tensor, k: int) -> Tensor:
    """Return the sums over all cyclic windows of k neighbours.

    Sums over windows of 1, 2, 4, ... neighbours are computed by doubling. A window of k neighbours consists of such
    windows, one for each power of two in k. For k = 5, these are a window of 1 and a window of 4 neighbours.
    """
    power, covered, sums = rows, 0, None
    for bit in range(k.bit_length()):
        if bit > 0:
            power = add(power, power.roll(-(1 << bit - 1), 1))
        if k >> bit & 1:
            sums = power if sums is None else add(sums, power.roll(-covered, 1))
            covered += 1 << bit
    assert sums is not None
    return sums


def _std(values: Tensor) -> Tensor:
    return values.std(0) if len(values) > 1 else torch.full_like(values[0], math.nan)
