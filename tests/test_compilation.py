"""Compiled training: the graph of a step is the step, under the same noise, and what cannot be one says why."""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import torch._inductor as inductor
import zuko
from pyro import poutine
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
from pyro.infer.util import Dice
from torch import Tensor, nn
from torch._inductor.utils import fresh_cache
from torch.utils.checkpoint import checkpoint

import pyrovae as pv
from pyrovae import graphs
from pyrovae.graphs import Graph
from pyrovae.isolation import isolated, restore_buffers, save_buffers
from pyrovae.precision import products
from pyrovae.sites import check_program
from pyrovae.training.criteria import Bound
from pyrovae.training.gradients import CompiledGradients
from pyrovae.training.history import History
from tests.conftest import small_vae
from tests.scripts import SCRIPTS
from tests.test_bayesian import bayesian_vae
from tests.test_components import LIKELIHOODS, POSTERIORS, PRIORS
from tests.test_conditional import conditional_vae, labels, m2
from tests.test_objectives_contract import MAKERS
from tests.test_training import Global

mlp, normal, Joint = pv.networks.mlp, pv.posteriors.DiagonalNormal, pv.networks.Joint
Batch = tuple[Tensor, ...]


class Example(NamedTuple):
    """A module in float64 with an objective and two batches of one shape."""

    module: nn.Module
    objective: Any
    batches: Sequence[Batch]
    tolerance: float = 1e-9

    def to(self, dtype: torch.dtype) -> "Example":
        batches = [tuple(tensor.to(dtype) for tensor in batch) for batch in self.batches]
        return self._replace(module=self.module.to(dtype), batches=batches)


# What gradients may differ by, of their largest entry. An entry adds up some 300 products, in another order in a graph:
# rounding errors of half a unit in the last place each make 9 units, and 32 are more than three times that.
ROUNDING = {torch.float64: 0.0, torch.float32: 32 * torch.finfo(torch.float32).eps}


def example(module: nn.Module, *data: Tensor, objective: Any = None, tolerance: float = 1e-9) -> Example:
    batches = list(zip(*(part.double().chunk(2) for part in data), strict=True))
    return Example(module.double(), objective or Trace_ELBO(), batches, tolerance)


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
    """A script whose guide has a parameter."""

    def __init__(self, script: Any) -> None:
        super().__init__()
        self.script, self.factor = script, nn.Parameter(torch.ones(()))

    def model(self, x: Tensor) -> None:
        self.script.model(x)

    def guide(self, x: Tensor) -> None:
        self.script.guide(self.factor * x)


