r"""Terms of the saddle-point expansion of log-probabilities, exact for large counts and concentrations.

The log-probability of a count is usually computed as a difference of log-gammas that are much larger than the result.
In float32, the Poisson log-probability of a count of 100,000 is then wrong by 0.1 nats. The distributions in pyrovae
are therefore written with the functions

.. math::
    G(x) = \log \Gamma(x + 1) - x \log x + x, \qquad
    D(x; M) = x \log \frac{x}{M} - x + M \ge 0,

in which the large parts have cancelled analytically. For example, the Poisson distribution with mean m has
:math:`\log p(n) = -G(n) - D(n; m)`.

Source:
    *Fast and Accurate Computation of Binomial Probabilities* (Loader, 2000).
"""

import math

import torch
from torch import Tensor

_STIRLING_FROM = 16.0  # from here on, the remainder of the series is below 1e-15
_NEAR = 0.2  # relative distance from the mean below which the deviance is computed by a series


def log_factorial_excess(x: Tensor) -> Tensor:
    r"""Return :math:`G(x) = \log \Gamma(x + 1) - x \log x + x` for :math:`x \ge 0`, with :math:`G(0) = 0`."""
    few = x < _STIRLING_FROM
    small = torch.where(few, x.clamp(min=torch.finfo(x.dtype).tiny), 1.0)
    large = torch.where(few, _STIRLING_FROM, x)
    exact = torch.lgamma(small + 1) - small * small.log() + small
    series = 0.5 * (2 * math.pi * large).log() + stirling_series(large)
    return torch.where(few, exact, series)


def stirling_series(x: Tensor) -> Tensor:
    r"""Return :math:`\log \Gamma(x) - (x - \frac12) \log x + x - \frac12 \log 2 \pi` for x of at least 16."""
    inverse = 1 / x
    square = inverse * inverse
    return inverse * (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square * (1 / 1680 - square / 1188))))


def log_rising_excess(n: Tensor, r: Tensor) -> Tensor:
    r"""Return :math:`G(r + n) - G(r) - \log(1 + n / r)` for :math:`n \ge 0` and :math:`r > 0`."""
    few = r < _STIRLING_FROM
    small, large = torch.where(few, r, 1.0), torch.where(few, _STIRLING_FROM, r)
    exact = log_factorial_excess(small + n) - log_factorial_excess(small) - log1p_ratio(n, small)
    series = stirling_series(large + n) - stirling_series(large) - 0.5 * torch.log1p(n / large)
    return torch.where(few, exact, series)


def log1p_ratio(n: Tensor, r: Tensor) -> Tensor:
    """Return log(1 + n / r) for ``n >= 0`` and ``r > 0``, even if n / r overflows."""
    return torch.where(n < r, torch.log1p(n.minimum(r) / r), (n + r).log() - r.log())


def deviance(x: Tensor, difference: Tensor, log_ratio: Tensor) -> Tensor:
    r"""Return :math:`D(x; M) = x \log(x / M) - x + M`, which is zero at x = M.

    Args:
        x: Non-negative value.
        difference: M - x, computed by the caller with as little cancellation as possible.
        log_ratio: :math:`\log (M / x)`; ignored if x is 0.
    """
    near = difference.abs() < _NEAR * x
    inside = torch.where(near, difference, 0.0) / torch.where(near, x, 1.0)
    s = inside / (2 + inside)  # log(1 + u) = 2 artanh(u / (2 + u))
    square = s * s
    tail = 1 / 3 + square * (1 / 5 + square * (1 / 7 + square * (1 / 9 + square * (1 / 11 + square / 13))))
    series = s * inside - 2 * s * square * tail
    return torch.where(near, x * series, difference - x * log_ratio)


def positive(x: Tensor) -> Tensor:
    """Return ``x`` with 0 replaced by 1, for logarithms and divisions whose result at 0 is ignored."""
    return torch.where(x == 0, 1.0, x)
