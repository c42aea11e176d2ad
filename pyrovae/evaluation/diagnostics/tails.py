r"""Decide for each datum if the tail of its weights is light enough for its Monte Carlo error to be valid.

The true shape k of a datum's tail is estimated by k-hat. With M weights in the tail, k-hat has a standard error of
about :math:`s = (1 + k) / \sqrt M`, which is 0.15 for k = 0.5 and 1,000 draws (M = 95). A prior shrinks k-hat towards
1/2. This module undoes the shrinkage: :math:`\tilde k = (\hat k (M + 10) - 5) / M`. The values of k for different data
are similar, because all data share a guide. Let :math:`\mu` and :math:`\tau^2` be the mean and the variance of k over
the data. Given :math:`\tilde k`, the k of a datum then has a normal posterior with

.. math:: \text{mean } \frac{\tilde k / s^2 + \mu / \tau^2}{1 / s^2 + 1 / \tau^2}, \qquad
    \text{variance } \frac{1}{1 / s^2 + 1 / \tau^2}.

Let m and d be the mean and the standard deviation of this posterior. The tail is called light if :math:`m + d / 2` is
at most 0.65 and at most :math:`1 - 1 / \log_{10} K`, where K is the number of draws per datum. With normal proposals,
the 95% intervals of reliable estimates cover log p(x) in 80% to 95% of cases. A threshold of 0.7 would lower the
coverage to 70%: k-hat approaches k from below, so it can be below the threshold although k is above it. With fewer than
20 data, the mean of k over the data is unknown, so :math:`\tilde k` and :math:`s` replace m and d.
"""

from typing import Any

import numpy as np

THRESHOLD = 0.65  # a tail is light if k plus half of its standard deviation is at most this number
FEW_DATA = 20  # with fewer data, k-hat is not shrunk towards its mean over the data


def tail_shape(pareto_k: Any, num_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Estimate the tail shape k of each datum from k-hat of all data, as the module's docstring describes.

    Args:
        pareto_k: k-hat of the data, of any shape. It may be ``-inf`` (equal weights) or ``inf`` (too few draws).
        num_samples: Draws per datum.

    Returns:
        Two arrays in the shape of ``pareto_k``: the mean of the posterior of k, and its standard deviation. If k-hat
        is infinite, the mean is k-hat and the standard deviation is 0.
    """
    k_hat = np.asarray(pareto_k, dtype=float)
    tail = np.ceil(min(num_samples / 5, 3 * np.sqrt(num_samples)))
    k = np.where(np.isfinite(k_hat), (k_hat * (tail + 10) - 5) / tail, k_hat)
    finite = np.isfinite(k)
    error = np.where(finite, (1 + np.maximum(np.where(finite, k, 0.0), 0.0)) / np.sqrt(tail), 0.0)
    if finite.sum() < FEW_DATA:
        return k, error
    variance = error[finite].mean() ** 2
    between = max(k[finite].var(ddof=1) - variance, 0.0)
    total = between + error**2
    share = np.divide(between, total, out=np.zeros_like(total), where=total > 0)  # infinite values have no error
    mean = k[finite].mean()
    return np.where(finite, mean + share * (np.where(finite, k, 0.0) - mean), k), np.sqrt(share) * error


def is_tail_light(pareto_k: Any, num_samples: Any) -> np.ndarray:
    """Return for each datum whether the tail of its weights is light enough for ``mcse`` to be a valid error.

    Args:
        pareto_k: k-hat of the data, of any shape.
        num_samples: Draws per datum, a number or an array in the shape of ``pareto_k``. All data with the same number
            of draws are judged together.
    """
    k_hat = np.asarray(pareto_k, dtype=float)
    counts = np.broadcast_to(num_samples, k_hat.shape)
    light = np.zeros(k_hat.shape, dtype=bool)
    for count in np.unique(counts[counts > 1]).astype(int):  # the counts of data without weights are 0 or NaN
        chosen = counts == count
        mean, deviation = tail_shape(k_hat[chosen], count)
        light[chosen] = mean + deviation / 2 <= min(THRESHOLD, 1 - 1 / np.log10(count))
    return light
