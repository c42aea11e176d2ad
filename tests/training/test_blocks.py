"""Blocks of steps give the same runs as single steps. A CPU imitates the CUDA graphs."""

import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import Dataset

import pyrovae as pv
from pyrovae._compilation.graphs import Graph
from pyrovae.training import blocks as blocks_module
from pyrovae.training.blocks import Blocks, blocks_or_none
from pyrovae.training.captured_step import CapturedUpdates
from tests.conftest import interpret, small_vae
from tests.training.runs import Run, assert_same_run, fitted

fit_module = importlib.import_module("pyrovae.training.fit")  # the package's attribute of this name is the function
X = (torch.rand(310, 6, generator=torch.Generator().manual_seed(0)) < 0.3).float()
RUN = {"epochs": 3, "batch_size": 7, "compile": True}  # 44 full batches and a batch of 2 data


class Graphs:
    """Imitations of CUDA graphs: a capture changes only generators, and each launch runs the captured function.

    Attributes:
        captures: Number of captures.
        launches: Number of launches.
        made: The blocks of the last run.
    """

    def __init__(self) -> None:
        self.captures = self.launches = 0
        self.made: Blocks | None = None

    def capture(self, function: Callable[[], None], _: torch.device) -> tuple[Callable[[], None], None]:
        self.captures += 1
        torch.rand(3)
        assert self.made is not None
        groups = self.made.options.optimizer.param_groups
        seen = [{name: value for name, value in group.items() if name != "params"} for group in groups]

        def launch() -> None:
            self.launches += 1
            now = [{name: group[name] for name in kept} for group, kept in zip(groups, seen, strict=True)]
            for group, kept in zip(groups, seen, strict=True):
                group.update(kept)
            function()
            for group, kept in zip(groups, now, strict=True):
                group.update(kept)

        return launch, None

    def blocks(self, plan: Any, loss: Any, step: Any, tensors: Any) -> Blocks:
        data, gradients = plan.train.source, step.gradients
        self.made = Blocks(plan.train, data, loss, gradients, step.optimizer, gradients.captured.options, tensors)
        return self.made


def as_replayed(graph: Graph) -> Any:
    graph.is_replayed = True
    return interpret(graph)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Graphs:
    imitation = Graphs()
    monkeypatch.setattr(blocks_module, "capture", imitation.capture)
    monkeypatch.setattr(fit_module, "_blocks", imitation.blocks)
    monkeypatch.setattr(Graph, "compile", as_replayed)
    monkeypatch.setattr(CapturedUpdates, "__call__", lambda _, update, __: update())
    return imitation


