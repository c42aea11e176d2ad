"""A guide whose aggregate posterior is known, and a distribution whose draws are all equal."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor


class Correlated:
    """A program whose aggregate posterior, for x from N(0, I), is a normal with a known covariance."""

    gain = torch.tensor([[0.9, 0.4], [0.3, 1.1]], dtype=torch.float64)
    scale = torch.tensor([0.6, 0.8], dtype=torch.float64)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ self.gain.T, self.scale).to_event(1))


class OneDraw(dist.Independent):
    """A diagonal normal whose draws are all equal."""

    def __init__(self, loc: Tensor, scale: Tensor, draw: Tensor) -> None:
        super().__init__(dist.Normal(loc, scale), 1)
        self.draw = draw

    def expand(self, batch_shape: Any, _instance: Any = None) -> "OneDraw":
        return self

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.draw.expand(*self.batch_shape, 2)
