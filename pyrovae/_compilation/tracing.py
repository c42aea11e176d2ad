"""The conditions under which a function is traced: no values of tensors, and nothing that a graph would not repeat."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import pyro.util
import torch
from pyro.infer.util import Dice
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from pyrovae.isolation import restore_buffers, save_buffers


class UntraceableError(Exception):
    """A function cannot be written down as a graph; the message says why, in one line."""


@contextmanager
def unchanged(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Put buffers back as they were, and refuse changes that a graph would not repeat.

    Raises:
        UntraceableError: If a run changes the parameter store, or puts another tensor in the place of a buffer.
    """
    buffers, store = save_buffers(modules), pyro.get_param_store()
    try:
        with store.scope(store.get_state()) as scope:
            yield
        before = store.get_state()["params"]
        if any(before.get(name) is not value for name, value in scope["params"].items()):
            raise UntraceableError("the objective keeps values of its own in Pyro's parameter store (baselines)")
        for module, name, buffer, _ in buffers:
            if module._buffers[name] is not buffer:
                raise UntraceableError(
                    f"{type(module).__name__} puts another tensor in the place of its buffer {name!r}"
                )
    finally:
        restore_buffers(buffers)


@contextmanager
def without_values() -> Iterator[None]:
    """Let Pyro's objectives run on tensors without values, and refuse values that a graph would take for constants.

    Nothing is NaN, and no enumerated value is impossible.
    """
    expectation = Dice.compute_expectation

    def with_zeros(dice: Dice, costs: Any) -> Any:
        with _Zeros():
            return expectation(dice, costs)

    def refuse(*_: Any, **__: Any) -> None:
        raise UntraceableError("the programs set the state of a random generator, as checkpoints do")

    replacements: list[tuple[Any, str, Any]] = [
        (pyro.util, "torch_isnan", lambda _: False),
        (pyro.util, "torch_isinf", lambda _: False),
        (Dice, "compute_expectation", with_zeros),
        (torch, "manual_seed", refuse),
        (torch, "set_rng_state", refuse),
    ]
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in replacements]
    for owner, name, replacement in replacements:
        setattr(owner, name, replacement)
    try:
        with _Values():
            yield
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)


class _Values(TorchFunctionMode):
    """Answer ``.item()`` by the tensor itself, without its gradient, and refuse to take other values out of tensors."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.item:
            return args[0].detach()
        of_tensors = func is torch.tensor and any(isinstance(leaf, Tensor) for leaf in tree_leaves(args[0]))
        if func in _LEAVING or (of_tensors and not isinstance(args[0], Tensor)):
            raise UntraceableError(f"values of a tensor are taken out of it, by {func.__name__}()")
        return func(*args, **(kwargs or {}))


_LEAVING = {Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__}


class _Zeros(TorchFunctionMode):
    """Put zeros in the place of values of probability zero, which Pyro would leave out of a sum."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.all:
            return False
        return args[0].where(args[1], 0) if func is Tensor.masked_select else func(*args, **(kwargs or {}))
