"""A compiled cascade has one graph for values and two for gradients, whatever number of data a stage leaves over."""

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae.evaluation.unconstrained import flat, target
from pyrovae.evaluation.unconstrained.space import Space
from pyrovae.evaluation.unconstrained.target import Target

OPTIONS: Any = {"seed": 0, "progress": False}


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        s = pyro.sample("s", dist.Gamma(2.0, 2.0))
        pyro.sample("x", dist.Normal(z, s.sqrt()), obs=x)


def guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
        pyro.sample("s", dist.Gamma(2.0, 2.0))


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch, interpreted: None) -> list[tuple[int, ...]]:
    """Record the shapes of u for which a graph is made. Graphs run without a compiler, but need contiguous inputs."""
    shapes: list[tuple[int, ...]] = []
    compiled = flat.compiled_or_none

    def record(run: Any, fixed: Any, varying: Any, *rest: Any, **options: Any) -> Any:
        shapes.append(tuple(varying[-1].shape))
        graph = compiled(run, fixed, varying, *rest, **options)
        assert graph is not None

        def checked(*tensors: Tensor) -> Any:
            for given, expected in zip(tensors, varying, strict=True):
                assert (given.shape, given.stride()) == (expected.shape, expected.stride())
            return graph(*tensors)

        return checked

    monkeypatch.setattr(flat, "compiled_or_none", record)
    return shapes


def test_there_are_three_graphs_and_the_same_numbers(graphs: list[tuple[int, ...]]) -> None:
    x = torch.linspace(0.0, 9.0, 150)  # the guide serves for small x, and batches leave different numbers of data over
    found = pv.evaluation.log_likelihood(model, guide, x, compile=True, **OPTIONS)
    assert sorted(graphs) == [(flat.FEW_ROWS, 2), (flat.ROWS, 2), (flat.ROWS, 2)]
    plain = pv.evaluation.log_likelihood(model, guide, x, **OPTIONS)
    assert {"refined", "guide"} <= set(found.estimator.values)
    np.testing.assert_allclose(found.log_likelihood, plain.log_likelihood, atol=2e-3)
    refined = pv.guides.Refined(model, guide)
    pv.evaluation.evaluate(model, refined, x, 100, compile=True, **OPTIONS)
    assert (flat.ROWS, 2) in graphs[2:]


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize("shape", [(1, 3), (64, 10), (13, 61), (7, 50), (1, 640), (5, 77)])
def test_densities_and_gradients_of_pairs_are_those_of_the_batch(shape: tuple[int, int]) -> None:
    draws, size = shape
    x = torch.linspace(-3.0, 3.0, size)
    with pv.evaluation.Problem(model, guide, x, compile=True, **OPTIONS) as problem:
        space, batch = Space(problem), next(problem.batches(size))
        whole = Target(space, batch, amortized=True, compiles=False)
        pairs = flat.target_of(space, batch)
        assert isinstance(pairs, flat.FlatTarget)
        u = torch.randn(draws, size, 2, generator=torch.Generator().manual_seed(1))
        some = torch.arange(size - 1, -1, -2)
        for mine, theirs, at in ((pairs, whole, u), (pairs.subset(some), whole.subset(some), u[:, some])):
            torch.testing.assert_close(mine.log_joint(at), theirs.log_joint(at))
            torch.testing.assert_close(mine.log_densities(at), theirs.log_densities(at))
            torch.testing.assert_close(mine.value_and_gradient(at), theirs.value_and_gradient(at))
            torch.testing.assert_close(mine.value_and_gradient(at, 0.3), theirs.value_and_gradient(at, 0.3))


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize("size", [100, 700])
def test_vectors_in_any_layout(size: int) -> None:
    with pv.evaluation.Problem(model, guide, torch.linspace(-3.0, 3.0, size), compile=True, **OPTIONS) as problem:
        space, batch = Space(problem), next(problem.batches(size))
        whole, pairs = Target(space, batch, amortized=True, compiles=False), flat.target_of(space, batch)
        u = torch.randn(2, size, 9, generator=torch.Generator().manual_seed(1)).mT[:, ::3].mT[None, 0, :, :2]
        assert not u.is_contiguous()
        torch.testing.assert_close(pairs.log_joint(u), whole.log_joint(u))
        torch.testing.assert_close(pairs.value_and_gradient(u), whole.value_and_gradient(u))


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("compiles", [False, True])
def test_large_events_do_not_shorten_the_parts_of_a_compiled_run(compiles: bool) -> None:
    """The model of a compiled run sees a part of the vectors at a time, so only the vectors need memory."""

    def of_image(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0).expand([*z.shape[:-1], 784]).to_event(1), obs=x)

    def its_guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))

    x = torch.zeros(20, 784)
    with pv.evaluation.Problem(of_image, its_guide, x, compile=compiles, **OPTIONS) as problem:
        target = flat.target_of(Space(problem), next(problem.batches(20)))
        assert (target.affordable > 10 * problem.affordable) == compiles


