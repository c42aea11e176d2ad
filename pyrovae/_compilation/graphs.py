"""Graphs of tensor operations: a function is run once, its operations are recorded, and the graph is compiled.

The function reads tensors and may run Pyro programs. Pyro's handlers work in Python at every step. Most of their work
is needed only once, because the sites, their plates and the summation of log-probabilities do not change between steps.
The function is therefore run once under torch's tracer, which records all of its operations on tensors, including those
of a backward pass. Inductor then fuses the operations between matrix products and plans the memory.

A graph repeats the operations of that single run. Random operations draw new numbers from torch's generators in the
same order, so runs with and without a graph make the same draws. If a tensor existed before the run, the graph keeps
its address and not its value, so later changes of the value take effect. A graph does not run Python code again:
numbers, shapes and the branch of each ``if`` stay those of the recorded run. A decision that depends on the value of a
tensor cannot be recorded.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import DynamicOutputShapeException
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.graph import CodeGen
from torch.utils._pytree import tree_leaves

from pyrovae._compilation import onednn, softplus
from pyrovae._compilation.cache import caching
from pyrovae._compilation.cuda_graphs import Replay
from pyrovae._compilation.instructions import compile_graph
from pyrovae._compilation.random_order import chain, draws
from pyrovae._compilation.tracing import UntraceableError, unchanged, without_values
from pyrovae._warnings import find_stack_level
from pyrovae.isolation import seeded

MAX_OPERATIONS = 5000  # larger graphs come from unrolled loops, for which inductor takes minutes
_PRODUCTS = {
    torch.ops.pyrovae.linear.default,
    *(getattr(torch.ops.aten, name).default for name in ("mm", "addmm", "bmm", "baddbmm", "convolution")),
}
_REORDERING = "reorder_for_locality", "reorder_for_peak_memory"


class Graph:
    """A graph of the operations that a function makes on tensors, recorded by running the function once.

    Args:
        function: Function that reads existing tensors and returns tensors.
        fixed: Tensors that the function reads at fixed addresses, such as parameters and buffers. Their values
            may change.
        varying: Tensors that are replaced by other tensors at every call.
        modules: Modules that the function runs; their buffers are restored after the run.

    Attributes:
        module: Graph module that takes the values of ``fixed``, ``varying`` and ``found``, and returns a list.
        found: Further tensors that the graph reads, among them the results of :meth:`fold`.
        text: The operations, and the numbers that Python code computed, as text. If the function is recorded again, a
            different text shows that such a number or a branch has changed.
        is_replayed: True if the compiled function replays a CUDA graph, which returns the same tensors at each call.

    Raises:
        UntraceableError: If the function makes a decision that depends on the value of a tensor, changes a state other
            than the values of buffers, or makes too many operations.
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
                # The tracer recognizes tensors by identity, so the tensors that the function reads are not arguments.
                trace = make_fx(lambda _: list(function()), _REPLACEMENTS)
                self.module = trace([*self.fixed, *self.varying])
        except (RuntimeError, ValueError) as error:  # components convert RuntimeErrors to ValueErrors
            if "get value out of a tracing tensor" in str(error):
                raise UntraceableError("a decision in Python depends on the value of a tensor") from error
            if "argument of type: <class 'torch._C.Generator'>" in str(error):  # torch 2.11
                raise UntraceableError("the programs hold a Generator, but a graph takes only tensors") from error
            raise
        self.found = _lift(self.module)
        self.text = _text(self.module)
        self.is_replayed = False
        operations = len(self.module.graph.nodes)
        if operations > MAX_OPERATIONS:
            raise UntraceableError(
                f"the graph has {operations} operations, perhaps from an unrolled loop, but the limit is "
                f"{MAX_OPERATIONS}"
            )

    def compile(self) -> Callable[..., Sequence[Tensor]]:
        """Return the compiled ``function``, which takes one tensor for each tensor in ``varying``."""
        import torch._inductor as inductor  # the import takes a second, and only compilation needs it

        softplus.teach_inductor()
        self.is_replayed = self._is_of_cuda()
        chain(self.module.graph)
        self.module.recompile()
        fixed, varying, found = ([x.detach() for x in group] for group in (self.fixed, self.varying, self.found))
        # Before torch 2.15, these two passes of inductor changed the order of random draws.
        options = {} if torch.__version__ >= "2.15" else dict.fromkeys(_REORDERING, False)
        if not varying[0].is_cuda:
            # On a CPU, inductor would store all images with the channels last. Kernels are then vectorized along three
            # or six channels, and transpose all other inputs. A step of a colour VAE took 1.9 times as long.
            options["layout_optimization"] = False
        values = [*fixed, *varying, *found]
        with torch.no_grad(), warnings.catch_warnings(), inductor.config.patch(options), caching(values):
            # Inductor of torch 2.15 calls the first deprecated function, and inductor of torch 2.11 the second.
            warnings.filterwarnings("ignore", "`torch._prims_common.check` is deprecated", FutureWarning)
            warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)
            # These warnings concern choices of torch's users (here the argument ``precision``) or of its authors.
            warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning)
            warnings.filterwarnings("ignore", r"\s*Online softmax is disabled", UserWarning)
            try:
                compiled = compile_graph(self.module, values, {"fallback_random": True})
            except DynamicOutputShapeException as error:
                operation = str(error).split("\n")[0]
                raise UntraceableError(
                    f"the shape of the result of {operation} depends on the values of a tensor"
                ) from error

        def run(*tensors: Tensor) -> Sequence[Tensor]:
            with torch.no_grad():
                return compiled(*fixed, *tensors, *found)

        return Replay(run, varying, self.modules) if self.is_replayed else run

    def _is_of_cuda(self) -> bool:
        """Return whether all tensors that the graph reads, and all random numbers that it draws, are on a CUDA device.

        A CUDA graph would keep the values that tensors on the CPU had when it was captured.
        """
        if not self.varying[0].is_cuda:
            return False
        nodes, given = self.module.graph.nodes, [*self.fixed, *self.varying, *self.found]
        inputs = zip(self.module.graph.find_nodes(op="placeholder"), given, strict=True)
        read = [tensor for node, tensor in inputs if node.users]
        drawn = [leaf for node in nodes if draws(node) for leaf in tree_leaves(node.meta["val"])]
        return all(tensor.is_cuda for tensor in (*read, *drawn))

    def fold(self) -> None:
        """Compute each matrix product that depends only on parameters once, and use the result in all calls.

        For example, the pseudo-inputs of a VampPrior are then encoded once, and not at every call. Cheap operations on
        the products stay in the graph, because they may expand the products to the shape of all draws. A product that
        depends on another tensor, such as a buffer, is computed at every call, because the values of the tensor may
        change between calls.
        """
        graph, settled = self.module.graph, fx.Graph()
        if any(_writes(node) for node in graph.nodes):
            return  # the values that are read before and after a write differ
        inputs = graph.find_nodes(op="placeholder")
        given = [*self.fixed, *self.varying, *self.found]
        copies = {node: settled.node_copy(node) for node in inputs}
        known = {
            node: copies[node] for node, tensor in zip(inputs, given, strict=True) if isinstance(tensor, nn.Parameter)
        }
        for node in graph.nodes:
            sources = {*node.all_input_nodes}
            if node.op == "call_function" and sources and known.keys() >= sources and not draws(node):
                known[node] = settled.node_copy(node, known.__getitem__)
        products = [node for node in known if node.target in _PRODUCTS]
        settled.output([known[node] for node in products])
        settled.eliminate_dead_code()
        with torch.no_grad(), torch.autocast(given[0].device.type, enabled=False):  # the graph contains the casts
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
    tell: Callable[[str], None] | None = None,
) -> "Compiled | None":
    """Return the compiled ``function``. If it cannot be compiled, issue a message and return None.

    Args:
        function: See :class:`Graph`.
        fixed: See :class:`Graph`.
        varying: See :class:`Graph`.
        modules: See :class:`Graph`.
        caller: First word of the message, such as ``"evaluation"``.
        frozen: If true, matrix products that depend only on parameters are computed once, so the parameters must not
            change afterwards.
        tell: Function that is called with the message; by default :func:`warn_caller`.
    """
    try:
        graph = Graph(function, fixed, varying, modules)
        if frozen:
            graph.fold()
        return Compiled(graph.compile(), graph.text, graph.is_replayed)
    except Exception as error:  # an error of the function itself is raised again when the function runs
        reason = " ".join(str(error).split("\n")[0].split()) or type(error).__name__
        (tell or warn_caller)(f"{caller} continues without compilation: {reason}")
        return None


