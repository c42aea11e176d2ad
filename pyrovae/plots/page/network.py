"""Record a function of one tensor as a list of steps that the browser can run.

The function runs once under torch's tracer, as in :mod:`pyrovae._compilation.graphs`. Each recorded operation becomes
one or more steps, or none if it leaves the flat array unchanged. The recording fixes all shapes, so the steps work on
flat arrays. Each step is run by one of five kernels in JavaScript:

- ``gather``: operations that move numbers without computing (views, transposes, slices, padding, upsampling by
  repetition). The operation is run on positions instead of numbers, which shows the source of each entry.
- ``map``: a function of one number, or of several numbers at the same position.
- ``reduce``: sums and maxima over the last dimension.
- ``matmul``: products of matrices.
- ``convolution``: 2-d convolutions of one image, including transposed convolutions.

Values that do not depend on the input are computed during the recording and become constants.
"""

import base64
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch._decomp import core_aten_decompositions, get_decompositions
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

FUNCTIONS = {
    "abs": "Math.abs(a)",
    "acos": "Math.acos(a)",
    "add": "a + b",
    "asin": "Math.asin(a)",
    "atan": "Math.atan(a)",
    "bitwise_and": "a & b",
    "bitwise_not": "a ? 0 : 1",
    "bitwise_or": "a | b",
    "ceil": "Math.ceil(a)",
    "cos": "Math.cos(a)",
    "cosh": "Math.cosh(a)",
    "div": "a / b",
    "eq": "a === b ? 1 : 0",
    "erf": "erf(a)",
    "exp": "Math.exp(a)",
    "expm1": "Math.expm1(a)",
    "floor": "Math.floor(a)",
    "ge": "a >= b ? 1 : 0",
    "gt": "a > b ? 1 : 0",
    "le": "a <= b ? 1 : 0",
    "log": "Math.log(a)",
    "log1p": "Math.log1p(a)",
    "logical_and": "a && b ? 1 : 0",
    "logical_not": "a ? 0 : 1",
    "logical_or": "a || b ? 1 : 0",
    "lt": "a < b ? 1 : 0",
    "maximum": "Math.max(a, b)",
    "minimum": "Math.min(a, b)",
    "mul": "a * b",
    "ne": "a !== b ? 1 : 0",
    "neg": "-a",
    "pow": "Math.pow(a, b)",
    "reciprocal": "1 / a",
    "relu": "Math.max(a, 0)",
    "rsqrt": "1 / Math.sqrt(a)",
    "sigmoid": "1 / (1 + Math.exp(-a))",
    "sign": "Math.sign(a)",
    "sin": "Math.sin(a)",
    "sinh": "Math.sinh(a)",
    "sqrt": "Math.sqrt(a)",
    "sub": "a - b",
    "tanh": "Math.tanh(a)",
    "where": "a ? b : c",
}
"""JavaScript of the functions of numbers a, b and c, by name of torch's operation."""

_MOVES = {
    "_unsafe_view", "alias", "broadcast_in_dim", "cat", "clone", "copy", "detach", "expand", "flip", "index",
    "index_select", "lift_fresh", "permute", "repeat", "roll", "select", "select_scatter", "slice", "slice_scatter",
    "split", "split_with_sizes", "squeeze", "stack", "t", "transpose", "unbind", "unsqueeze", "upsample_nearest2d",
    "view",
}  # fmt: skip
_SHAPED = {"empty_like", "full_like", "ones_like", "zeros_like"}  # these use only the shape of their argument
_REDUCTIONS = {"amax": "max", "mean": "sum", "sum": "sum"}
_aten = torch.ops.aten
_NOT_CORE = [
    _aten._log_softmax, _aten._softmax, _aten.celu, _aten.elu, _aten.gelu, _aten.hardswish, _aten.hardtanh,
    _aten.index_put, _aten.leaky_relu, _aten.native_batch_norm, _aten.native_group_norm, _aten.native_layer_norm,
    _aten.upsample_bilinear2d, _aten.var_mean,
]  # fmt: skip


