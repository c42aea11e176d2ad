r"""What the contenders of the evaluation benchmark state, and on what they must agree.

All estimate :math:`\log p(x) \approx \log \frac1K \sum_k p(x, z_k) / q(z_k \mid x)` of the same images by the same
trained weights. Before the race each states minus its mean over the first images from draws whose noise is given, which
must be equal up to rounding, and its mean over all images from draws of its own, which must be equal up to the Monte
Carlo error.

There is no torch in this file, since not all contenders use it.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from experiments.benchmarks.problem import Sizes
from experiments.benchmarks.rounds import serve

GIVEN_DRAWS, GIVEN_IMAGES = 50, 8  # few enough for every contender to take them at once
ERRORS = 4  # combined Monte Carlo errors by which two estimates may differ


def given_noise(sizes: Sizes) -> np.ndarray:
    """Draws the noise for the first images, shape ``(GIVEN_DRAWS, images, latent)``."""
    shape = GIVEN_DRAWS, min(GIVEN_IMAGES, sizes.num_data), sizes.latent
    return np.random.RandomState(sizes.seed).normal(size=shape).astype(np.float32)


def enter(
    name: str, estimate: Callable[[], np.ndarray], given: Callable[[], np.ndarray] | None = None, **facts: Any
) -> None:
    """Makes this process a contender, a turn of which is a call.

    Args:
        name: Name of the contender.
        estimate: Estimates log p(x) of all images.
        given: Estimates log p(x) of the first images from the given noise.
        **facts: What else the parent is to know.
    """
    values, cold_seconds = timed(estimate)
    facts |= {"cold_seconds": cold_seconds, "log_likelihood": float(values.mean())}
    if given is not None:
        facts["loss"] = -float(given().mean())

    def work() -> None:
        estimate()

    serve(name, work, **facts)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and its seconds."""
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def check_estimates(facts: Mapping[str, Mapping[str, Any]], mcse: float) -> None:
    """Checks that the contenders estimate the same.

    Args:
        facts: What each has stated.
        mcse: The Monte Carlo error of a mean over all images.

    Raises:
        ValueError: If two estimates differ by more than the Monte Carlo errors of both explain.
    """
    estimates = {name: stated["log_likelihood"] for name, stated in facts.items() if "log_likelihood" in stated}
    bound = ERRORS * np.sqrt(2) * mcse
    for name, value in estimates.items():
        first = next(iter(estimates))
        if not abs(value - estimates[first]) <= bound:
            raise ValueError(
                f"the contenders do not estimate the same: the mean of log p(x) is {estimates[first]:.3f} by {first} "
                f"and {value:.3f} by {name}, and {ERRORS} Monte Carlo errors are {bound:.3f}; correct the one that is "
                f"wrong"
            )
