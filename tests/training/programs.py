"""Modules to train that are not VAEs: scripts, programs with shared latents, and a regression."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn


class Script(nn.Module):
    """A module that uses plain Pyro: ``pyro.module`` and ``pyro.param``."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 4)

    def model(self, x: Tensor) -> None:
        weight = pyro.param("weight", torch.ones(2, 6))
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight, scale).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


class Global(nn.Module):
    """A program with a latent outside the data plate: it can be trained, but not evaluated per datum."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(()))

    def model(self, x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0).expand([6]).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.sample("loc", dist.Normal(self.loc, 0.1))


class Regression(nn.Module):
    """A module with its own loss, a function of several tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return (y - self.slope * x).square().mean()


def declared(x: Tensor, size: int | None, inside: Callable[[Tensor], None], scale: float | None = None) -> None:
    plate = pyro.plate("data", size or len(x), subsample=torch.arange(len(x)))
    with plate, poutine.scale(scale=scale or 1.0):
        inside(x)


class Shared(nn.Module):
    """A mean that all data share. With 1000 data of scale 2 its posterior has scale 0.063."""

    size: int | None = None
    by_hand = False

    def __init__(self) -> None:
        super().__init__()
        self.loc, self.log_scale = nn.Parameter(torch.tensor(0.0)), nn.Parameter(torch.tensor(-2.0))

    def model(self, x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        scale = 1000 / len(x) if self.by_hand else None
        declared(x, self.size, lambda x: pyro.sample("x", dist.Normal(mu, 2.0), obs=x), scale)

    def guide(self, x: Tensor) -> None:
        pyro.sample("mu", dist.Normal(self.loc, self.log_scale.exp()))


class Declared(Shared):
    size = 1000


class Broken(nn.Module):
    def __init__(self, model: Callable[[Tensor], None], guide: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.model, self.guide = model, guide
        self.parameter = nn.Parameter(torch.zeros(()))
