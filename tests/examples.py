"""Modules to compile, each with an objective and data: all components, other kinds of programs, all objectives."""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.contrib.gp.kernels import RBF
from pyro.infer import (
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    Trace_MMD,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
)
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import Tensor, nn

import pyrovae as pv
from tests.components import LIKELIHOODS, POSTERIORS, PRIORS
from tests.conftest import small_vae
from tests.models.examples import bayesian_vae, conditional_vae, labels, m2
from tests.objectives.examples import MAKERS
from tests.scripts import SCRIPTS
from tests.training.programs import Global

mlp, normal, Joint = pv.networks.mlp, pv.posteriors.DiagonalNormal, pv.networks.Joint
Batch = tuple[Tensor, ...]


class Example(NamedTuple):
    """A module in float64 with an objective and two batches of one shape.

    ``size`` is the number of training data: that of one batch for a program with a latent outside a data plate that
    does not declare its full size.
    """

    module: nn.Module
    objective: Any
    batches: Sequence[Batch]
    tolerance: float = 1e-9
    size: int = 8

    def to(self, dtype: torch.dtype) -> "Example":
        batches = [tuple(tensor.to(dtype) for tensor in batch) for batch in self.batches]
        return self._replace(module=self.module.to(dtype), batches=batches)


def example(module: nn.Module, *data: Tensor, objective: Any = None, tolerance: float = 1e-9, size: int = 8) -> Example:
    batches = list(zip(*(part.double().chunk(2) for part in data), strict=True))
    return Example(module.double(), objective or Trace_ELBO(), batches, tolerance, size)


def binary(*shape: int) -> Tensor:
    return torch.bernoulli(torch.full(shape, 0.4))


def with_prior(name: str) -> Example:
    prior = copy.deepcopy(PRIORS[name])
    vae = pv.VAE(getattr(prior, "prior", prior), pv.likelihoods.Normal(mlp(3, 5)), normal(mlp(5, 2 * 3)))
    return example(vae, torch.randn(8, 5))


def with_likelihood(name: str) -> Example:
    likelihood = copy.deepcopy(LIKELIHOODS[name])
    x = likelihood(torch.randn(8, 3)).sample()
    return example(pv.VAE(pv.priors.StandardNormal(3), likelihood, normal(mlp(x.shape[1:], 2 * 3))), x)


def with_posterior(name: str, refined: bool = False) -> Example:
    posterior = copy.deepcopy(POSTERIORS[name])
    if refined:
        posterior = pv.posteriors.SemiAmortized(posterior, steps=2, num_particles=2)
    vae = pv.VAE(pv.priors.StandardNormal(3), pv.likelihoods.Bernoulli(mlp(3, (4, 6))), posterior)
    return example(vae, binary(8, 4, 6), tolerance=1e-5 if refined else 1e-9)  # Adam's bias corrections are float32


def with_layers(*layers: nn.Module, **options: Any) -> Example:
    vae = small_vae()
    vae.posterior = normal(nn.Sequential(nn.Linear(6, 8), *layers, nn.ReLU(), nn.Linear(8, 4)))
    return example(vae, binary(10, 6), **options)


def with_networks(encoder: nn.Module, decoder: nn.Module) -> Example:
    vae = pv.VAE(pv.priors.StandardNormal(3), pv.likelihoods.Bernoulli(decoder), normal(encoder))
    return example(vae, binary(6, 5, 7))


def in_layers(inference: str) -> Example:
    if inference == "bottom-up":
        priors, likelihood = (normal(mlp(2, 6)), pv.priors.StandardNormal(2)), mlp(3, 6)
        posteriors = normal(mlp(6, 6)), normal(mlp(3, 4))
    else:
        priors, likelihood = (normal(mlp(2, 6)), pv.priors.VampPrior(4, (6,))), Joint(mlp(5, 6), event_dims=(1, 1))
        posteriors = normal(Joint(mlp(8, 6), event_dims=(1, 1))), normal(mlp(6, 4))
    vae = pv.HierarchicalVAE(
        priors, pv.likelihoods.Bernoulli(likelihood), posteriors, inference=inference, skip=inference == "top-down"
    )
    return example(vae, binary(8, 6), objective=pv.objectives.IWAE(2, gradient="doubly_reparameterized"))


