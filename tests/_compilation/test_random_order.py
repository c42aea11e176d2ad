"""Random operations of a graph keep their order with versions of torch that order kernels by the tensors they read."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from pyrovae._compilation import random_order


def noisy(x: Tensor) -> tuple[Tensor, ...]:
    """Return draws of several kinds, of which none reads another."""
    return (
        torch.randn(3, dtype=x.dtype),
        torch.empty_like(x).normal_(),
        torch._standard_gamma(x + 2),
        torch.rand(5),
        torch.poisson(torch.rand(5)),
        halves(x),
        torch.bernoulli(x),
        torch.ops.aten.native_dropout(x, 0.5, True)[0],
        torch.randn_like(x),
    )


def halves(x: Tensor) -> Tensor:
    """Fill two views of a tensor, one after the other."""
    filled = torch.empty(6, dtype=x.dtype)
    filled[:3].normal_()
    filled[3:].uniform_()
    return filled


def recorded(function: Callable[[Tensor], tuple[Tensor, ...]], x: Tensor) -> fx.GraphModule:
    traced: fx.GraphModule = make_fx(function)(x)
    random_order.chain(traced.graph)
    traced.recompile()
    traced.graph.lint()
    return traced


def ancestors(node: fx.Node) -> set[fx.Node]:
    found, pending = set[fx.Node](), [node]
    while pending:
        new = [given for given in pending.pop().all_input_nodes if given not in found]
        found.update(new)
        pending += new
    return found


def test_each_draw_reads_the_draw_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_order, "_KEEPS_ORDER", False)
    x = torch.rand(4, 2)
    traced = recorded(noisy, x)
    draws = [node for node in traced.graph.nodes if random_order.draws(node)]
    assert len(draws) == 11
    for earlier, later in pairwise(draws):
        assert earlier in ancestors(later)
    torch.manual_seed(0)
    expected = noisy(x)
    torch.manual_seed(0)
    for found, exact in zip(traced(x), expected, strict=True):
        assert torch.equal(found, exact)


def test_newer_versions_need_no_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_order, "_KEEPS_ORDER", True)
    traced = recorded(noisy, torch.rand(4, 2))
    assert not traced.graph.find_nodes(op="call_function", target=torch.ops.pyrovae.after.default)
