"""A function of tensors, Pyro programs within, run once, written down as a graph of operations, and compiled.

What Pyro's handlers do, they do in Python and at every step anew, and none of it is needed once the program has run:
which sites there are, in which plates, and how log-probabilities are added up stays as it was. So the function is run
once under torch's tracer, which notes every operation on tensors that it makes, those of a backward pass among them.
Inductor then fuses what lies between the matrix products and plans the memory.

A graph does what the function did in that one run. Random operations draw anew, from torch's generators and in the same
order, so that a run with and without a graph make the same draws. Tensors that were there before are read where they
are, and may change. What Python code decided, a number, a shape, the branch of an ``if``, is decided for good; a
decision by the value of a tensor cannot be written down.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import DynamicOutputShapeException
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.graph import CodeGen

from pyrovae._compilation import onednn, softplus
from pyrovae._compilation.cuda_graphs import replayed
from pyrovae._compilation.tracing import UntraceableError, unchanged, without_values
from pyrovae._warnings import find_stack_level
from pyrovae.isolation import seeded

MAX_OPERATIONS = 5000  # more than that is an unrolled loop, over which inductor sits for minutes
_PRODUCTS = {
    torch.ops.pyrovae.linear.default,
    *(getattr(torch.ops.aten, name).default for name in ("mm", "addmm", "bmm", "baddbmm", "convolution")),
}
_REORDERING = "reorder_for_locality", "reorder_for_peak_memory"


class Graph:
    """The operations of a function, in their order.

    Args:
        function: Reads tensors wherever they are and returns tensors.
        fixed: Tensors that it reads and that stay in their place, though their values may change: parameters, buffers.
        varying: Tensors in whose place others are given at every call.
        modules: Modules that it runs; their buffers are put back as they were.

    Attributes:
        module: Takes the values of ``fixed``, ``varying`` and ``found``, one after the other, and returns a list.
        found: Tensors that the function read beside those given.

    Raises:
        UntraceableError: If the function decides by the value of a tensor, keeps anything but the values of buffers
            from one run to the next, or makes too many operations.
    """

    def __init__(
        self,
        function: Callable[[], Sequence[Tensor]],
        fixed: Sequence[Tensor],
        varying: Sequence[Tensor],
        modules: Iterable[nn.Module] = (),
    ) -> None:
        self.fixed, self.varying, self.modules = list(fixed), list(varying), list(modules)
        try:
            with seeded(0), unchanged(self.modules), without_values():
                # The tracer knows tensors by identity, so the function need not be given those that it reads.
                trace = make_fx(lambda _: list(function()), _REPLACEMENTS)
                self.module = trace([*self.fixed, *self.varying])
        except (RuntimeError, ValueError) as error:  # a component's error is said to be one of values
            if "get value out of a tracing tensor" in str(error):
                raise UntraceableError("a decision is made by the value of a tensor") from error
            if "argument of type: <class 'torch._C.Generator'>" in str(error):  # torch 2.11
                raise UntraceableError("the programs hold a Generator of their own") from error
            raise
        self.found = _lift(self.module)
        operations = len(self.module.graph.nodes)
        if operations > MAX_OPERATIONS:
            raise UntraceableError(
                f"there are {operations} operations, of a loop unrolled, and {MAX_OPERATIONS} are the limit"
            )

    def compile(self) -> Callable[..., Sequence[Tensor]]:
        """Return the function compiled; it takes tensors in the place of the varying ones."""
        import torch._inductor as inductor  # takes a second, and only those who compile need it

        softplus.teach_inductor()
        fixed, varying, found = ([x.detach() for x in group] for group in (self.fixed, self.varying, self.found))
        # Before torch 2.15 inductor moved draws of noise past each other, by these two passes.
        in_order = {} if torch.__version__ >= "2.15" else dict.fromkeys(_REORDERING, False)
        with torch.no_grad(), warnings.catch_warnings(), inductor.config.patch(in_order):
            # Inductor of torch 2.15 calls the one itself, that of torch 2.11 the other.
            warnings.filterwarnings("ignore", "`torch._prims_common.check` is deprecated", FutureWarning)
            warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)
            # What is for users of torch to decide, here by the argument ``precision``, or for its authors.
            warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning)
            warnings.filterwarnings("ignore", r"\s*Online softmax is disabled", UserWarning)
            try:
                compiled = inductor.compile(self.module, [*fixed, *varying, *found], {"fallback_random": True})
            except DynamicOutputShapeException as error:
                raise UntraceableError(f"the shape of a result depends on values, in {error}") from error

        def run(*tensors: Tensor) -> Sequence[Tensor]:
            with torch.no_grad():
                return compiled(*fixed, *tensors, *found)

        return replayed(run, varying, self.modules) if varying[0].is_cuda else run

    def fold(self) -> None:
        """Make inputs of the matrix products into which only parameters go, with the values that they have now.

        So the pseudo-inputs of a VampPrior, say, are not encoded at every call. What is made of the products stays in
        the graph: it is cheap, and may be expanded to the shape of all draws. Buffers and tensors that the function
        found may be written to between calls, by a guide that the graph does not see, and are read anew.
        """
        graph, settled = self.module.graph, fx.Graph()
        if any(_writes(node) for node in graph.nodes):
            return  # what is read before is then not what is read after
        inputs = graph.find_nodes(op="placeholder")
        given = [*self.fixed, *self.varying, *self.found]
        copies = {node: settled.node_copy(node) for node in inputs}
        known = {
            node: copies[node] for node, tensor in zip(inputs, given, strict=True) if isinstance(tensor, nn.Parameter)
        }
        for node in graph.nodes:
            sources = {*node.all_input_nodes}
            if node.op == "call_function" and sources and known.keys() >= sources and not _draws(node):
                known[node] = settled.node_copy(node, known.__getitem__)
        products = [node for node in known if node.target in _PRODUCTS]
        settled.output([known[node] for node in products])
        settled.eliminate_dead_code()
        with torch.no_grad(), torch.autocast(given[0].device.type, enabled=False):  # that is in the graph already
            made = fx.GraphModule({}, settled)(*given)
        values = dict(zip(products, made, strict=True))

        last = inputs[-1]
        for node in reversed(known):
            if node in values and node.users:
                with graph.inserting_after(last):
                    last = graph.placeholder(node.name)
                last.meta = dict(node.meta)
                node.replace_all_uses_with(last)
                self.found.append(values[node])
            if node.op != "placeholder" and not node.users:
                graph.erase_node(node)
        self.module.recompile()


def compiled_or_none(
    function: Callable[[], Sequence[Tensor]],
    fixed: Sequence[Tensor],
    varying: Sequence[Tensor],
    modules: Iterable[nn.Module],
    *,
    caller: str,
    frozen: bool = False,
) -> Callable[..., Sequence[Tensor]] | None:
    """Return a function compiled, arguments as for :class:`Graph`; or None, after a warning that says why.

    With ``frozen`` parameters keep their values too, and matrix products of them alone are made once.
    """
    try:
        graph = Graph(function, fixed, varying, modules)
        if frozen:
            graph.fold()
        return graph.compile()
    except Exception as error:  # what is wrong with the function itself, running it will say
        reason = " ".join(str(error).split("\n")[0].split()) or type(error).__name__
        warnings.warn(f"{caller} goes on without compilation: {reason}", stacklevel=find_stack_level())
        return None


def _draws(node: fx.Node) -> bool:
    """Return whether an operation draws random numbers."""
    return isinstance(node.target, OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags


def _writes(node: fx.Node) -> bool:
    """Return whether an operation writes into a tensor that was there before."""
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def _bernoulli(p: Tensor, *, generator: Any = None) -> Tensor:
    """Draw as torch does; inductor's own decomposition takes other uniform numbers for them."""
    return torch.empty_like(p).bernoulli_(p, generator=generator)