def half_labelled() -> Example:
    y = torch.cat([labels(6, 3), labels(6, 2)])
    return example(m2(classification_weight=0.5), binary(12, 6), y, objective=TraceEnum_ELBO(max_plate_nesting=1))


def partly_observed() -> Example:
    likelihood = pv.likelihoods.Masked(pv.likelihoods.Bernoulli(mlp(2, 6)))
    posterior = normal(pv.networks.ZeroFilled(mlp((2, 6), 4), event_dim=1))
    return example(pv.VAE(pv.priors.StandardNormal(2), likelihood, posterior), binary(8, 6), binary(8, 6))


class Shifted(nn.Module):
    """A script with a parameter in the guide."""

    def __init__(self, script: Any) -> None:
        super().__init__()
        self.script, self.factor = script, nn.Parameter(torch.ones(()))

    def model(self, x: Tensor) -> None:
        self.script.model(x)

    def guide(self, x: Tensor) -> None:
        self.script.guide(self.factor * x)


class Stored(nn.Module):
    """A script with free and constrained parameters in Pyro's store, and a network registered by ``pyro.module``."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 4)

    def model(self, x: Tensor) -> None:
        weight = pyro.param("weight", lambda: torch.ones(2, 6).to(x))
        scale = pyro.param("scale", lambda: x.new_ones(()), constraint=dist.constraints.positive)
        shares = pyro.param("shares", lambda: x.new_tensor([0.2, 0.8]), constraint=dist.constraints.simplex)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(shares, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight, scale).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


class Discrete(nn.Module):
    """Binary latents with score-function gradients. The guide can be trained by wake-sleep."""

    def __init__(self, **infer: Any) -> None:
        super().__init__()
        self.encoder, self.decoder, self.infer = nn.Linear(6, 3), nn.Linear(3, 6), infer

    def model(self, x: Tensor, observations: Any = None) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.full((3,), 0.5).to(x)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor, observations: Any = None) -> None:
        pyro.module("encoder", self.encoder)
        x = x if observations is None else observations["x"]
        with pyro.plate("data", x.shape[-2]):
            pyro.sample("z", dist.Bernoulli(logits=self.encoder(x)).to_event(1), infer=self.infer)


class Enumerated(nn.Module):
    """A mixture whose component is enumerated by the guide, or by the model alone."""

    def __init__(self, by_guide: bool) -> None:
        super().__init__()
        self.by_guide, self.locs, self.logits = by_guide, nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(3))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            infer = {} if self.by_guide else {"enumerate": "parallel"}
            y = pyro.sample("y", dist.Categorical(torch.ones(3).to(x)), infer=infer)
            pyro.sample("x", dist.Normal(self.locs[y], 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        if self.by_guide:
            with pyro.plate("data", len(x)):
                impossible = torch.tensor([0.0, 0.0, -torch.inf]).to(x)
                pyro.sample(
                    "y", dist.Categorical(logits=x[:, None] * self.logits + impossible), infer={"enumerate": "parallel"}
                )


class Subsampled(nn.Module):
    """A VAE as a plain script in a plate that is larger than the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.vae = small_vae()

    def model(self, x: Tensor) -> None:
        pyro.factor("penalty", -self.vae.likelihood.network[0].weight.square().sum())
        with pyro.plate("data", 8, subsample_size=len(x)):
            pyro.sample("x", self.vae.likelihood(pyro.sample("z", self.vae.prior())), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", 8, subsample_size=len(x)):
            pyro.sample("z", self.vae.posterior(x))


class Guided(nn.Module):
    """A regression with an autoguide."""

    def __init__(self, autoguide: Any) -> None:
        super().__init__()
        self.guide = autoguide(self.model)
        self.guide(torch.zeros(1, 6))

    def model(self, x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(torch.zeros(6).to(x), 1.0).to_event(1))
        scale = pyro.sample("scale", dist.Gamma(x.new_tensor(2.0), 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)


NOT_TRACED = {"NormalizingFlow of zuko"}  # its coupling layers look up by a mask which dimensions are which
COMPONENTS: dict[str, Callable[[], Example]] = {
    **{f"prior {name}": partial(with_prior, name) for name in PRIORS if name not in NOT_TRACED},
    **{f"likelihood {name}": partial(with_likelihood, name) for name in LIKELIHOODS},
    **{f"posterior {name}": partial(with_posterior, name) for name in POSTERIORS},
    "posterior SemiAmortized": lambda: with_posterior("DiagonalNormal", refined=True),
}
PROGRAMS: dict[str, Callable[[], Example]] = {
    "residual networks": lambda: with_networks(
        pv.networks.residual_encoder((5, 7), 2, out_shape=6), pv.networks.residual_decoder(3, 2, out_shape=(5, 7))
    ),
    "gated networks": lambda: with_networks(pv.networks.gated_mlp((5, 7), 4, 6), pv.networks.gated_mlp(3, 4, (5, 7))),
    "batch norm": lambda: with_layers(nn.BatchNorm1d(8)),
    "dropout": lambda: with_layers(nn.Dropout(0.5)),
    "spectral norm": lambda: with_layers(nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))),
    "hierarchy bottom-up": lambda: in_layers("bottom-up"),
    "hierarchy top-down, VampPrior": lambda: in_layers("top-down"),
    "conditional": lambda: example(conditional_vae(), binary(8, 6), labels(8)),
    "semi-supervised": half_labelled,
    "Bayesian": lambda: example(bayesian_vae(8), binary(8, 6)),
    "masked": partly_observed,
    **{f"script {type(s).__name__}": lambda s=s: example(Shifted(s), s.data(8)) for s in SCRIPTS},
    "parameters in the store": lambda: example(Stored(), torch.randn(8, 6)),
    "global latent": lambda: example(Global(), torch.randn(8, 6), size=4),
    "scores": lambda: example(Discrete(), binary(8, 6)),
    "scores, TraceGraph": lambda: example(Discrete(), binary(8, 6), objective=TraceGraph_ELBO()),
    "wake and sleep": lambda: example(
        Discrete(), binary(8, 6), objective=pv.objectives.ReweightedWakeSleep(3, insomnia=0.5)
    ),
    "enumerated by the guide": lambda: example(
        Enumerated(True), torch.randn(8), objective=TraceEnum_ELBO(max_plate_nesting=1)
    ),
    "enumerated by the model": lambda: example(
        Enumerated(False), torch.randn(8), objective=TraceEnum_ELBO(max_plate_nesting=1)
    ),
    "subsample and penalty": lambda: example(Subsampled(), binary(8, 6)),
    "AutoNormal": lambda: example(Guided(AutoNormal), torch.randn(8, 6), size=4),
    "AutoMultivariateNormal": lambda: example(Guided(AutoMultivariateNormal), torch.randn(8, 6), size=4),
}
BY_COMPONENT = COMPONENTS | PROGRAMS
OBJECTIVES: dict[str, Callable[[], Any]] = {
    "Trace_ELBO": Trace_ELBO,
    "Trace_ELBO, particles": lambda: Trace_ELBO(num_particles=2),
    "Trace_ELBO, vectorized": lambda: Trace_ELBO(num_particles=2, vectorize_particles=True),
    "TraceMeanField_ELBO": TraceMeanField_ELBO,
    "TraceMeanField_ELBO, vectorized": lambda: TraceMeanField_ELBO(num_particles=2, vectorize_particles=True),
    "TraceGraph_ELBO": lambda: TraceGraph_ELBO(num_particles=2),
    "TraceEnum_ELBO": lambda: TraceEnum_ELBO(num_particles=2, vectorize_particles=True),
    "TraceTailAdaptive_ELBO": lambda: TraceTailAdaptive_ELBO(num_particles=3, vectorize_particles=True),
    "Trace_MMD": lambda: Trace_MMD(kernel=RBF(input_dim=12), num_particles=2),
    "RenyiELBO": lambda: RenyiELBO(0.5, num_particles=2),
    "RenyiELBO, vectorized": lambda: RenyiELBO(0.5, num_particles=3, vectorize_particles=True),
    "Pyro's ReweightedWakeSleep": lambda: ReweightedWakeSleep(num_particles=3),
    **MAKERS,
}
