"""The order of random operations in compiled graphs, for versions of torch that do not keep it.

Before torch 2.15, inductor orders the kernels of a graph by the tensors that they read. Two random operations read
nothing from each other, so inductor may exchange them, and each then gets the other's random numbers. A compiled run
would then differ from an eager run with the same seed. :func:`chain` therefore lets a random operation read a result
of the previous random operation.
"""

import operator

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

_KEEPS_ORDER = torch.__version__ >= "2.15"
_aten = torch.ops.aten
_FILLS = {_aten.randn.default: _aten.normal_.default, _aten.rand.default: _aten.uniform_.default}


@torch.library.custom_op("pyrovae::after", mutates_args=())
def after(value: Tensor, earlier: Tensor) -> Tensor:  # noqa: ARG001 - the compiler computes it first
    """Return a copy of ``value``. A compiled graph computes this copy only after the tensor ``earlier``."""
    return value.clone()


@after.register_fake
def _(value: Tensor, earlier: Tensor) -> Tensor:  # noqa: ARG001 - as above
    return torch.empty_like(value)


_AFTER = torch.ops.pyrovae.after.default


def draws(node: fx.Node) -> bool:
    """Return whether an operation draws random numbers."""
    return isinstance(node.target, OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags


def chain(graph: fx.Graph) -> None:
    """Let each random operation of a graph read a result of the random operation before it, to fix their order.

    If this version of torch keeps the order of random operations, the graph is not changed. ``randn`` and ``rand`` take
    no tensor, and are replaced by operations that fill a tensor. Other random operations that take no tensor stay as
    they are.
    """
    if _KEEPS_ORDER:
        return
    previous: fx.Node | None = None
    for node in list(graph.nodes):
        if not draws(node):
            continue
        if previous is not None:
            node = _after(graph, node, previous)
        previous = _first(graph, node)


def _after(graph: fx.Graph, node: fx.Node, previous: fx.Node) -> fx.Node:
    """Let a random operation read ``previous``, a result of the random operation before it.

    Returns:
        The node of the operation. For ``randn`` and ``rand``, it is a new node, which replaces ``node``. For any other
        operation, it is ``node`` itself, which is not changed if the operation takes no tensor.
    """
    assert isinstance(node.target, OpOverload)
    with graph.inserting_before(node):
        if node.target in _FILLS:
            empty = graph.call_function(_aten.empty.memory_format, node.args, dict(node.kwargs))
            filled = graph.call_function(_FILLS[node.target], (graph.call_function(_AFTER, (empty, previous)),))
            node.replace_all_uses_with(filled)
            graph.erase_node(node)
            return filled
        schema = node.target._schema
        tensors = [isinstance(each.type, torch.TensorType) for each in schema.arguments[: len(node.args)]]
        if True in tensors:
            place = tensors.index(True)
            given = node.args[place]
            ordered = graph.call_function(_AFTER, (given, previous))
            if schema.is_mutable:  # the operation must fill the tensor itself, which may be a view or a buffer
                ordered = graph.call_function(_aten.copy_.default, (given, ordered))
            node.update_arg(place, ordered)
    return node


def _first(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """Return the result of an operation, or the first of its results."""
    assert isinstance(node.target, OpOverload)
    if len(node.target._schema.returns) == 1:
        return node
    with graph.inserting_after(node):
        return graph.call_function(operator.getitem, (node, 0))
