"""Context managers that restore modules, guides and the global random generators after runs of Pyro programs.

Pyro's handler stack and torch's generator are global, so a lock serializes calls from several threads.
"""

import inspect
import random
import secrets
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from pyrovae.arguments import check_whole

Buffers = list[tuple[nn.Module, str, Tensor, Tensor]]

LOCK = threading.RLock()


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Context manager: seed torch's generators with ``seed``. Without a seed, leave all generators as they are.

    With a seed, the global generators of torch, NumPy and Python are restored at the end, although only torch's
    generators are seeded. Only one thread at a time can be inside the context, even without a seed, because Pyro's
    handlers are global.

    Raises:
        TypeError: If the seed is not an integer.
        ValueError: If the seed is negative or too large.
    """
    if seed is None:
        with LOCK:
            yield
        return
    check_whole(seed=seed)
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be between 0 and 2^64 - 1, got {seed}")
    with LOCK:
        numpy_state, python_state = np.random.get_state(), random.getstate()
        try:
            with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
                torch.manual_seed(int(seed))
                yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)


class Isolation:
    """The state of modules and of Pyro's parameter store before a run; :meth:`restore` restores this state."""

    def __init__(self, *, forget_parameters: bool) -> None:
        self.training: dict[nn.Module, bool] = {}
        self.passing: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()
        self.buffers: Buffers = []
        self.plates: list[tuple[Any, dict[Any, Any]]] = []
        self.parameters = set(pyro.get_param_store().keys()) if forget_parameters else None

    @property
    def modules(self) -> list[nn.Module]:
        """List of all modules that this object has put into evaluation mode."""
        return list(self.training)

    @property
    def tensors(self) -> list[Tensor]:
        """Parameters and buffers of the modules in :attr:`modules`."""
        return [t for module in self.training for t in (*module.parameters(False), *module.buffers(False))]

    def adopt(self, module: nn.Module) -> None:
        """Put a module into evaluation mode.

        The earlier mode, the buffers, and the plates that an autoguide of Pyro holds are stored for :meth:`restore`.
        """
        if module in self.training:
            return
        self.training[module] = module.training
        self.buffers += save_buffers([module])
        module.training = False
        if isinstance(plates := getattr(module, "plates", None), dict):  # Pyro's AutoGuide and EasyGuide store plates
            self.plates.append((plates, dict(plates)))

    @contextmanager
    def adopting(self, *, keep: bool = True) -> Iterator[None]:
        """Context manager that puts every module into evaluation mode when the module is called.

        This covers modules that a program uses through a closure or an import. :meth:`restore` returns all modules to
        their earlier modes.

        Args:
            keep: If true, :meth:`restore` also restores the buffers of these modules, and the plates that an autoguide
                of Pyro holds. This object then keeps the modules in memory. If false, :meth:`restore` restores only the
                modes, and this object holds weak references to the modules. Use false if a program may create new
                modules in each run.
        """
        thread = threading.get_ident()

        def adopt(module: nn.Module, _: Any) -> None:
            if threading.get_ident() != thread or module in self.training:
                return
            if keep:
                self.adopt(module)
            else:
                self.passing.setdefault(module, module.training)
                module.training = False

        hook = register_module_forward_pre_hook(adopt)
        try:
            yield
        finally:
            hook.remove()

    def restore(self) -> None:
        """Restore modes, buffers and plates. With ``forget_parameters``, remove new parameters from Pyro's store."""
        for module, mode in (*self.training.items(), *self.passing.items()):
            module.training = mode
        restore_buffers(self.buffers)
        for plates, before in self.plates:
            plates.clear()
            plates.update(before)
        if self.parameters is not None:
            store = pyro.get_param_store()
            for name in set(store.keys()) - self.parameters:
                del store[name]