def warn_caller(message: str) -> None:
    """Issue a warning that names the line of the user's code that called pyrovae."""
    warnings.warn(message, stacklevel=find_stack_level())


@dataclass(frozen=True)
class Compiled:
    """A compiled function, the text of its graph, and whether it replays a CUDA graph; see :class:`Graph`."""

    run: Callable[..., Sequence[Tensor]]
    text: str
    is_replayed: bool

    def __call__(self, *tensors: Tensor) -> Sequence[Tensor]:
        """Return the results of the function for ``tensors``, which replace the varying tensors of :class:`Graph`."""
        return self.run(*tensors)

    def launch(self, *tensors: Tensor) -> Sequence[Tensor]:
        """Return the results of the function by launching its kernels, without replaying its CUDA graph.

        A larger CUDA graph, which is recorded around the call, can then contain these kernels.
        """
        run = self.run.run if isinstance(self.run, Replay) else self.run
        return run(*tensors)


def _text(module: fx.GraphModule) -> str:
    """Return the code of a graph and the values of its literals, such as ``torch.tensor(0.5)``, as one text."""
    literals = [getattr(module, str(node.target)) for node in module.graph.find_nodes(op="get_attr")]
    return f"{module.code}{[each.tolist() for each in literals]}"


def _writes(node: fx.Node) -> bool:
    """Return whether an operation writes into one of its arguments."""
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def _bernoulli(p: Tensor, *, generator: Any = None) -> Tensor:
    """Make Bernoulli draws as torch does. Inductor's own code would make other draws for the same seed."""
    return torch.empty_like(p).bernoulli_(p, generator=generator)


def _lift(module: fx.GraphModule) -> list[Tensor]:
    """Turn the tensors that a graph holds as attributes, except for literals, into inputs, and return these tensors."""
    graph, found = module.graph, []
    graph.set_codegen(CodeGen())  # inputs and outputs are separate values instead of lists
    *_, last = (node for node in graph.nodes if node.op == "placeholder")
    for node in graph.find_nodes(op="get_attr"):
        literal = any(user.target is torch.ops.aten.lift_fresh_copy.default for user in node.users)
        if not literal:  # a literal, such as torch.tensor(0.5) in the function's code, is not an input
            if not isinstance(value := getattr(module, str(node.target)), Tensor):
                raise UntraceableError(f"the programs hold a {type(value).__name__}, but a graph takes only tensors")
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
