"""Noise of a batch that is sliced among processes: each draws the noise of the whole batch and keeps its slice.

The data get the noise that one process would have given them, and the generators of all processes stay in step. This
needs an operation whose draws have one shape and distribution each, as normal, uniform, exponential and Bernoulli draws
have, and a dimension of the data: at a sample site the dimension of its plate, elsewhere (dropout) the first one that
is as long as the slice. Sites outside the plate get the same draws in all processes. Each process makes all other draws
by itself (gamma and Dirichlet draws, which reject some; categorical draws; permutations), from a seed of its own that
follows from the common generator.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from pyrovae.isolation import seeded
from pyrovae.parallel import rank

_aten = torch.ops.aten
_ELEMENTWISE = {
    _aten.normal,
    _aten.normal_,
    _aten.randn,
    _aten.randn_like,
    _aten.rand,
    _aten.rand_like,
    _aten.uniform_,
    _aten.exponential_,
    _aten.cauchy_,
    _aten.log_normal_,
    _aten.bernoulli,
    _aten.bernoulli_,
    _aten.native_dropout,
}


@dataclass(frozen=True)
class Slice:
    """The contiguous data of a batch that belong to a process.

    Attributes:
        start: Index of the first.
        kept: How many.
        whole: Size of the batch.
    """

    start: int
    kept: int
    whole: int


class Noise:
    """The draws of a slice; see the module.

    Attributes:
        slice: The slice that draws are made for.
        site: Where the data are in the draws of the site that is being drawn, counted from the right; None elsewhere.
        is_common: Whether that site lies outside the data plate.
    """

    def __init__(self) -> None:
        self.slice = Slice(0, 1, 1)
        self.site: int | None = None
        self.is_common = False

    @contextmanager
    def of(self, piece: Slice) -> Iterator[None]:
        """Draw for a slice, within the context."""
        self.slice = piece
        with _Drawing(self):
            yield

    @contextmanager
    def again(self) -> Iterator[None]:
        """Draw for the same slice in Python code that a backward pass runs, such as an activation checkpoint."""
        with _Python(self):
            yield

    def draw(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Makes the draws of an operation."""
        if self.is_common or kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        shape = next((getattr(arg, "shape", arg) for arg in args if isinstance(arg, Tensor | list | tuple)), ())
        axis = self._axis(shape) if func.overloadpacket in _ELEMENTWISE else None
        if axis is None:
            with seeded(int(torch.randint(2**62, ())) + rank()):
                return func(*args, **kwargs)
        whole = func(*(self._widened(arg, axis, len(shape)) for arg in args), **kwargs)
        drawn = tree_map_only(Tensor, lambda tensor: self._kept(tensor, axis), whole)
        return args[0].copy_(drawn) if func._schema.is_mutable else drawn

    def _axis(self, shape: Any) -> int | None:
        """The dimension of the data in a shape."""
        kept = self.slice.kept
        if self.site is not None:
            axis = len(shape) + self.site
            return axis if axis >= 0 and shape[axis] == kept else None
        return next((axis for axis, length in enumerate(shape) if length == kept), None)

    def _widened(self, arg: Any, axis: int, ndim: int) -> Any:
        """A shape, or parameters, of draws for the whole batch; outside of the slice any valid ones."""
        if isinstance(arg, list | tuple):
            return [*arg[:axis], self.slice.whole, *arg[axis + 1 :]]
        if not (isinstance(arg, Tensor) and arg.ndim == ndim and arg.shape[axis] == self.slice.kept):
            return arg
        indices = torch.arange(self.slice.whole, device=arg.device) - self.slice.start
        return arg.index_select(axis, indices.clamp(0, self.slice.kept - 1))

    def _kept(self, whole: Tensor, axis: int) -> Tensor:
        return whole.narrow(axis, self.slice.start, self.slice.kept).contiguous()


class SiteLocator(Messenger):
    """Tells the noise which dimension of a site's draws holds the data; next to the program, within all other handlers.

    Args:
        noise: Noise that is told.
        plate: Name of the data plate.
    """

    def __init__(self, noise: Noise, plate: str) -> None:
        super().__init__()
        self.noise, self.plate = noise, plate

    def _pyro_sample(self, msg: Any) -> None:
        if not site_is_subsample(msg):
            frames = msg["cond_indep_stack"]
            dims = [frame.dim for frame in frames if frame.name == self.plate and frame.vectorized]
            self.noise.is_common = not dims
            self.noise.site = dims[0] - msg["fn"].event_dim if dims else None

    def _pyro_post_sample(self, _: Any) -> None:
        self.noise.is_common, self.noise.site = False, None


class _Drawing(TorchDispatchMode):
    """Sees every operation of torch, and takes the random ones to the noise."""

    def __init__(self, noise: Noise) -> None:
        super().__init__()
        self.noise = noise

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not _is_random(func):
            return func(*args, **(kwargs or {}))
        return self.noise.draw(func, args, kwargs or {})


class _Python(TorchFunctionMode):
    """Sees what Python code calls, which costs nothing in a backward pass without any."""

    def __init__(self, noise: Noise) -> None:
        super().__init__()
        self.noise = noise

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with _Drawing(self.noise):
            return func(*args, **(kwargs or {}))


@cache
def _is_random(func: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in func.tags
