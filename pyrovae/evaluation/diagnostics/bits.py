r"""Conversion of log-likelihoods from nats per datum to bits per dimension.

Bits per dimension are comparable between discrete and continuous likelihoods. Let x have D entries with levels
n = 0, ..., L - 1, such as grey values. A discrete likelihood gives :math:`\log P(n)`. A continuous likelihood gives a
density of the *dequantized* values :math:`y = (n + u) / L`, where u is uniform on (0, 1). By Jensen's inequality,

.. math:: \log P(n) = \log \int_{[0, 1)^D} p\big(\tfrac{n + u}{L}\big) L^{-D}\, du
    \ge \mathrm{E}_u \log p(y) - D \log L,

so the density gives a lower bound on the log-probability of the levels.
"""

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import xarray as xr

Nats = TypeVar("Nats", float, np.ndarray, xr.DataArray)


def bits_per_dimension(log_likelihood: Nats, event_shape: Sequence[int], *, bin_width: float = 1.0) -> Nats:
    r"""Convert log-likelihoods from nats per datum to bits per dimension; lower values are better.

    The result is :math:`-(\log p / D + \log w) / \log 2` for data with D entries, where w is the
    distance between two levels of an entry.

    Args:
        log_likelihood: Log-likelihoods :math:`\log p`, nats per datum.
        event_shape: Shape of a datum, which has D entries.
        bin_width: Distance w between two levels. Use 1 for a discrete likelihood. Use 1/256 for a density of values on
            [0, 1] that were dequantized from 256 levels.

    Returns:
        Bits per dimension, in the shape of ``log_likelihood``. For a density, the value is an upper bound on the bits
        per dimension of the levels.

    Raises:
        ValueError: If the event shape is empty or ``bin_width`` is not positive and finite.

    Source:
        *A Note on the Evaluation of Generative Models* (Theis, van den Oord and Bethge, 2016), section 3.1.

    Example:
        >>> import pyrovae as pv
        >>> round(pv.evaluation.bits_per_dimension(-784 * 0.693147, (28, 28)), 4)
        1.0
    """
    if not isinstance(event_shape, Sequence) or not event_shape or min(event_shape) < 1:
        raise ValueError(f"event_shape must be the shape of a datum, such as (28, 28), got {event_shape!r}")
    dimensions = math.prod(event_shape)
    if not 0 < bin_width < math.inf:
        raise ValueError(f"bin_width must be positive and finite, got {bin_width}")
    return -(log_likelihood / dimensions + math.log(bin_width)) / math.log(2)