@contextmanager
def isolated(*programs: Callable[..., Any], seed: int, forget_parameters: bool = False) -> Iterator[Isolation]:
    """Context manager for runs of programs in evaluation mode and without gradients.

    At the end, the modes and buffers of modules and the global random generators are restored. Only one thread at a
    time can be inside the context.

    Args:
        *programs: Pyro programs.
        seed: Seed of torch's generators.
        forget_parameters: If true, parameters that a run adds to Pyro's store are removed at the end.
    """
    with LOCK:
        state = Isolation(forget_parameters=forget_parameters)
        for module in modules_of(*programs):
            state.adopt(module)
        try:
            with seeded(seed), torch.no_grad(), poutine.block():
                yield state
        finally:
            state.restore()


def save_buffers(modules: Iterable[nn.Module]) -> Buffers:
    """Return a list with a tuple for each buffer of the modules: module, name, buffer, and a copy of the buffer.

    Buffers of a submodule are included only if the submodule itself is among ``modules``.
    """
    return [
        (module, name, buffer, buffer.detach().clone())
        for module in modules
        for name, buffer in module.named_buffers(recurse=False)
    ]


def restore_buffers(buffers: Buffers) -> None:
    """Restore the buffers of :func:`save_buffers`, even if a module has put another tensor in place of a buffer."""
    for module, name, buffer, value in buffers:
        buffer.data.copy_(value)
        module._buffers[name] = buffer


def modules_of(*programs: Callable[..., Any]) -> list[nn.Module]:
    """Return the torch modules to which programs belong or refer (see :func:`owners`), and all their submodules."""
    return list({module: None for owner in owners(*programs) for module in owner.modules()})


def owners(*programs: Callable[..., Any]) -> list[nn.Module]:
    """Return the torch modules to which programs belong or refer. Pyro's handlers around a program are ignored.

    A method belongs to its module. A function refers to modules in its closure, in its default values and in the global
    variables that it uses. A callable object refers to modules in its attributes, and a ``partial`` also to modules
    among its arguments.
    """
    found: dict[nn.Module, None] = {}
    for program in programs:
        inner: Any = poutine.unwrap(program)
        while isinstance(inner, partial):
            found |= dict.fromkeys(filter(_is_module, (*inner.args, *inner.keywords.values())))
            inner = poutine.unwrap(inner.func)
        owner = getattr(inner, "__self__", inner)
        if isinstance(owner, nn.Module):
            found[owner] = None
        elif inspect.isfunction(inner):
            found |= dict.fromkeys(_named_modules(inner))
        else:  # a callable object, or its method
            found |= dict.fromkeys(value for value in getattr(owner, "__dict__", {}).values() if _is_module(value))
    return list(found)


def _is_module(value: Any) -> bool:
    return isinstance(value, nn.Module)


def _named_modules(function: Any) -> Iterator[nn.Module]:
    """Yield the torch modules to which a function refers, directly or through functions of the same Python module."""
    return (value for _, value in _named_values(function) if isinstance(value, nn.Module))


def _named_values(function: Any) -> Iterator[tuple[str, Any]]:
    """Yield the names and values of a function's closure variables, defaults and globals.

    If a value is itself a function of the same Python module, its variables, defaults and globals are yielded too.
    """
    seen: set[int] = set()
    pending = [function]
    while pending:
        current = pending.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        variables = inspect.getclosurevars(current)
        defaults = [
            ("default", value) for value in (*(current.__defaults__ or ()), *(current.__kwdefaults__ or {}).values())
        ]
        for name, value in [*variables.nonlocals.items(), *variables.globals.items(), *defaults]:
            yield name, value
            if inspect.isfunction(value) and value.__module__ == current.__module__:
                pending.append(value)


def program_device(*programs: Callable[..., Any], default: torch.device) -> torch.device:
    """Return the device of the first parameter of the programs' modules, or ``default`` if there is no parameter."""
    parameters = (parameter for owner in owners(*programs) for parameter in owner.parameters())
    return next((parameter.device for parameter in parameters), default)


def fresh_seed() -> int:
    """Return a seed from the operating system, without changing any generator."""
    return secrets.randbits(32)
