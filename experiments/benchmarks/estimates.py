r"""Values that the contenders of the evaluation benchmark report, and the check that they agree.

All contenders estimate :math:`\log p(x) \approx \log \frac1K \sum_k p(x, z_k) / q(z_k \mid x)` of the same images with
the same trained weights. Before the race each reports two negative means. The first is over a few images, with given
noise, and must be equal for all contenders up to rounding. The second is over all images, with draws of the
contender's own, and must be equal up to the Monte Carlo error.

This file does not import torch, because not all contenders use it.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from experiments.benchmarks.problem import Sizes
from experiments.benchmarks.rounds import serve

GIVEN_DRAWS, GIVEN_IMAGES = 50, 8  # few enough that every contender can take them in one call
ERRORS = 4  # combined Monte Carlo errors by which two estimates may differ


def given_noise(sizes: Sizes) -> np.ndarray:
    """Draw the noise for the first images, shape ``(GIVEN_DRAWS, images, latent)``."""
    shape = GIVEN_DRAWS, min(GIVEN_IMAGES, sizes.num_data), sizes.latent
    return np.random.RandomState(sizes.seed).normal(size=shape).astype(np.float32)


def enter(
    name: str, estimate: Callable[[], np.ndarray], given: Callable[[], np.ndarray] | None = None, **facts: Any
) -> None:
    """Make this process a contender that estimates once per turn.

    Args:
        name: Name of the contender.
        estimate: Function that estimates log p(x) of all images.
        given: Function that estimates log p(x) of the first images from the given noise.
        **facts: Further values that are reported to the parent process.
    """
    values, cold_seconds = timed(estimate)
    facts |= {"cold_seconds": cold_seconds, "log_likelihood": float(values.mean())}
    if given is not None:
        facts["loss"] = -float(given().mean())

    def work() -> None:
        estimate()

    serve(name, work, **facts)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return the result of a call, and its seconds."""
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def check_estimates(facts: Mapping[str, Mapping[str, Any]], mcse: float) -> None:
    """Check that the contenders estimate the same quantity.

    Args:
        facts: The values that each contender has reported.
        mcse: Monte Carlo error of a mean over all images.

    Raises:
        ValueError: If two estimates differ by more than their Monte Carlo errors explain.
    """
    estimates = {name: stated["log_likelihood"] for name, stated in facts.items() if "log_likelihood" in stated}
    bound = ERRORS * np.sqrt(2) * mcse
    for name, value in estimates.items():
        first = next(iter(estimates))
        if not abs(value - estimates[first]) <= bound:
            raise ValueError(
                f"The contenders do not estimate the same value. The mean of log p(x) is {estimates[first]:.3f} by "
                f"{first} and {value:.3f} by {name}, and {ERRORS} Monte Carlo errors are {bound:.3f}. Correct the "
                f"wrong contender."
            )