class Stored(nn.Module):
    """A script with parameters in Pyro's store, free and constrained, and a network announced by ``pyro.module``."""

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
    """Binary latents, whose gradients are scores; the guide can dream."""

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
    """A mixture whose component the guide enumerates, or the model alone."""

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
        with pyro.plate("data", 1000, subsample_size=len(x)):
            pyro.sample("x", self.vae.likelihood(pyro.sample("z", self.vae.prior())), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", 1000, subsample_size=len(x)):
            pyro.sample("z", self.vae.posterior(x))


class Guided(nn.Module):
    """A regression whose guide Pyro writes."""

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
    "Bayesian": lambda: example(bayesian_vae(40), binary(8, 6)),
    "masked": partly_observed,
    **{f"script {type(s).__name__}": lambda s=s: example(Shifted(s), s.data(8)) for s in SCRIPTS},
    "parameters in the store": lambda: example(Stored(), torch.randn(8, 6)),
    "global latent": lambda: example(Global(), torch.randn(8, 6)),
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
    "AutoNormal": lambda: example(Guided(AutoNormal), torch.randn(8, 6)),
    "AutoMultivariateNormal": lambda: example(Guided(AutoMultivariateNormal), torch.randn(8, 6)),
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


class Outcome(NamedTuple):
    loss: Tensor | float
    gradients: list[Tensor | None]
    buffers: list[Tensor]
    generator: Tensor


def parameters_of(module: Any, batch: Batch) -> list[Tensor]:
    """Those of the module and those that its programs keep in Pyro's store."""
    with poutine.trace(param_only=True) as capture, torch.no_grad():
        check_program(module.model, module.guide, batch)
    values: list[Any] = [site["value"] for site in capture.trace.nodes.values()]
    return list({id(p): p for p in (*module.parameters(), *(value.unconstrained() for value in values))}.values())


def paths(made: Example, weighted: bool = False) -> tuple[Bound, CompiledGradients, list[Tensor]]:
    module, objective, batches, _ = made
    parameters = parameters_of(module, batches[0])
    eager = Bound(module, objective, None)
    with isolated(module.model, module.guide, seed=0):
        eager.check(batches[0])
    others = [*module.parameters(), *module.buffers()]
    return eager, CompiledGradients(eager, parameters, others, module.modules(), weighted), parameters


def outcome(
    gradients: Any, parameters: list[Tensor], module: nn.Module, batch: Batch, weight: float, seed: int
) -> Outcome:
    torch.manual_seed(seed)
    for parameter in parameters:
        parameter.grad = None
    loss = gradients(batch, weight)
    found = [None if parameter.grad is None else parameter.grad.clone() for parameter in parameters]
    return Outcome(loss, found, [buffer.clone() for buffer in module.buffers()], torch.get_rng_state())


def assert_same(found: Outcome, expected: Outcome, tolerance: float) -> None:
    assert float(found.loss) == pytest.approx(float(expected.loss), rel=tolerance)
    largest = max(float(slope.abs().max()) for slope in expected.gradients if slope is not None)
    for slope, exact in zip(found.gradients, expected.gradients, strict=True):
        assert (slope is None) == (exact is None)
        if exact is not None:
            torch.testing.assert_close(slope, exact, rtol=tolerance, atol=tolerance * largest)
    for buffer, exact in zip(found.buffers, expected.buffers, strict=True):
        torch.testing.assert_close(buffer, exact, rtol=tolerance, atol=tolerance)
    assert torch.equal(found.generator, expected.generator)  # as many draws


def assert_agree(made: Example, weights: tuple[float, float] = (1.0, 1.0)) -> None:
    """Compares the paths on two batches, with other noise, other parameters and other buffers at the second."""
    module, batches = made.module, made.batches
    with pyro.validation_enabled(False):
        eager, compiled, parameters = paths(made, weighted=weights != (1.0, 1.0))
        compiled(batches[0], weights[0])
        for seed, (batch, weight) in enumerate(zip(batches, weights, strict=True)):
            buffers = save_buffers(module.modules())
            found = outcome(compiled, parameters, module, batch, weight, seed)
            restore_buffers(buffers)
            expected = outcome(eager, parameters, module, batch, weight, seed)
            assert_same(found, expected, max(made.tolerance, ROUNDING[batch[0].dtype]))
            with torch.no_grad():
                for parameter in parameters:
                    parameter.mul_(1.1).add_(0.01)
        assert compiled.seconds > 0


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs graphs as they are, operation by operation."""

    def interpret(graph: Graph) -> Callable[..., Sequence[Tensor]]:
        fixed, found = ([tensor.detach() for tensor in group] for group in (graph.fixed, graph.found))

        def run(*tensors: Tensor) -> Sequence[Tensor]:
            with torch.no_grad():
                return graph.module(*fixed, *tensors, *found)

        return run

    monkeypatch.setattr(Graph, "compile", interpret)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("make", BY_COMPONENT.values(), ids=BY_COMPONENT)
def test_the_graph_of_every_component_agrees(make: Callable[[], Example]) -> None:
    assert_agree(make())


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("make", OBJECTIVES.values(), ids=OBJECTIVES)
def test_the_graph_of_every_objective_agrees_under_a_changing_kl_weight(make: Callable[[], Any]) -> None:
    assert_agree(example(small_vae(), binary(12, 6), objective=make()), weights=(0.3, 0.7))


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_the_graph_of_every_objective_of_ours_agrees(make: Callable[[], Any]) -> None:
    assert_agree(example(small_vae(), binary(12, 6), objective=make()))


@pytest.mark.usefixtures("interpreted")
def test_the_weight_has_the_precision_of_the_data() -> None:
    assert_agree(example(small_vae(), binary(12, 6), tolerance=1e-12), weights=(0.1, 0.2))


@pytest.mark.parametrize("name", ["batch norm", "dropout", "spectral norm", "parameters in the store", "scores"])
def test_to_trace_leaves_everything_as_it_was(name: str) -> None:
    module, objective, (batch, _), _ = PROGRAMS[name]()
    parameters = parameters_of(module, batch)
    gradients = Bound(module, objective, None)
    with pyro.validation_enabled(False):
        gradients(batch, 1.0)  # in which the objective finds the depth of the plates
        for parameter in parameters:
            parameter.grad = None
        before = standing(module)
        slopes: list[Tensor] = []

        def step() -> list[Tensor]:
            loss = gradients(batch, 1.0)
            slopes.extend(parameter.grad for parameter in parameters if parameter.grad is not None)
            return [torch.as_tensor(loss), *slopes]

        Graph(step, [*parameters, *module.buffers()], batch, module.modules())
    torch.testing.assert_close(standing(module), before, rtol=0, atol=0)
    assert len(slopes) == len(parameters)


def standing(module: nn.Module) -> dict[str, Any]:
    """All that tracing might change."""
    stored = dict(pyro.get_param_store().named_parameters())
    tensors = [*module.parameters(), *module.buffers(), *stored.values()]
    return {
        "values": [tensor.detach().clone() for tensor in tensors],
        "identities": [id(tensor) for tensor in tensors],
        "generator": torch.get_rng_state(),
        "modes": [part.training for part in module.modules()],
        "checks": [id(pyro.util.torch_isnan), id(torch.manual_seed), id(Dice.compute_expectation)],
    }


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("make", BY_COMPONENT.values(), ids=BY_COMPONENT)
def test_compiled_every_component_agrees(make: Callable[[], Example], dtype: torch.dtype) -> None:
    assert_agree(make().to(dtype))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("make", OBJECTIVES.values(), ids=OBJECTIVES)
def test_compiled_every_objective_agrees(make: Callable[[], Any], dtype: torch.dtype) -> None:
    assert_agree(example(small_vae(), binary(12, 6), objective=make()).to(dtype), weights=(0.3, 0.7))


def regularized_vae() -> pv.VAE:
    vae = small_vae()
    layers = nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 4)
    vae.posterior = normal(nn.Sequential(*layers))
    return vae.double()


class Run(NamedTuple):
    history: History
    state: dict[str, Tensor]


def fitted(make: Callable[[], nn.Module], train: Any, **options: Any) -> Run:
    """Trains from the same start with the same noise."""
    pyro.set_rng_seed(7)
    pyro.clear_param_store()
    module = make()
    history = pv.fit(module, train, seed=1, progress=False, learning_rate=0.02, **options)
    stored = {f"stored {name}": value.detach() for name, value in pyro.get_param_store().named_parameters()}
    return Run(history, module.state_dict() | stored)


def assert_same_run(found: Run, expected: Run, tolerance: float) -> None:
    for column in ("train", "valid", "kl_weight", "learning_rate", "best_epoch"):
        assert getattr(found.history, column) == pytest.approx(getattr(expected.history, column), rel=tolerance)
    torch.testing.assert_close(found.state, expected.state, rtol=tolerance, atol=tolerance)


def test_a_compiled_run_is_the_run(x: Tensor) -> None:
    """Two shapes of batch, annealing, new binary data at every step, a schedule and validation data."""
    options = {
        "train": 0.2 + 0.6 * x.double(),
        "valid": x.double(),
        "epochs": 4,
        "batch_size": 5,
        "kl_warmup": 2,
        "transform": pv.data.binarize,
        "scheduler": partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.8),
    }
    plain, compiled = (fitted(regularized_vae, compile=is_compiled, **options) for is_compiled in (False, True))
    assert plain.history.compile_seconds == 0 < compiled.history.compile_seconds < compiled.history.seconds[-1]
    assert_same_run(compiled, plain, tolerance=1e-9)


def test_a_compiled_run_in_single_precision_is_the_run_but_for_rounding(x: Tensor) -> None:
    options = {"objective": pv.objectives.IWAE(3), "epochs": 4, "batch_size": 6, "kl_warmup": 2}
    plain, compiled = (fitted(small_vae, x, valid=x, compile=is_compiled, **options) for is_compiled in (False, True))
    assert compiled.history.compile_seconds > 0
    assert_same_run(compiled, plain, tolerance=1e-5)


class Function(nn.Module):
    """A layer that calls a function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, h: Tensor) -> Tensor:
        return self.function(h)