def _lift(module: fx.GraphModule) -> list[Tensor]:
    """Make inputs of the tensors that the function found elsewhere: as constants, they would not be read again."""
    graph, found = module.graph, []
    graph.set_codegen(CodeGen())  # inputs and outputs one by one, not as lists
    *_, last = (node for node in graph.nodes if node.op == "placeholder")
    for node in graph.find_nodes(op="get_attr"):
        literal = any(user.target is torch.ops.aten.lift_fresh_copy.default for user in node.users)
        if not literal:  # torch.tensor(0.5) in the function's own code is no input
            if not isinstance(value := getattr(module, str(node.target)), Tensor):
                raise UntraceableError(f"the programs hold a {type(value).__name__} of their own")
            found.append(value)
            with graph.inserting_after(last):
                last = graph.placeholder(node.name)
            last.meta = dict(node.meta)
            node.replace_all_uses_with(last)
            graph.erase_node(node)
    module.recompile()
    return found


_REPLACEMENTS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.bernoulli.default: _bernoulli,
    torch.ops.aten.mm.default: onednn.multiply,
    torch.ops.aten.addmm.default: onednn.multiply_and_add,
    torch.ops.aten.softplus.default: softplus.softplus,
    torch.ops.aten.binary_cross_entropy_with_logits.default: softplus.cross_entropy,
}