@dataclass
class Network:
    """A recorded function: its steps, and the arrays that the steps use.

    Attributes:
        steps: For each step, its kernel, the places of its inputs, and the kernel's own arguments. A place is the index
            of a value: place 0 is the function's input, places 1, 2, ... are the results of the steps, and places -1,
            -2, ... are the constants.
        output: Place of the function's result.
        constants: Arrays of numbers.
        tables: Arrays of positions, to which ``gather`` steps refer by index.
    """

    steps: list[dict[str, Any]] = field(default_factory=list)
    output: int = 0
    constants: list[Tensor] = field(default_factory=list)
    tables: list[Tensor] = field(default_factory=list)

    def written(self) -> dict[str, Any]:
        """Return the network in a form for JSON; arrays become base64 of their little-endian float32 or int32 bytes."""
        return {
            "steps": self.steps,
            "output": self.output,
            "constants": [_base64(constant, "<f4") for constant in self.constants],
            "tables": [_base64(table, "<i4") for table in self.tables],
        }


def write_down(function: Callable[[Tensor], Tensor], example: Tensor) -> Network:
    """Record a function of a tensor as a network. The input of the network has the shape of ``example``.

    Raises:
        ValueError: If the function contains a random operation, or an operation that no JavaScript kernel can run.
    """
    decompositions: Any = core_aten_decompositions()
    decompositions.update(get_decompositions(_NOT_CORE))
    pure = make_fx(torch.func.functionalize(function))(example)  # without operations in place
    writer = _Writer(make_fx(pure, decompositions)(example))
    result = writer.run(example)
    writer.network.output = writer.place(result)
    return writer.network


@dataclass(frozen=True)
class _Value:
    """A value that depends on the function's input: its place in the network, and its tensor for the example input."""

    place: int
    example: Tensor


