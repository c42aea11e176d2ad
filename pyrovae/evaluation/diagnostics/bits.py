r"""Nats per datum as bits per dimension, which makes discrete and continuous likelihoods of grey values comparable.

Let x have D entries with levels n = 0, ..., L - 1. A discrete likelihood gives :math:`\log P(n)`. A continuous one
gives a density of the *dequantized* values :math:`y = (n + u) / L` with u uniform in (0, 1), and by Jensen's inequality

.. math:: \log P(n) = \log \int_{[0, 1)^D} p\big(\tfrac{n + u}{L}\big) L^{-D}\, du
    \ge \mathrm{E}_u \log p(y) - D \log L,

a lower bound on what the density says about the levels.
"""

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import xarray as xr

Nats = TypeVar("Nats", float, np.ndarray, xr.DataArray)


def bits_per_dimension(log_likelihood: Nats, event_shape: Sequence[int], *, bin_width: float = 1.0) -> Nats:
    r"""Converts log-likelihoods, :math:`-(\log p / D + \log w) / \log 2` for bins of width w; lower is better.

    Args:
        log_likelihood: Nats per datum.
        event_shape: Shape of a datum, of D entries.
        bin_width: 1 for a discrete likelihood. For a density of dequantized values the width of a level in them: 1/256
            for 256 levels on [0, 1].

    Returns:
        Bits per dimension, as many as there were log-likelihoods. For a density an upper bound on those of the levels.

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
        raise ValueError(f"bits per dimension need the shape of a datum, got event_shape={event_shape}")
    dimensions = math.prod(event_shape)
    if not 0 < bin_width < math.inf:
        raise ValueError(f"bin_width must be positive and finite, got {bin_width}")
    return -(log_likelihood / dimensions + math.log(bin_width)) / math.log(2)