@pytest.mark.usefixtures("graphs")
def test_a_program_of_a_fixed_size_has_no_pairs() -> None:
    def of_four(x: Tensor) -> None:
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def its_guide(x: Tensor) -> None:
        with pyro.plate("data", 4):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    with pv.evaluation.Problem(of_four, its_guide, torch.zeros(4), compile=True, **OPTIONS) as problem:
        found = flat.target_of(Space(problem), next(problem.batches(4)))
    assert not isinstance(found, flat.FlatTarget)


class OnCuda(Tensor):
    """A tensor on the CPU that claims to be on a CUDA device."""

    is_cuda = True  # type: ignore[assignment]


@pytest.fixture
def overwritten(monkeypatch: pytest.MonkeyPatch, interpreted: None) -> None:
    """Let every call of a graph overwrite the results of its previous call, as a CUDA graph does."""
    compiled = flat.compiled_or_none

    def overwriting(*given: Any, **options: Any) -> Any:
        graph, places = compiled(*given, **options), list[Tensor]()
        assert graph is not None

        def replay(*tensors: Tensor) -> list[Tensor]:
            results = graph(*tensors)
            places.extend(torch.empty_like(result).as_subclass(OnCuda) for result in results[len(places) :])
            for place, result in zip(places, results, strict=True):
                place.copy_(result)
            return places

        return replay

    for module in (flat, target):
        monkeypatch.setattr(module, "compiled_or_none", overwriting)


@pytest.mark.usefixtures("overwritten")
def test_a_call_of_a_graph_leaves_earlier_results_unchanged() -> None:
    with pv.evaluation.Problem(model, guide, torch.linspace(-3.0, 3.0, 50), compile=True, **OPTIONS) as problem:
        space, batch = Space(problem), next(problem.batches(50))
        plain = Target(space, batch, amortized=True, compiles=False)
        u = torch.randn(2, 26, 50, 2, generator=torch.Generator().manual_seed(1))  # each half has two full graphs
        expected = [plain.value_and_gradient(part) for part in u]
        for compiled in (flat.target_of(space, batch), Target(space, batch, amortized=True)):
            for mine, theirs in zip([compiled.value_and_gradient(part) for part in u], expected, strict=True):
                for result, right in zip(mine, theirs, strict=True):
                    torch.testing.assert_close(result.as_subclass(Tensor), right)


@pytest.mark.usefixtures("interpreted")
def test_a_graph_reads_the_subsample_of_each_batch() -> None:
    def of_64(x: Tensor) -> None:
        with pyro.plate("data", 128, subsample_size=64) as chosen:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[chosen])

    def its_guide(x: Tensor) -> None:
        with pyro.plate("data", 128, subsample_size=64) as chosen:
            pyro.sample("z", dist.Normal(x[chosen] / 2, 1.0))

    with pv.evaluation.Problem(of_64, its_guide, torch.arange(128.0), compile=True, **OPTIONS) as problem:
        space, u = Space(problem), torch.zeros(3, 64, 1)
        for batch in problem.batches(64):
            compiled, plain = Target(space, batch), Target(space, batch, compiles=False)
            assert compiled.compiles
            torch.testing.assert_close(compiled.value_and_gradient(u), plain.value_and_gradient(u))
            torch.testing.assert_close(compiled.value_and_gradient(u, 0.3), plain.value_and_gradient(u, 0.3))
