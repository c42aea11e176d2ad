"""Compiled gradients: the graph of a step gives the results of the step under the same noise."""

from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.util import Dice
from torch import Tensor, nn

from pyrovae._compilation.graphs import Graph
from pyrovae._waist.single_runs import check_program
from pyrovae.isolation import isolated, restore_buffers, save_buffers
from pyrovae.training.gradients.compiled import CompiledGradients
from pyrovae.training.losses import Bound
from tests.conftest import interpret, small_vae
from tests.examples import BY_COMPONENT, OBJECTIVES, PROGRAMS, Batch, Example, binary, example
from tests.objectives.examples import MAKERS
from tests.steps import compiled_step

# What gradients may differ by, of their largest entry. An entry adds up some 300 products, in another order in a graph:
# rounding errors of half a unit in the last place each make 9 units, and 32 are more than three times that.
ROUNDING = {torch.float64: 0.0, torch.float32: 32 * torch.finfo(torch.float32).eps}


# Their graphs have the operations of another component of the ordinary run.
VARIANTS = {
    "prior Fixed", "prior NormalizingFlow", "prior NormalizingFlow of a mixture", "likelihood Bernoulli",
    "likelihood Normal, fixed", "likelihood Normal, by network", "likelihood Binomial in a unit",
    "likelihood NegativeBinomial", "likelihood DiscretizedLogistic", "posterior DiagonalNormal",
    "posterior MultivariateNormal, low rank", "posterior InverseAutoregressiveFlow without context",
    "posterior StudentT", "likelihood Beta", "likelihood Laplace", "likelihood Categorical",
    "residual networks", "gated networks", "hierarchy bottom-up", "conditional", "script Chain", "script GammaPoisson",
    "AutoNormal", "scores, TraceGraph", "enumerated by the guide", "posterior NormalizingFlow",
}  # fmt: skip

TRACED = (  # in every run of the tests, the others in the slow ones
    "Trace_ELBO", "Trace_ELBO, vectorized", "TraceMeanField_ELBO", "TraceGraph_ELBO", "TraceEnum_ELBO", "IWAE",
    "doubly", "ReweightedWakeSleep", "BetaTC", "FreeBits",
)  # fmt: skip


class Outcome(NamedTuple):
    loss: Tensor | float
    gradients: list[Tensor | None]
    buffers: list[Tensor]
    generator: Tensor


def parameters_of(module: Any, batch: Batch) -> list[Tensor]:
    """Return the parameters of a module, and those that its programs keep in Pyro's store."""
    with poutine.trace(param_only=True) as capture, torch.no_grad():
        check_program(module.model, module.guide, batch)
    values: list[Any] = [site["value"] for site in capture.trace.nodes.values()]
    return list({id(p): p for p in (*module.parameters(), *(value.unconstrained() for value in values))}.values())


def paths(made: Example, weighted: bool = False) -> tuple[Bound, CompiledGradients, list[Tensor]]:
    module, objective, batches, _, size = made
    parameters = parameters_of(module, batches[0])
    eager = Bound(module, objective)
    with isolated(module.model, module.guide, seed=0):
        eager.check(batches[0], size)
    others = [*module.parameters(), *module.buffers()]
    named = {str(index): parameter for index, parameter in enumerate(parameters)}
    return eager, CompiledGradients(eager, named, others, module.modules(), weighted=weighted), parameters


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
    assert torch.equal(found.generator, expected.generator)  # both paths draw the same number of values


def assert_agree(made: Example, weights: tuple[float, float] = (1.0, 1.0)) -> None:
    """Compare both paths on two batches, with other noise, parameters and buffers at the second."""
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
        assert compiled.compile_seconds > 0


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in VARIANTS else ()) for n in BY_COMPONENT]
)
def test_the_graph_of_every_component_agrees(name: str) -> None:
    assert_agree(BY_COMPONENT[name]())


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    "make",
    [pytest.param(make, marks=() if name in TRACED else pytest.mark.slow) for name, make in OBJECTIVES.items()],
    ids=OBJECTIVES,
)
def test_the_graph_of_every_objective_agrees_under_a_changing_kl_weight(make: Callable[[], Any]) -> None:
    assert_agree(example(small_vae(), binary(12, 6), objective=make()), weights=(0.3, 0.7))


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("name", ["IWAE", "doubly", "BetaELBO of IWAE", "FreeBits", "ReweightedWakeSleep"])
def test_the_graph_of_an_objective_agrees_without_a_kl_weight(name: str) -> None:
    assert_agree(example(small_vae(), binary(12, 6), objective=MAKERS[name]()))


@pytest.mark.usefixtures("interpreted")
def test_the_weight_has_the_precision_of_the_data() -> None:
    assert_agree(example(small_vae(), binary(12, 6), tolerance=1e-12), weights=(0.1, 0.2))


class Classes(nn.Module):
    """A model and a guide of integers, the classes of the data."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Embedding(3, 4), nn.Linear(2, 3)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Categorical(logits=self.decoder(z)), obs=x)

    def guide(self, x: Tensor) -> None:
        loc, log_scale = self.encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


@pytest.mark.usefixtures("interpreted")
def test_the_weight_is_not_rounded_to_an_integer_for_integer_data() -> None:
    module, batch = Classes(), (torch.arange(12) % 3,)
    loss = Bound(module, Trace_ELBO())
    compiled = CompiledGradients(loss, dict(module.named_parameters()), [], module.modules(), weighted=True)
    with pyro.validation_enabled(False):
        for weight in (0.3, 0.7):
            found, expected = (
                outcome(each, list(module.parameters()), module, batch, weight, seed=0) for each in (compiled, loss)
            )
            assert_same(found, expected, ROUNDING[torch.float32])
    assert not compiled.has_failed


def test_only_gradients_of_a_cuda_graph_are_updated_by_one(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of the gradients of several batches are at other addresses at each step."""

    def compiled(graph: Graph) -> Any:
        graph.is_replayed = True
        return interpret(graph)

    monkeypatch.setattr(Graph, "compile", compiled)
    step, gradients = compiled_step(small_vae(), (x,), weighted=False)
    captured: Any = mock.Mock(side_effect=lambda update, _: update())
    gradients.captured = captured
    with pyro.validation_enabled(False):
        for _ in range(2):
            step([(x,)])
        assert captured.call_count == 2
        step([(x,), (x,)], 1.0, (1.0, 1.0))
        assert captured.call_count == 2
        step([(x,)])
    assert captured.call_count == 3


@pytest.mark.parametrize("name", ["batch norm", "dropout", "spectral norm", "parameters in the store", "scores"])
def test_to_trace_leaves_everything_as_it_was(name: str) -> None:
    module, objective, (batch, _), *_ = PROGRAMS[name]()
    parameters = parameters_of(module, batch)
    gradients = Bound(module, objective)
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
    """Return everything that tracing might change."""
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
