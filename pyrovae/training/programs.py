"""A pair of programs as a module, so that pairs and modules are trained by the same code."""

from collections.abc import Callable
from typing import Any

from torch import nn

from pyrovae.isolation import owners

Program = Callable[..., Any]


class Pair(nn.Module):
    """A model and a guide, together with the modules to which they belong.

    Args:
        model: Pyro program of p(x, z).
        guide: Pyro program of q(z | x).
    """

    def __init__(self, model: Program, guide: Program) -> None:
        super().__init__()
        self.model, self.guide = model, guide
        mine = {id(module) for module in self.modules()}
        for index, module in enumerate(owners(model, guide)):
            if id(module) not in mine:
                self.add_module(f"owner{index}", module)
                mine |= {id(part) for part in module.modules()}


def as_module(programs: Any) -> Any:
    """Convert a pair of programs to a :class:`Pair`; return a module unchanged.

    Raises:
        TypeError: If a tuple is not a pair of callables.
    """
    if not isinstance(programs, tuple | list):
        return programs
    if len(programs) != 2 or not all(callable(program) for program in programs):
        found = ", ".join(type(program).__name__ for program in programs)
        raise TypeError(f"fit trains a pair (model, guide) of Pyro programs, got ({found}). Pass two callables.")
    return Pair(*programs)


def name_of(module: Any) -> str:
    """Return the name of a module, or the names of the model and guide of a :class:`Pair`, for messages."""
    if not isinstance(module, Pair):
        return type(module).__name__
    names = [getattr(program, "__name__", type(program).__name__) for program in (module.model, module.guide)]
    return f"({', '.join(names)})"
