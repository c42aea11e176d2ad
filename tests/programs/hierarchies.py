"""Regression and pooling: programs whose latents all data share, and Efron and Morris's baseball players."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoIAFNormal,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from pyro.nn import PyroModule, PyroSample
from pyro.poutine import block
from torch import Tensor, nn

from tests.programs.case import PER_DATUM, Case, Guided, noise, refused

AT_BATS, HITS = torch.tensor([45.0, 45.0, 30.0, 20.0]), torch.tensor([18.0, 12.0, 7.0, 6.0])


class NoPooling(nn.Module):
    """Each player has a chance of success of their own; the guide is a beta distribution of the player's record."""

    def __init__(self) -> None:
        super().__init__()
        self.log_width = nn.Parameter(torch.tensor(-0.1))

    def model(self, at_bats: Tensor, hits: Tensor) -> None:
        with pyro.plate("num_players", at_bats.shape[0]):
            phi = pyro.sample("phi", dist.Uniform(0.0, 1.0))
            pyro.sample("obs", dist.Binomial(at_bats, phi), obs=hits)

    def guide(self, at_bats: Tensor, hits: Tensor) -> None:
        pyro.module("guide", self)
        with pyro.plate("num_players", at_bats.shape[0]):
            weight = self.log_width.exp()
            pyro.sample("phi", dist.Beta(1 + weight * hits, 1 + weight * (at_bats - hits)))


class PartialPooling(nn.Module):
    """The chances of the players come from one beta distribution, whose mean and concentration all players share."""

    def model(self, at_bats: Tensor, hits: Tensor) -> None:
        m = pyro.sample("m", dist.Uniform(0.0, 1.0))
        kappa = pyro.sample("kappa", dist.Pareto(1.0, 1.5))
        with pyro.plate("num_players", at_bats.shape[0]):
            phi = pyro.sample("phi", dist.Beta(m * kappa, (1 - m) * kappa))
            pyro.sample("obs", dist.Binomial(at_bats, phi), obs=hits)


class FullPooling(nn.Module):
    """All players share one chance of success."""

    def model(self, at_bats: Tensor, hits: Tensor) -> None:
        phi = pyro.sample("phi", dist.Uniform(0.0, 1.0))
        with pyro.plate("num_players", at_bats.shape[0]):
            pyro.sample("obs", dist.Binomial(at_bats, phi), obs=hits)


class Regression(PyroModule):
    """Pyro's Bayesian regression, a linear layer of random weights."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = PyroModule[nn.Linear](2, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 2]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(0.0, 10.0).expand([1]).to_event(1))

    def model(self, x: Tensor, y: Tensor) -> None:
        sigma = pyro.sample("sigma", dist.Uniform(0.0, 10.0))
        mean = self.linear(x).squeeze(-1)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("obs", dist.Normal(mean, sigma), obs=y)


class HandWritten(Regression):
    """The regression with a guide of its own."""

    def guide(self, x: Tensor, y: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(4))
        scale = pyro.param("scale", torch.ones(4), constraint=dist.constraints.positive)
        pyro.sample("sigma", dist.LogNormal(loc[0], 0.3 * scale[0]))
        pyro.sample("linear.weight", dist.Normal(loc[None, 1:3], scale[1:3]).to_event(2))
        pyro.sample("linear.bias", dist.Normal(loc[3:], scale[3:]).to_event(1))


def several(model: Callable[..., Any]) -> AutoGuideList:
    """Return a list of two autoguides."""
    guide = AutoGuideList(model)
    guide.append(AutoDiagonalNormal(block(model, hide=["sigma"])))
    guide.append(AutoDelta(block(model, expose=["sigma"])))
    return guide


def players() -> tuple[Tensor, Tensor]:
    return AT_BATS, HITS


def points() -> tuple[Tensor, Tensor]:
    x = noise(4, 2)
    return x, x @ torch.tensor([1.0, -0.5]) + 0.3 * noise(4, seed=1)


def beta_binomial() -> np.ndarray:
    return -np.log(AT_BATS.numpy() + 1)


def regression(make: Callable[..., Any]) -> Callable[[], Guided]:
    return lambda: Guided(Regression(), make)


SHARED = refused("shared latent", *PER_DATUM)
AUTOGUIDES = (
    AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal, AutoLowRankMultivariateNormal, AutoLaplaceApproximation,
)  # fmt: skip

CASES = (
    Case("baseball, no pooling", NoPooling, players, exact=beta_binomial,
         refused=refused("without inverse", "rqmc")),
    Case("baseball, partial pooling, AutoNormal", lambda: Guided(PartialPooling(), AutoNormal), players,
         by_datum=False, refused=SHARED),
    Case("baseball, full pooling, AutoNormal", lambda: Guided(FullPooling(), AutoNormal), players, by_datum=False,
         refused=SHARED),
    Case("regression, hand-written guide", HandWritten, points, refused=SHARED),
    *(
        Case(f"regression, {make.__name__}", regression(make), points, refused=SHARED)
        for make in AUTOGUIDES
    ),
    Case("regression, AutoIAFNormal", regression(AutoIAFNormal), points,
         refused=SHARED | refused("built in another way", "save and load")),
    Case("regression, AutoDelta", regression(AutoDelta), points, refused=refused("point", *PER_DATUM)),
    Case("regression, AutoGuideList", regression(several), points,
         refused=refused("partly a point", *PER_DATUM) | refused("shared latent", "IWAE")),
)  # fmt: skip
