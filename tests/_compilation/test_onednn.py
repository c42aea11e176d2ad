"""Compiled graphs compute large products by oneDNN, with the same results up to rounding."""

import pytest
import torch
from torch import Tensor, nn

from pyrovae._compilation import onednn
from pyrovae._compilation.graphs import Graph

pytestmark = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="torch multiplies without MKL here")


def large() -> tuple[Tensor, nn.Linear]:
    return torch.randn(1024, 512), nn.Linear(512, 513)


def gradients(x: Tensor, layer: nn.Linear) -> list[Tensor]:
    loss = layer(x).tanh().square().mean()
    return [loss, *torch.autograd.grad(loss, [x, *layer.parameters()])]


def number_of_products(graph: Graph) -> int:
    return len(graph.module.graph.find_nodes(op="call_function", target=torch.ops.pyrovae.linear.default))


def test_the_operation_agrees_with_torch_up_to_rounding() -> None:
    x, layer = large()
    for bias in (layer.bias.detach(), None):
        found = onednn.linear(x, layer.weight.detach(), bias)
        exact = nn.functional.linear(x.double(), layer.weight.double(), None if bias is None else bias.double())
        torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
    torch.library.opcheck(onednn.linear, (x, layer.weight.detach(), layer.bias.detach()))


def test_a_graph_computes_large_products_by_onednn() -> None:
    """One graph has layers of three widths, because each compilation takes seconds."""
    x, layers = torch.randn(1024, 512, requires_grad=True), [nn.Linear(512, width) for width in (513, 520, 1024)]

    def all_gradients() -> list[Tensor]:
        return [value for layer in layers for value in gradients(x, layer)]

    graph = Graph(all_gradients, [parameter for layer in layers for parameter in layer.parameters()], [x])
    assert number_of_products(graph) == 9, "of each layer: its value, and the gradients of its input and its weight"
    values = graph.compile()(x.detach())
    torch.testing.assert_close([*values], all_gradients(), rtol=1e-4, atol=1e-7)
    assert all(value.is_contiguous() for value in values), "torch's fused optimizers take a gradient as it lies"


@pytest.mark.parametrize("change", [lambda x: x[:100], lambda x: x.double(), lambda x: x.bfloat16()])
def test_other_products_are_torchs(change: object) -> None:
    x, layer = large()
    x = change(x)  # type: ignore[operator]
    layer.to(x.dtype)
    assert number_of_products(Graph(lambda: [layer(x)], [*layer.parameters()], [x])) == 0
