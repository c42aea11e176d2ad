"""Broad guides and posteriors with several modes, long tails, or the shape of a funnel: no wrong number is reliable."""

from typing import Any

import numpy as np
import pytest
import torch

from experiments.benchmarks.known_posteriors import PROGRAMS
from pyrovae.evaluation import log_likelihood

LEAST = {"4 modes": 0.95, "16 modes": 0.93, "2 curved modes": 0.8, "counts": 0.95, "heavy tails": 0.95}
# Four standard errors below the fraction of reliable estimates of 300 data.
LEAST |= {"8 modes, narrow guide": 0.9, "2 modes, guide between them": 0.9, "spike and slab": 0.55}
LEAST |= {"funnel, 30 latents": 0.85, "funnel, 9 latents": 0.85, "funnel with a positive scale": 0.85}
LEAST |= {"curved ridge": 0.85}


@pytest.mark.parametrize("name", LEAST)
def test_estimates_that_are_called_reliable_are_right(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        known = PROGRAMS[name](60)
    results: Any = log_likelihood(known.model, known.guide, known.x, seed=0)
    reliable = results.reliable.values
    errors, mcse = (results.log_likelihood.values - known.exact.numpy())[reliable], results.mcse.values[reliable]
    assert reliable.mean() >= LEAST[name]
    assert abs(errors.mean()) < 0.03 + 4 * float((mcse**2).mean() / len(mcse)) ** 0.5
    assert (abs(errors) < 2 * mcse).mean() > 0.8
    assert np.median(abs(errors)) < 0.1