class Moved(nn.Module):
    """A layer that counts its calls in a buffer that it makes anew."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, h: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return h


class Redrawn(nn.Module):
    """A guide whose draws are accepted or not."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.ones(()))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.VonMises(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(torch.stack([z.cos()] * 6, -1), 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.VonMises(self.loc.expand(len(x)), 2.0))


def vae_with(layer: nn.Module) -> pv.VAE:
    vae = small_vae()
    vae.likelihood = pv.likelihoods.Bernoulli(nn.Sequential(nn.Linear(2, 8), layer, nn.Linear(8, 6)))
    return vae


def calling(function: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    return lambda: vae_with(Function(function))


BY_VALUE = "a decision is made by the value of a tensor"
UNTRACEABLE: dict[str, tuple[Callable[[], nn.Module], Any, str]] = {
    "branch": (calling(lambda h: h if h.sum() > 0 else 2 * h), None, BY_VALUE),
    "check for NaN": (calling(lambda h: h if not h.isnan().any() else 0 * h), None, BY_VALUE),
    "number": (calling(lambda h: h * float(h.detach().mean())), None, BY_VALUE),
    "batch norm without momentum": (lambda: vae_with(nn.BatchNorm1d(8, momentum=None)), None, BY_VALUE),
    "rejection sampling": (Redrawn, None, BY_VALUE),
    "list": (calling(lambda h: h * h.mean().tolist()), None, r"values of a tensor are taken out of it, by tolist\(\)"),
    "NumPy": (calling(lambda h: h * np.asarray(h.detach()).mean()), None, r"taken out of it, by __array__\(\)"),
    "tensor of tensors": (calling(lambda h: h * torch.tensor([h.detach().mean(), 1.0]).sum()), None, r"by tensor\(\)"),
    "mask": (calling(lambda h: h * h[h > 0].sum()), None, r"the shape of a result depends on values, .*nonzero"),
    "checkpoint": (
        calling(lambda h: checkpoint(lambda h: nn.functional.dropout(h, 0.5), h, use_reentrant=False)),
        None,
        "the programs set the state of a random generator",
    ),
    "buffer": (lambda: vae_with(Moved()), None, "Moved puts another tensor in the place of its buffer 'calls'"),
    "baseline": (
        lambda: Discrete(baseline={"use_decaying_avg_baseline": True}),
        TraceGraph_ELBO(),
        r"values of its own in Pyro's parameter store \(baselines\)",
    ),
    "coupling of zuko": (
        lambda: pv.VAE(
            pv.priors.NormalizingFlow(2, zuko.flows.NICE(2, transforms=2).transform.inv),
            small_vae().likelihood,
            small_vae().posterior,
        ),
        None,
        "the shape of a result depends on values",
    ),
}


def inverted_flow() -> pv.VAE:
    vae = small_vae()
    vae.posterior = pv.posteriors.InverseAutoregressiveFlow(mlp(6, 2 * 2), 2, depth=1, hidden=(4,))
    return vae


def assert_falls_back(make: Callable[[], nn.Module], objective: Any, reason: str, x: Tensor) -> None:
    options = {"objective": objective, "epochs": 2, "batch_size": 6}
    plain = fitted(make, x, **copy.deepcopy(options))
    with pytest.warns(UserWarning, match=f"^fit goes on without compilation: .*{reason}") as caught:
        compiled = fitted(make, x, compile=True, **options)
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    assert len(str(caught[0].message)) < 200
    assert_same_run(compiled, plain, tolerance=0)


@pytest.mark.parametrize(("make", "objective", "reason"), UNTRACEABLE.values(), ids=UNTRACEABLE)
def test_what_cannot_be_traced_says_why_and_trains_as_it_is(
    make: Callable[[], nn.Module], objective: Any, reason: str, x: Tensor
) -> None:
    assert_falls_back(make, objective, reason, x)


@pytest.mark.parametrize("gradient", ["sticking_the_landing", "doubly_reparameterized"])
def test_a_loop_unrolled_is_not_compiled(gradient: Any, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MAX_OPERATIONS", 300)
    objective = pv.objectives.IWAE(2, gradient=gradient)
    reason = r"there are [3-9]\d\d operations, of a loop unrolled, and 300 are the limit"
    assert_falls_back(inverted_flow, objective, reason, x)


def test_without_a_compiler_training_goes_on(x: Tensor) -> None:
    with fresh_cache(), inductor.config.patch({"cpp.cxx": ("nowhere",)}):
        assert_falls_back(small_vae, None, r"No working C\+\+ compiler .*\('nowhere',\)", x)


def test_a_generator_of_ones_own_is_not_compiled(x: Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    make = calling(lambda h: h + torch.randn(h.shape, generator=generator))
    with pytest.warns(UserWarning, match="without compilation: the programs hold a Generator of their own"):
        fitted(make, x, compile=True, epochs=2)


def test_what_is_wrong_with_a_program_is_said_as_without_compilation(x: Tensor) -> None:
    def broken(h: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise KeyError("no such layer")
        return h

    with pytest.raises(KeyError, match="no such layer"):
        fitted(calling(broken), x, compile=True, epochs=2)


LAYERS: dict[str, Callable[[], Any]] = {
    "dense": lambda: (mlp((6, 8), 8, 4), mlp(2, 8, (6, 8))),
    "convolutional": lambda: (
        pv.networks.conv_encoder((6, 8), 4, out_shape=4),
        pv.networks.conv_decoder(2, 4, out_shape=(6, 8)),
    ),
}


def vae_of_layers(name: str) -> pv.VAE:
    encoder, decoder = LAYERS[name]()
    return pv.VAE(pv.priors.StandardNormal(2), pv.likelihoods.Normal(decoder), normal(encoder))


def slopes_of(vae: pv.VAE, x: Tensor, precision: Any) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    vae.zero_grad()
    loss = Bound(vae, Trace_ELBO(), precision)((x,), 1.0)
    assert isinstance(loss, Tensor)
    return loss, torch.cat([parameter.grad.flatten() for parameter in vae.parameters() if parameter.grad is not None])


@pytest.mark.parametrize("name", LAYERS)
def test_products_in_bfloat16_round_the_gradient_to_eight_bits(name: str) -> None:
    vae, x = vae_of_layers(name), torch.randn(20, 6, 8)
    (exact_loss, exact), (loss, slopes) = (slopes_of(vae, x, precision) for precision in (None, "bfloat16"))
    assert loss.dtype == slopes.dtype == torch.float32
    assert 2**-12 < (slopes - exact).norm() / exact.norm() < 2**-6
    assert 0 < (loss - exact_loss).abs() < 2**-8 * exact_loss.abs()


@pytest.mark.parametrize("name", LAYERS)
def test_densities_stay_in_float32(name: str) -> None:
    vae, x = vae_of_layers(name), torch.randn(20, 6, 8)
    with products("bfloat16"):
        tape = poutine.trace(vae.model).get_trace(x)
        tape.compute_log_prob()
    site = tape.nodes["x"]
    loc = site["fn"].base_dist.loc
    assert torch.equal(loc, loc.bfloat16().float())
    exact = dist.Normal(loc.double(), 1.0).to_event(2).log_prob(x.double())
    torch.testing.assert_close(site["log_prob"].double(), exact, rtol=1e-6, atol=0)


def test_products_of_float64_are_not_rounded() -> None:
    vae, x = vae_of_layers("dense").double(), torch.randn(20, 6, 8).double()
    assert torch.equal(slopes_of(vae, x, None)[1], slopes_of(vae, x, "bfloat16")[1])


@pytest.mark.usefixtures("interpreted")
def test_a_graph_has_its_products_in_bfloat16(x: Tensor) -> None:
    runs = [fitted(small_vae, x, precision="bfloat16", compile=is_compiled, epochs=3) for is_compiled in (False, True)]
    assert_same_run(runs[1], runs[0], tolerance=1e-6)
    assert runs[0].history.train != pytest.approx(fitted(small_vae, x, epochs=3).history.train, rel=1e-6)


@pytest.mark.parametrize(
    ("precision", "message"),
    [("float8", r"precision is one of \('tf32', 'bfloat16'\), .*got 'float8'"), ("tf32", "TF32 .*not of 'cpu'")],
)
def test_precisions_that_there_are_not(precision: Any, message: str, x: Tensor) -> None:
    with pytest.raises(ValueError, match=message):
        fitted(small_vae, x, precision=precision, device="cpu")
