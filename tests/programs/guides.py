"""Guides of Pyro over one latent for each datum: normal data with a normal mean, whose log p(x) has a closed form."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.contrib.easyguide import EasyGuide
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoIAFNormal,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    init_to_value,
)
from pyro.poutine import block
from scipy import stats
from torch import Tensor, nn

from tests.programs.case import PER_DATUM, Case, Guided, noise, refused


class Means(nn.Module):
    """One normal latent and one observation for each datum."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


class TwoMeans(Means):
    """Two normal latents for each datum, whose sum is observed."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            first = pyro.sample("first", dist.Normal(0.0, math.sqrt(0.5)))
            second = pyro.sample("second", dist.Normal(0.0, math.sqrt(0.5)))
            pyro.sample("x", dist.Normal(first + second, 1.0), obs=x)


class Amortized(Means):
    """The hand-written guide."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.4))

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.slope * x, 0.8))


class Grouped(EasyGuide):
    """An EasyGuide that samples a group of sites."""

    def guide(self, x: Tensor) -> None:
        group = self.group(match="z")
        with self.plate("data", len(x)):
            slope = pyro.param("slope", torch.tensor(0.4))
            group.sample("zs", dist.Normal((slope * x)[:, None], 0.8).to_event(1))


def points() -> tuple[Tensor]:
    return (noise(3),)


def closed_form() -> np.ndarray:
    return stats.norm.logpdf(points()[0].double().numpy(), 0, math.sqrt(2))


def normal(make: Callable[..., Any], model: Callable[..., Any]) -> Any:
    """Return an autoguide about as wide as the posterior, so that few draws are enough."""
    values = {name: torch.zeros(3) for name in ("z", "first", "second")}
    return make(model, init_loc_fn=init_to_value(values=values), init_scale=0.8)


def several(model: Callable[..., Any]) -> AutoGuideList:
    guide = AutoGuideList(model)
    guide.append(normal(AutoNormal, block(model, expose=["first"])))
    guide.append(normal(AutoNormal, block(model, expose=["second"])))
    return guide


def guided(make: Callable[..., Any], program: type[Means] = Means) -> Callable[[], Guided]:
    return lambda: Guided(program(), make)


def auto(name: str, make: Callable[..., Any], refused: Mapping[str, str], program: type[Means] = Means) -> Case:
    guide = guided(make, program)
    return Case(f"one latent a datum, {name}", guide, points, exact=closed_form, by_datum=False, refused=refused)


PACKED = refused("packed latents", *PER_DATUM)

CASES = (
    Case("one latent a datum, hand-written", Amortized, points, exact=closed_form),
    auto("AutoNormal", partial(normal, AutoNormal), {}),
    auto("AutoDiagonalNormal", partial(normal, AutoDiagonalNormal), PACKED),
    auto("AutoMultivariateNormal", partial(normal, AutoMultivariateNormal), PACKED),
    auto("AutoLowRankMultivariateNormal", partial(normal, AutoLowRankMultivariateNormal), PACKED),
    auto("AutoIAFNormal", AutoIAFNormal, PACKED | refused("built in another way", "save and load")),
    auto("AutoLaplaceApproximation", AutoLaplaceApproximation, PACKED),
    auto("AutoDelta", AutoDelta, refused("point", *PER_DATUM)),
    auto("AutoGuideList", several, {}, TwoMeans),
    Case("one latent a datum, EasyGuide", guided(Grouped), points, exact=closed_form),
)  # fmt: skip
