"""Attend, infer, repeat: a scene of objects that may be absent."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import TraceGraph_ELBO
from torch import Tensor, nn

from tests.programs.case import DISCRETE, Case, noise

PIXELS, STEPS = 5, 2


class AttendInferRepeat(nn.Module):
    """A small AIR: an object is present or not, has a place on a line and a height, and is masked if it is absent."""

    def __init__(self) -> None:
        super().__init__()
        self.presence, self.where, self.what = nn.Linear(PIXELS, 1), nn.Linear(PIXELS, 1), nn.Linear(PIXELS, 1)
        self.width = nn.Parameter(torch.tensor(0.0))
        self.register_buffer("places", torch.linspace(-2, 2, PIXELS))

    def model(self, x: Tensor) -> None:
        pyro.module("air", self)
        with pyro.plate("data", len(x)):
            present, canvas = x.new_ones(len(x), 1), torch.zeros_like(x)
            for t in range(STEPS):
                present = pyro.sample(f"z_pres_{t}", dist.Bernoulli(0.5 * present).to_event(1))
                where = self.latent(f"z_where_{t}", x.new_zeros(len(x), 1), 1.0, present)
                what = self.latent(f"z_what_{t}", x.new_ones(len(x), 1), 0.5, present)
                canvas = canvas + present * what * (-(self.places - where).square() / self.width.exp()).exp()
            pyro.sample("obs", dist.Normal(canvas, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("air", self)
        with pyro.plate("data", len(x)):
            present = x.new_ones(len(x), 1)
            for t in range(STEPS):
                probs = (0.3 * self.presence(x)).sigmoid() * present
                present = pyro.sample(f"z_pres_{t}", dist.Bernoulli(probs).to_event(1))
                self.latent(f"z_where_{t}", 0.1 * self.where(x), 1.0, present)
                self.latent(f"z_what_{t}", 1 + 0.1 * self.what(x), 0.5, present)

    def latent(self, name: str, loc: Tensor, scale: float, present: Tensor) -> Any:
        return pyro.sample(name, dist.Normal(loc, scale).mask(present.bool()).to_event(1))


def scenes() -> tuple[Tensor]:
    return (noise(3, PIXELS),)


CASES = (
    Case("attend, infer, repeat", AttendInferRepeat, scenes, elbo=TraceGraph_ELBO, draws=50_000, refused=DISCRETE),
)
