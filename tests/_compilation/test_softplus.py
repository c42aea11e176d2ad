"""log(1 + e^x) in compiled graphs is as accurate as in torch, and does not call log1p."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from pyrovae._compilation import softplus
from pyrovae._compilation.graphs import Graph

EXTREMES = torch.tensor([-torch.inf, -200.0, -88.0, -0.0, 0.0, 20.5, 200.0, torch.inf, torch.nan])
EPSILON = torch.finfo(torch.float32).eps


def by_graph(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    found: Tensor = Graph(lambda: [function(x)], [], [x]).compile()(x.detach())[0]
    return found


def operations(function: Callable[[Tensor], Tensor], x: Tensor) -> set[Any]:
    return {node.target for node in Graph(lambda: [function(x)], [], [x]).module.graph.nodes}


def cross_entropy(logits: Tensor, target: float, **options: Any) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target), reduction="none", **options)


def test_the_series_is_as_exact_as_float32() -> None:
    x = torch.linspace(-15, 0, 100_001)
    exact = x.double().exp().log1p()
    error = (softplus.log1p_exp(x).double() - exact) / exact
    assert error.abs().max() < 3 * EPSILON
    assert ((softplus.log1p_exp(x.double()) - exact) / exact).abs().max() < 2e-8, "what the docstring says of the rest"


def test_the_operation_is_one_of_torchs() -> None:
    torch.library.opcheck(softplus.log1p_exp, (-torch.rand(3, 4).t(),))


def test_a_softplus_is_torchs() -> None:
    x = torch.cat([torch.linspace(-80, 80, 100_001), EXTREMES])
    torch.testing.assert_close(by_graph(F.softplus, x), F.softplus(x), rtol=4e-6, atol=0, equal_nan=True)


def test_a_cross_entropy_is_torchs() -> None:
    """One graph has all targets, because each compilation takes seconds."""
    targets = torch.tensor([[0.0], [0.3], [1.0]])

    def cross_entropies(x: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(x.expand(3, -1), targets.to(x).expand(3, len(x)), reduction="none")

    x = torch.cat([torch.linspace(-80, 80, 100_001), EXTREMES])
    found = by_graph(cross_entropies, x)
    ordinary, extreme = found.split([100_001, len(EXTREMES)], -1)
    torch.testing.assert_close(extreme, cross_entropies(EXTREMES), equal_nan=True)
    exact = cross_entropies(x.double())[:, :100_001]
    rounding = EPSILON * (1 + x[:100_001].abs())
    assert ((ordinary - exact).abs() <= rounding).all(), "a sum of x and another term is rounded by so much"


def test_gradients_are_torchs() -> None:
    x = torch.linspace(-30, 30, 1001, requires_grad=True)

    def gradient(x: Tensor) -> Tensor:
        return torch.autograd.grad((F.softplus(x) + cross_entropy(x, 0.3)).sum(), x)[0]

    torch.testing.assert_close(by_graph(gradient, x), gradient(x))


@pytest.mark.parametrize("function", [F.softplus, lambda x: cross_entropy(x, 0.3)])
def test_a_graph_of_float32_calls_neither(function: Callable[[Tensor], Tensor]) -> None:
    aten = torch.ops.aten
    theirs = {aten.softplus.default, aten.binary_cross_entropy_with_logits.default}
    assert not operations(function, torch.randn(3)) & theirs
    assert operations(function, torch.randn(3).double()) & theirs


def test_inductor_sums_up_a_density_and_keeps_nothing_else() -> None:
    from torch._inductor.utils import run_and_get_code  # takes seconds to import

    x = torch.randn(100, 64)
    graph = Graph(lambda: [cross_entropy(x, 0.3).sum(-1)], [], [x])
    (found, *_), (code,) = run_and_get_code(lambda: graph.compile()(x))
    torch.testing.assert_close(found, cross_entropy(x, 0.3).sum(-1))
    assert code.count("empty_strided_cpu((") == 1, "an exponential is kept in memory"


def test_variants_stay_torchs() -> None:
    """One graph has all variants, because each compilation takes seconds."""

    def variants(x: Tensor) -> Tensor:
        found = [
            F.softplus(x, beta=2),
            F.softplus(x, threshold=1),
            cross_entropy(x, 0.3, weight=torch.tensor(2.0)),
            cross_entropy(x, 0.3, pos_weight=torch.tensor(2.0)),
            F.binary_cross_entropy_with_logits(x, torch.ones_like(x)).expand(len(x)),
        ]
        return torch.stack(found)

    x = torch.linspace(-3, 3, 101)
    torch.testing.assert_close(by_graph(variants, x), variants(x))
