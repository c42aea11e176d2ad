"""Conditions for recording a function as a graph.

The function must not use the value of a tensor in Python. It must not replace a buffer, or a parameter in Pyro's store.
"""

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
    """A function cannot be recorded as a graph. The message names the reason in one line."""


@contextmanager
def unchanged(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Context manager: restore buffers at the end, and raise an error for changes that a graph would not repeat.

    Raises:
        UntraceableError: If a run adds or replaces a parameter in Pyro's store, or replaces a buffer by another tensor.
    """
    buffers, store = save_buffers(modules), pyro.get_param_store()
    try:
        with store.scope(store.get_state()) as scope:
            yield
        before = store.get_state()["params"]
        if any(before.get(name) is not value for name, value in scope["params"].items()):
            raise UntraceableError("the objective keeps its own values in Pyro's parameter store (baselines)")
        for module, name, buffer, _ in buffers:
            if module._buffers[name] is not buffer:
                raise UntraceableError(f"{type(module).__name__} replaces its buffer {name!r} by another tensor")
    finally:
        restore_buffers(buffers)


@contextmanager
def without_values() -> Iterator[None]:
    """Context manager: run Pyro's objectives on tensors without values; raise an error if a value is needed.

    Inside the context, Pyro's checks for NaN and infinite values always pass. In a sum over enumerated values, Pyro
    usually removes the terms whose probability is zero. Inside the context, these terms are set to 0 instead, because
    removing them needs the values of the probabilities.
    """
    expectation = Dice.compute_expectation

    def with_zeros(dice: Dice, costs: Any) -> Any:
        with _Zeros():
            return expectation(dice, costs)

    def refuse(*_: Any, **__: Any) -> None:
        raise UntraceableError("the programs set the state of a random generator, as activation checkpointing does")

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
    """Context manager in which ``.item()`` returns the detached tensor, and other reads of a value raise an error."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.item:
            return args[0].detach()
        of_tensors = func is torch.tensor and any(isinstance(leaf, Tensor) for leaf in tree_leaves(args[0]))
        if func in _LEAVING or (of_tensors and not isinstance(args[0], Tensor)):
            raise UntraceableError(f"values of a tensor are read by {func.__name__}(), which a graph cannot record")
        return func(*args, **(kwargs or {}))


_LEAVING = {Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__}


class _Zeros(TorchFunctionMode):
    """Context manager in which terms with probability zero stay in Pyro's sums over enumerated values, as zeros.

    Outside the context, Pyro removes such terms from a sum. The shapes of tensors then depend on values, but the shapes
    in a graph are fixed.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.all:
            return False
        return args[0].where(args[1], 0) if func is Tensor.masked_select else func(*args, **(kwargs or {}))