def single_steps(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Run]) -> Run:
    with monkeypatch.context() as patch:
        patch.setattr(fit_module, "_blocks", lambda *_: None)
        return run()


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "a KL warm-up": {"kl_warmup": 3},
    "a transform": {"transform": pv.data.binarize},
    "a schedule": {"scheduler": partial(ExponentialLR, gamma=0.5)},
    "clipped gradients": {"clip_norm": 0.5},
    "validation data": {"valid": X[:50]},
    "an objective": {"objective": pv.objectives.IWAE(3)},
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_a_run_in_blocks_equals_a_run_of_single_steps(
    options: dict[str, Any], graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = partial(fitted, small_vae, X, **RUN, **options)
    expected = single_steps(monkeypatch, run)
    found = run()
    assert (graphs.captures, graphs.launches) == (1, 1 + (2 * 3 - 1)), "one launch more for the comparison"
    assert_same_run(found, expected, 1e-6)
    assert found.history.train[-1] > found.history.train[0] + 0.01, "the run learns"


def test_an_interrupted_run_continues_in_blocks(
    graphs: Graphs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = single_steps(monkeypatch, partial(fitted, small_vae, X, **RUN, kl_warmup=2))
    options: dict[str, Any] = {**RUN, "kl_warmup": 2, "checkpoint": tmp_path}
    fitted(small_vae, X, **{**options, "epochs": 2})
    assert_same_run(fitted(small_vae, X, **options), expected, 1e-6)
    assert graphs.captures == 2


def test_a_graph_with_draws_of_its_own_is_not_used(graphs: Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that ends with its own state of the generator did not draw the numbers of single steps."""
    expected = single_steps(monkeypatch, partial(fitted, small_vae, X, **RUN))
    capture = graphs.capture

    def frozen(function: Callable[[], None], device: torch.device) -> tuple[Callable[[], None], None]:
        launch, _ = capture(function, device)
        state = torch.get_rng_state()

        def repeat() -> None:
            torch.set_rng_state(state)
            torch.rand(3)
            launch()

        return repeat, None

    monkeypatch.setattr(blocks_module, "capture", frozen)
    with pytest.warns(UserWarning, match="launches each step by itself.*random generators end in another state"):
        found = fitted(small_vae, X, **RUN)
    assert graphs.launches == 1
    assert_same_run(found, expected, 1e-6)


@pytest.mark.parametrize("factor", [1.1, float("nan"), None])
def test_a_graph_with_other_results_is_not_used(
    factor: float | None, graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph returns another sum of the losses or, without a factor, takes the data in another order."""
    expected = single_steps(monkeypatch, partial(fitted, small_vae, X, **RUN))
    capture = graphs.capture

    def wrong(function: Callable[[], None], device: torch.device) -> tuple[Callable[[], None], None]:
        launch, _ = capture(function, device)
        made: Any = graphs.made

        def changed() -> None:
            if factor is None:
                made._order.copy_(made._order.flip(0))
            launch()
            made._total.mul_(factor or 1.0)

        return changed, None

    monkeypatch.setattr(blocks_module, "capture", wrong)
    with pytest.warns(UserWarning, match="the losses differ"):
        assert_same_run(fitted(small_vae, X, **RUN), expected, 1e-6)


def test_a_capture_that_fails_costs_nothing(graphs: Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = single_steps(monkeypatch, partial(fitted, small_vae, X, **RUN))

    def refuse(*_: Any) -> None:
        torch.rand(3)
        np.random.rand()
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(blocks_module, "capture", refuse)
    with pytest.warns(UserWarning, match="cannot repeat the steps: CUDA error: operation not permitted"):
        found = fitted(small_vae, X, **RUN)
    assert graphs.launches == 0
    assert_same_run(found, expected, 1e-6)


def test_a_state_at_another_place_is_captured_anew(graphs: Graphs) -> None:
    def moves(history: pv.History) -> None:
        if len(history.train) == 2:
            optimizer = graphs.made.options.optimizer if graphs.made else None
            assert optimizer is not None
            optimizer.load_state_dict(optimizer.state_dict())
            kept.append([value for state in optimizer.state.values() for value in state.values()])
            for state in optimizer.state.values():
                state.update({name: value.clone() for name, value in state.items()})

    kept: list[list[Tensor]] = []  # so that no address is used again
    fitted(small_vae, X, **RUN, callback=moves)
    assert graphs.captures == 2


class NoValues(TorchDispatchMode):
    """Mode in which reading the value of a tensor raises an error, as it does during the capture of a CUDA graph."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default, "a value is read"
        return func(*args, **(kwargs or {}))


def test_a_block_reads_no_values(graphs: Graphs) -> None:
    fitted(small_vae, X, **RUN, kl_warmup=3, transform=pv.data.binarize)
    assert graphs.made is not None
    graphs.made._step.zero_()
    with NoValues(), pyro.validation_enabled(False):
        graphs.made._steps()


class Masked(nn.Module):
    """A VAE with a mask as a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.vae = small_vae()
        self.register_buffer("mask", torch.tensor([True, False]))

    def model(self, x: Tensor) -> None:
        self.vae.model(x)

    def guide(self, x: Tensor) -> None:
        self.vae.guide(x)


def test_a_module_may_have_a_mask(graphs: Graphs) -> None:
    fitted(Masked, X, **RUN)
    assert graphs.captures == 1
    assert graphs.launches > 1


def test_programs_that_no_cuda_graph_replays_have_no_blocks(graphs: Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such programs read a number from the CPU, which a graph would keep."""
    monkeypatch.setattr(Graph, "compile", interpret)
    fitted(small_vae, X, **RUN)
    assert graphs.captures == 0


def test_a_batch_of_few_steps_has_no_blocks(graphs: Graphs) -> None:
    fitted(small_vae, X, **{**RUN, "batch_size": 20})
    assert graphs.captures == 0


class Rows(Dataset[Tensor]):
    """Data that are read on request."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> Tensor:
        return X[index]


@pytest.mark.parametrize(
    ("train", "options", "expected"),
    [
        (X, {}, "blocks"),
        (X, {"transform": pv.data.binarize}, "blocks"),
        (X, {"optimizer": partial(torch.optim.AdamW, fused=True)}, "blocks"),
        (X, {"optimizer": torch.optim.AdamW}, None),  # not fused
        (X, {"optimizer": torch.optim.SGD}, None),
        (X, {"transform": lambda x: x.clamp(0, 1)}, None),
        (X, {"accumulate": 2}, None),
        (X, {"on_nonfinite": "skip"}, None),
        (X, {"compile": False}, None),
        (Rows(), {}, None),
    ],
)
@pytest.mark.usefixtures("interpreted")
def test_only_runs_that_a_graph_can_repeat_have_blocks(
    train: Any, options: dict[str, Any], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list[Any]()
    monkeypatch.setattr(fit_module, "_blocks", lambda *given: seen.extend(given))
    monkeypatch.setattr(blocks_module, "Blocks", lambda *_: "blocks")
    pv.fit(small_vae(), train, epochs=1, progress=False, **{"compile": True, **options})
    plan, loss, step, tensors = seen
    plan.train.source.device = torch.device("cuda")
    found: Any = blocks_or_none(plan.train, loss, step, tensors)
    assert found == expected
