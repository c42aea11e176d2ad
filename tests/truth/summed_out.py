"""Programs with sites that are summed out: Pyro's capture-recapture model, and a mixture whose label comes first."""

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

SURVIVAL, RECAPTURE = 0.6, 0.8
HISTORIES = torch.tensor(
    [[1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 1], [1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 1, 1]], dtype=torch.float
)


def capture_recapture(captured: Tensor, *, by_handler: bool = True) -> None:
    """Pyro's Cormack-Jolly-Seber model. An animal counts from its first capture on, and its survival is summed out."""
    with pyro.plate("animals", len(captured)):
        alive, known = torch.ones(len(captured)), torch.zeros(len(captured), dtype=torch.bool)
        for t in pyro.markov(range(captured.shape[1])):
            probability = torch.where(known, SURVIVAL * alive, 1.0)
            with poutine.mask(mask=known if by_handler else True):
                life = dist.Bernoulli(probability) if by_handler else dist.Bernoulli(probability).mask(known)
                alive = pyro.sample(f"alive_{t}", life, infer={"enumerate": "parallel"})
                seen = dist.Bernoulli(RECAPTURE * alive)
                pyro.sample(f"seen_{t}", seen if by_handler else seen.mask(known), obs=captured[:, t])
            known = known | captured[:, t].bool()


def probability_of(history: np.ndarray) -> float:
    """Return the probability of a capture history from its first capture on, by the forward recursion."""
    alive, dead = 1.0, 0.0
    for seen in history[history.argmax() + 1 :]:
        alive, dead = alive * SURVIVAL, dead + alive * (1 - SURVIVAL)
        alive, dead = (alive * RECAPTURE, 0.0) if seen else (alive * (1 - RECAPTURE), dead)
    return alive + dead


WEIGHTS, MEANS, NOISE = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([-2.0, 0.5, 2.0]), 0.7
X = torch.tensor([-2.1, 0.3, 1.4, 2.6])


def label_first(x: Tensor) -> None:
    """As in Pyro's scANVI: the label comes first in the model, and last in the guide."""
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(WEIGHTS))
        z = pyro.sample("z", dist.Normal(MEANS[y], 1.0))
        pyro.sample("x", dist.Normal(z, NOISE), obs=x)