class _Writer(fx.Interpreter):
    """Interpreter that runs a graph on the example input, and records operations on values that depend on the input."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.network, self.extra_traceback = Network(), False

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Return the function's input as a :class:`_Value`. Steps refer to it by the index 0; see :class:`Network`."""
        return _Value(0, super().placeholder(target, args, kwargs))

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation. If an argument depends on the graph's input, also record the operation in the network."""
        name = str(getattr(target, "overloadpacket", target)).split(".")[-1]
        if torch.Tag.nondeterministic_seeded in getattr(target, "tags", ()):
            raise ValueError(
                f"explorer: the page cannot draw random numbers, but the mean of the likelihood does, in the operation "
                f"{name}"
            )
        if target is operator.getitem:
            return args[0][args[1]]
        if not any(isinstance(leaf, _Value) for leaf in tree_leaves((args, kwargs))):
            return super().call_function(target, args, kwargs)
        examples = tree_map(_example, (args, kwargs))
        value = target(*examples[0], **examples[1])
        if name in _SHAPED:
            return value
        if name in _MOVES:
            return self.moved(target, args, kwargs, value)
        if name in FUNCTIONS and not kwargs:
            return self.mapped(name, args, value)
        if name in _REDUCTIONS and "dtype" not in kwargs:
            return self.reduced(name, value, *args)
        write = getattr(self, f"write_{name}", None)
        if write is None:
            raise ValueError(
                f"explorer: the page has no kernel for {target}, an operation that computes the likelihood's mean. It "
                f"has kernels for dense layers, 2-d convolutions, sums, and element-wise functions."
            )
        return write(value, *args, **kwargs)

    def place(self, value: Any, shape: Sequence[int] | None = None) -> int:
        """Return the place of a value, the index by which steps refer to it (see :class:`Network`).

        A tensor or number that does not depend on the function's input is first added to the constants. If ``shape`` is
        given, a value with several entries is expanded to this shape.
        """
        example = _example(value)
        if isinstance(example, Tensor) and shape is not None and example.numel() > 1 and example.shape != shape:
            value = self.moved(torch.broadcast_to, (value, shape), {}, example.expand(shape))
        if isinstance(value, _Value):
            return value.place
        self.network.constants.append(torch.as_tensor(value).detach())
        return -len(self.network.constants)

    def step(self, value: Tensor, kernel: str, inputs: Sequence[int], **arguments: Any) -> _Value:
        """Add a step to the network, and return the step's result."""
        self.network.steps.append({"kernel": kernel, "inputs": list(inputs), **arguments})
        return _Value(len(self.network.steps), value)

    def moved(self, target: Any, args: Any, kwargs: Any, value: Any) -> Any:
        """Record an operation that only moves entries of its arguments.

        The operation is run on tensors that hold the index of each entry. Its result shows where each entry comes from,
        and becomes the table of a ``gather`` step.
        """
        leaves, structure = tree_flatten((args, kwargs))
        sources, size = [], 0
        for i, leaf in enumerate(leaves):
            example = _example(leaf)
            if isinstance(leaf, _Value) or (isinstance(leaf, Tensor) and leaf.is_floating_point()):
                leaves[i] = torch.arange(size, size + example.numel(), dtype=torch.float64).reshape(example.shape)
                size += example.numel()
                sources.append(leaf)
        args, kwargs = tree_unflatten(leaves, structure)
        tables = target(*args, **kwargs)
        if isinstance(tables, Tensor):
            return self.gathered(tables, sources, value)
        return [self.gathered(table, sources, part) for table, part in zip(tables, value, strict=True)]

    def gathered(self, table: Tensor, sources: Sequence[Any], value: Tensor) -> _Value | Tensor:
        """Record a ``gather`` step, which selects entries of ``sources``, and return the step's result.

        ``table`` holds the position of each selected entry in the joined sources. If no source depends on the input of
        the recorded function, no step is recorded, and ``value`` is returned. A step that would keep all entries of a
        single source in their order is not recorded either.
        """
        if not any(isinstance(source, _Value) for source in sources):
            return value
        inputs, table = [self.place(source) for source in sources], table.flatten().int()
        if len(inputs) == 1 and torch.equal(table, torch.arange(_example(sources[0]).numel(), dtype=torch.int32)):
            return _Value(inputs[0], value)
        self.network.tables.append(table)
        return self.step(value, "gather", inputs, table=len(self.network.tables) - 1)

    def mapped(self, name: str, operands: Sequence[Any], value: Tensor) -> _Value:
        """Record an element-wise function of one or several values."""
        inputs = [self.place(operand, value.shape) for operand in operands]
        return self.step(value, "map", inputs, function=name, size=value.numel())

    def reduced(self, name: str, value: Tensor, x: _Value, dims: Sequence[int] = (), *_: Any) -> _Value:
        """Record a sum, mean or maximum over some dimensions, which are first moved to the end."""
        ndim = x.example.ndim
        last = [dim % ndim for dim in dims] or list(range(ndim))
        order = [dim for dim in range(ndim) if dim not in last] + last
        x = self.moved(torch.permute, (x, order), {}, x.example.permute(order))
        length = x.example.numel() // value.numel()
        result = self.step(value, "reduce", [x.place], function=_REDUCTIONS[name], length=length)
        return self.mapped("div", (result, length), value) if name == "mean" else result

    def write_mm(self, value: Tensor, a: Any, b: Any) -> _Value:
        """Record a matrix product."""
        return self.write_bmm(value, a, b)

    def write_bmm(self, value: Tensor, a: Any, b: Any) -> _Value:
        """Record a batch of matrix products."""
        *_, rows, inner = _example(a).shape
        columns = _example(b).shape[-1]
        return self.step(
            value, "matmul", [self.place(a), self.place(b)], rows=rows, inner=inner, columns=columns, size=value.numel()
        )

    def write_addmm(self, value: Tensor, bias: Any, a: Any, b: Any) -> _Value:
        """Record a matrix product and the addition of a bias."""
        return self.mapped("add", (self.write_mm(value, a, b), bias), value)

    def write_var(self, value: Tensor, x: _Value, dims: Sequence[int], correction: float = 1.0) -> _Value:
        """Record a variance over some dimensions."""
        mean = self.reduced("mean", x.example.mean(list(dims), keepdim=True), x, dims)
        deviation = self.mapped("sub", (x, mean), x.example)
        squares = self.mapped("mul", (deviation, deviation), x.example)
        count = x.example.numel() // value.numel() - correction
        return self.mapped("div", (self.reduced("sum", value, squares, dims), count), value)

    def write_clamp(self, value: Tensor, x: _Value, least: Any = None, most: Any = None) -> _Value:
        """Record a clamp as a maximum with the lower bound and a minimum with the upper bound; a bound may be None."""
        for name, bound in (("maximum", least), ("minimum", most)):
            if bound is not None:
                x = self.mapped(name, (x, bound), value)
        return x

    def write_as_strided(self, value: Tensor, x: _Value, *args: Any) -> Any:
        """Record a strided view of a contiguous value."""
        if not x.example.is_contiguous() or x.example.storage_offset():
            raise ValueError(
                "explorer: the mean of the likelihood uses torch.as_strided on a tensor that is not contiguous or "
                "has a storage offset. The page does not support this. Use indexing, reshape or permute instead"
            )
        return self.moved(_aten.as_strided.default, (x, *args), {}, value)

    def write_constant_pad_nd(self, value: Tensor, x: _Value, pad: Sequence[int], fill: float = 0.0) -> _Value | Tensor:
        """Record a padding with a constant: a ``gather`` step with the constant as a second source."""
        positions = torch.arange(x.example.numel(), dtype=torch.float64).reshape(x.example.shape)
        table = _aten.constant_pad_nd(positions, pad, float(x.example.numel()))
        return self.gathered(table, [x, float(fill)], value)

    def write_convolution(self, value: Tensor, x: Any, weight: Any, bias: Any, *settings: Any) -> _Value:
        """Record a 2-d convolution of one image, which may be a transposed convolution."""
        stride, padding, dilation, transposed, _, groups = settings
        if value.ndim != 4 or len(value) != 1:
            raise ValueError(
                f"explorer: the page supports only 2-d convolutions of one image, but a convolution of the likelihood "
                f"has an output of shape {tuple(value.shape)}"
            )
        shapes = [list(part.shape[1:]) for part in (_example(x), value)]
        small, large = shapes if transposed else reversed(shapes)
        result = self.step(
            value,
            "convolution",
            [self.place(x), self.place(weight)],
            small=small,
            large=large,
            window=list(_example(weight).shape[2:]),
            stride=list(stride),
            padding=list(padding),
            dilation=list(dilation),
            groups=groups,
            transposed=transposed,
        )
        return result if bias is None else self.mapped("add", (result, bias.reshape(-1, 1, 1)), value)

    def write__to_copy(self, value: Tensor, x: _Value, **_: Any) -> _Value:
        """Return ``x`` with the dtype of ``value``. A conversion between dtypes adds no step to the network.

        Raises:
            ValueError: If floating-point numbers are converted to integers or to bool.
        """
        if x.example.is_floating_point() and not value.is_floating_point():
            raise ValueError(
                "explorer: the mean of the likelihood converts floating-point numbers to integers or bool, which the "
                "page does not support. Return floating-point numbers instead."
            )
        return _Value(x.place, value)


def _example(value: Any) -> Any:
    return value.example if isinstance(value, _Value) else value


def _base64(tensor: Tensor, kind: str) -> str:
    return base64.b64encode(tensor.cpu().numpy().astype(kind).tobytes()).decode()
