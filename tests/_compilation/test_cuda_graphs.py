"""CUDA graphs: which compiled graphs are replayed, the warm-up before a capture, and numbers that stay on the CPU."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any
from unittest import mock

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import pyrovae as pv
from pyrovae._compilation import graphs
from pyrovae._compilation.cuda_graphs import Replay, capture
from pyrovae._compilation.graphs import Graph

Given = dict[str, Tensor]
Case = tuple[Callable[[Given], Tensor], str, bool]
CASES: dict[str, Case] = {
    "all on the device": (lambda given: given["x"] * given["beta"], "", True),
    "draws on the device": (lambda given: given["x"] + torch.randn_like(given["x"]), "", True),
    "a literal": (lambda given: given["x"] * torch.tensor(0.5), "", True),
    "an unused buffer on the CPU": (lambda given: given["x"] * 2, "number", True),
    "a number in a closure": (lambda given: given["x"] * given["number"], "", False),
    "a buffer on the CPU": (lambda given: given["x"] * given["number"], "number", False),
    "a draw on the CPU": (lambda given: given["x"] * torch.rand(()), "", False),
}


@pytest.mark.parametrize(("function", "fixed", "expected"), CASES.values(), ids=CASES)
def test_a_graph_that_depends_on_the_cpu_is_not_replayed(
    function: Callable[[Given], Tensor], fixed: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CUDA graph would keep the first value of a number on the CPU. The tensors of this test have no values."""
    monkeypatch.setattr(graphs, "compile_graph", lambda module, *_: module)
    monkeypatch.setattr(graphs, "Replay", lambda *_: "replayed")
    with FakeTensorMode():
        given = {name: torch.empty(shape, device="cuda") for name, shape in (("x", (3,)), ("beta", ()))}
        given["number"] = torch.empty(())
        graph = Graph(lambda: [function(given)], [given[fixed]] if fixed else [], [given["x"]])
        compiled = graph.compile()
    assert (compiled == "replayed", graph.is_replayed) == (expected, expected)


class Stream:
    """A stream whose work is done only when another stream waits for it."""

    def __init__(self, *_: Any) -> None:
        self.pending: list[Callable[[], Any]] = []

    def wait_stream(self, other: "Stream") -> None:
        while other.pending:
            other.pending.pop(0)()


def test_the_warm_up_leaves_buffers_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    current, side, layer = Stream(), Stream(), nn.BatchNorm1d(2)
    replacements: dict[str, Any] = {
        "Stream": lambda *_: side,
        "current_stream": lambda *_: current,
        "stream": lambda _: nullcontext(),
        "device": lambda _: nullcontext(),
        "graph": lambda *_, **__: nullcontext(),
        "CUDAGraph": mock.MagicMock(),
    }
    for name, replacement in replacements.items():
        monkeypatch.setattr(torch.cuda, name, replacement)
    assert layer.running_mean is not None
    mean, runs = layer.running_mean, list[int]()

    def run(x: Tensor) -> Sequence[Tensor]:
        runs.append(len(x))
        if len(runs) <= 3:  # the last run is the capture, which launches nothing
            side.pending.append(lambda: mean.add_(1))
        return [x]

    Replay(run, [torch.ones(4, 2)], [layer])
    assert len(runs) == 4
    assert not side.pending
    assert mean.tolist() == [0, 0]


def test_other_threads_may_use_the_device_during_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDAGraph", "Stream", "current_stream", "stream", "graph", "device"):
        monkeypatch.setattr(torch.cuda, name, mock.MagicMock())
    capture(lambda: None, torch.device("cuda"))
    graph: Any = torch.cuda.graph
    assert graph.call_args.kwargs["capture_error_mode"] == "thread_local"


@pytest.mark.cuda
def test_a_number_on_the_cpu_is_read_at_each_call() -> None:
    beta, x = torch.tensor(1.0), torch.full((4,), 3.0, device="cuda")

    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.ones_like(x))
        pyro.sample("x", dist.Normal(beta * loc + 1, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None: ...

    svi = pv.SVI(model, guide, pyro.optim.SGD({"lr": 0.0}), Trace_ELBO(), compile=True)
    for value in (1.0, 1.0, 2.0, 5.0):  # the second step compiles the graph
        beta.fill_(value)
        expected = -4 * dist.Normal(value + 1, 1.0).log_prob(torch.tensor(3.0)).item()
        assert svi.step(x) == pytest.approx(expected, rel=1e-5)
