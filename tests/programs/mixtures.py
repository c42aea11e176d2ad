"""Mixtures, factor models and item responses."""

from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal
from scipy import stats
from torch import Tensor, nn

from tests.programs.autoencoders import exact
from tests.programs.case import PER_DATUM, SUMMED_OUT, Case, Guided, noise, refused
from tests.programs.reference import normal_grid

GLOBALS = ["weights", "locs", "scale"]
ITEMS = 4


class Mixture(nn.Module):
    """Pyro's Gaussian mixture, with its weights, locations and scale as latents that all data share."""

    def model(self, data: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(0.5 * torch.ones(2)))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 2.0))
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(data)):
            assignment = pyro.sample("assignment", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("obs", dist.Normal(locs[assignment], scale), obs=data)


class LearnedMixture(nn.Module):
    """The Gaussian mixture with parameters of ``pyro.param``; the assignment is summed out, so the guide is empty."""

    def model(self, data: Tensor) -> None:
        weights = pyro.param("weights", torch.tensor([0.3, 0.7]), constraint=dist.constraints.simplex)
        scale = pyro.param("scale", torch.tensor(0.8), constraint=dist.constraints.positive)
        locs = pyro.param("locs", torch.tensor([-1.0, 1.0]))
        with pyro.plate("data", len(data)):
            assignment = pyro.sample("assignment", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("obs", dist.Normal(locs[assignment], scale), obs=data)

    def guide(self, data: Tensor) -> None: ...


class SparseGamma(nn.Module):
    """Pyro's sparse gamma factor model in two layers, whose weights are latents that all data share.

    Args:
        given: Whether the weights are fixed.
    """

    def __init__(self, *, given: bool = False) -> None:
        super().__init__()
        self.given = given
        self.top, self.weights = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2, 3))

    def model(self, x: Tensor) -> None:
        w = torch.full((2, 3), 0.7)
        if not self.given:
            with pyro.plate("w_rows", 2, dim=-2), pyro.plate("w_columns", 3, dim=-1):
                w = pyro.sample("w", dist.Gamma(1.0, 1.0)).squeeze()
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(torch.ones(2), 0.5).to_event(1))
            pyro.sample("obs", dist.Poisson(z @ w).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("gamma", self)
        if not self.given:
            with pyro.plate("w_rows", 2, dim=-2), pyro.plate("w_columns", 3, dim=-1):
                pyro.sample("w", dist.Gamma(5.0, 5 * self.weights.exp()))
        with pyro.plate("data", len(x)):
            rate = 1.2 * self.top.exp()
            pyro.sample("z", dist.Gamma(1 + x.mean(-1, keepdim=True) / 2, rate).to_event(1))


class ItemResponses(nn.Module):
    """The one-parameter item response model: the ability of a person, the difficulty of an item.

    Args:
        given: Whether the difficulties are parameters, or latents that all persons share.
    """

    def __init__(self, *, given: bool = True) -> None:
        super().__init__()
        self.given = given
        self.difficulty = nn.Parameter(torch.linspace(-1, 1, ITEMS))
        self.encoder = nn.Linear(ITEMS, 2)

    def model(self, responses: Tensor) -> None:
        pyro.module("responses", self)
        items = pyro.plate("items", ITEMS, dim=-1)
        difficulty = self.difficulty
        if not self.given:
            with items:
                difficulty = pyro.sample("difficulty", dist.Normal(0.0, 1.0))
        with pyro.plate("persons", len(responses), dim=-2):
            ability = pyro.sample("ability", dist.Normal(0.0, 1.0))
            with items:
                pyro.sample("response", dist.Bernoulli(logits=ability - difficulty), obs=responses)

    def guide(self, responses: Tensor) -> None:
        loc, log_scale = self.encoder(responses).chunk(2, -1)
        with pyro.plate("persons", len(responses), dim=-2):
            pyro.sample("ability", dist.Normal(0.5 * loc, (0.1 * log_scale).exp()))


def points() -> tuple[Tensor]:
    return (noise(4),)


def events() -> tuple[Tensor]:
    return ((noise(3, 3) + 1.5).exp().floor(),)


def responses() -> tuple[Tensor]:
    return ((noise(3, ITEMS) > 0).float(),)


def mixture_density() -> np.ndarray:
    x = points()[0].double().numpy()
    return np.log(0.3 * stats.norm.pdf(x, -1, 0.8) + 0.7 * stats.norm.pdf(x, 1, 0.8))


def with_globals(make: type) -> Guided:
    return Guided(Mixture(), lambda model: make(poutine.block(model, expose=GLOBALS)))


ENUMERATED = partial(TraceEnum_ELBO, max_plate_nesting=1)

CASES = (
    Case("Gaussian mixture, learned", LearnedMixture, points, elbo=ENUMERATED, exact=mixture_density, enumerated=True,
         refused=SUMMED_OUT),
    Case("Gaussian mixture, AutoDelta", lambda: with_globals(AutoDelta), points, elbo=ENUMERATED,
         refused=refused("point", *PER_DATUM)),
    Case("Gaussian mixture, AutoNormal", lambda: with_globals(AutoNormal), points, elbo=ENUMERATED,
         refused=refused("shared latent", *PER_DATUM)),
    Case("sparse gamma, given weights", lambda: SparseGamma(given=True), events,
         refused=refused("without inverse", "rqmc")),
    Case("sparse gamma, global weights", SparseGamma, events, refused=refused("shared latent", *PER_DATUM)),
    Case("item responses, given items", ItemResponses, responses,
         exact=exact(ItemResponses, responses, ability=normal_grid(dims=1))),
    Case("item responses, AutoNormal", lambda: Guided(ItemResponses(given=False), AutoNormal), responses,
         by_datum=False, refused=refused("shared latent", *PER_DATUM)),
)  # fmt: skip
