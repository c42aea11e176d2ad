"""Random draws for a batch whose data are divided over processes.

Each process computes the loss of a slice (contiguous data) of the batch. It draws the noise of the whole batch and
keeps the noise of its slice. The data thus get the same noise as in a single process, and the generators of all
processes stay synchronized. This requires two things of a random operation. It must make one draw for each entry of its
result, as normal, uniform, exponential and Bernoulli distributions do. Its result must also have a data dimension,
along which the data lie. At a sample site, this is the dimension of the data plate. Elsewhere, for example in dropout,
it is the first dimension whose size is the number of data in the slice.

Sites outside the data plate get the same draws in all processes. Each process makes all other draws separately, with a
seed that is derived from the common generator and the rank of the process. Examples are categorical draws,
permutations, and gamma and Dirichlet draws, which use rejection.
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
    """Contiguous data of a batch, for which one process computes the loss.

    Attributes:
        start: Index of the first datum of the slice.
        kept: Number of data in the slice.
        whole: Number of data in the batch.
    """

    start: int
    kept: int
    whole: int


class Noise:
    """Random draws for those data of a batch that one process handles; see the docstring of the module.

    Attributes:
        slice: The contiguous data of the batch for which draws are made.
        site: Negative index of the data dimension in the draws of the current site. None if there is no current site,
            or if the current site lies outside the data plate.
        is_common: True if the current site lies outside the data plate.
    """

    def __init__(self) -> None:
        self.slice = Slice(0, 1, 1)
        self.site: int | None = None
        self.is_common = False

    @contextmanager
    def of(self, piece: Slice) -> Iterator[None]:
        """Context manager in which torch's random operations return the draws for ``piece``, a slice of the batch."""
        self.slice = piece
        with _Drawing(self):
            yield

    @contextmanager
    def again(self) -> Iterator[None]:
        """Context manager for a backward pass, in which random operations draw for the slice of the forward pass.

        Activation checkpointing repeats parts of the forward pass in the backward pass. These parts may draw random
        numbers.
        """
        with _Python(self):
            yield

    def draw(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a random operation of torch, and return the draws for the data that this process handles."""
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
        """Return the index of the data dimension in a shape, or None if the shape has no data dimension."""
        kept = self.slice.kept
        if self.site is not None:
            axis = len(shape) + self.site
            return axis if axis >= 0 and shape[axis] == kept else None
        return next((axis for axis, length in enumerate(shape) if length == kept), None)

    def _widened(self, arg: Any, axis: int, ndim: int) -> Any:
        """Extend an argument of a random operation from the data of this process to the whole batch.

        In a shape, the size of the batch replaces the size of the slice. In a tensor of parameters, such as
        probabilities, all data outside the slice get the parameters of the nearest datum of the slice. Their draws are
        not used. Other arguments are returned unchanged.
        """
        if isinstance(arg, list | tuple):
            return [*arg[:axis], self.slice.whole, *arg[axis + 1 :]]
        if not (isinstance(arg, Tensor) and arg.ndim == ndim and arg.shape[axis] == self.slice.kept):
            return arg
        indices = torch.arange(self.slice.whole, device=arg.device) - self.slice.start
        return arg.index_select(axis, indices.clamp(0, self.slice.kept - 1))

    def _kept(self, whole: Tensor, axis: int) -> Tensor:
        return whole.narrow(axis, self.slice.start, self.slice.kept).contiguous()


class SiteLocator(Messenger):
    """Handler that tells :class:`Noise` along which dimension of a site's draws the data lie.

    It must be the innermost handler.

    Args:
        noise: Object whose attributes ``site`` and ``is_common`` are set.
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
    """Context manager in which a :class:`Noise` object makes the draws of all random operations of torch."""

    def __init__(self, noise: Noise) -> None:
        super().__init__()
        self.noise = noise

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not _is_random(func):
            return func(*args, **(kwargs or {}))
        return self.noise.draw(func, args, kwargs or {})


class _Python(TorchFunctionMode):
    """Context manager that activates :class:`_Drawing` for each call of a torch function by Python code.

    Operations that autograd itself runs in a backward pass are not affected.
    """

    def __init__(self, noise: Noise) -> None:
        super().__init__()
        self.noise = noise

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with _Drawing(self.noise):
            return func(*args, **(kwargs or {}))


@cache
def _is_random(func: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in func.tags
