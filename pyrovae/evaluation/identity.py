"""Descriptions of programs, which show whether a stored result belongs to a call.

The code and the constants of a program, together with its parameters, determine its densities. A walk from each program
finds the code and the constants. The walk visits attributes, containers, classes, closures, default values, the objects
of bound methods, and functions that the code names. It leaves out

* code of the standard library and of installed packages, because their versions identify this code;
* values that change when the programs run, such as counters, because an evaluation raises an error if a density
  depends on them;
* tensors in a dictionary whose keys are not strings, because such a dictionary is a cache.

A second part of the walk, which begins after the first has ended, adds entries that results of earlier versions do not
have: the names of functions and classes of installed packages, the state of objects of such classes, as ``pickle``
would store it, and the entries of sparse tensors. It also records which paths lead to the same object.
:func:`of_programs` and :func:`of_objects` separate the entries of both parts.

The walk does not find environment variables and files that a program reads. It also does not find objects that a
program looks up by name (``getattr``, a registry).

:mod:`pyrovae.evaluation.descriptions` describes arguments and options. It uses the same walk for functions and other
objects.
"""

import dis
import functools
import hashlib
import sys
import sysconfig
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyrovae.arguments import as_bytes
from pyrovae.evaluation.object_state import UNKNOWN, is_sparse, state_of

MOST = 20_000  # largest number of values that are visited
LONGEST = 60  # largest number of characters of a value that is kept as it is
LARGE = 2**20  # bytes; larger arrays are read only once

_OF_TORCH = frozenset(vars(nn.Module()))  # attributes of every module: hooks, parameters, the training mode
_PACKAGES = tuple(str(Path(sysconfig.get_path(name)).resolve()) for name in ("purelib", "platlib"))
_PLAIN = bool | int | float | complex | str | bytes | np.generic | torch.dtype | torch.device | torch.Size
_DESCRIBED = (
    nn.Module,
    Messenger,
    torch.distributions.Distribution,
    torch.distributions.Transform,
    torch.distributions.constraints.Constraint,
)
_VISITED = (  # types whose parts the first part of the walk visits, or whose content is left out
    *(MethodType, functools.partial, FunctionType, property, staticmethod, classmethod, type, Mapping, list, tuple),
    *(set, frozenset, nn.Module, ModuleType, torch.Generator, Tensor, np.ndarray, *_DESCRIBED),
)
_FURTHER = "name of ", "state of ", "object of "  # beginnings of the paths of the walk's second part
TEXT_OF_UNKNOWN = "not known"  # no other value has this text, because the text of a string has quotation marks


def contents(
    programs: Mapping[str, Any], known: Mapping[nn.Module, Any], *, most_bytes: float = torch.inf
) -> dict[str, str]:
    """Return a dictionary from paths, such as ``model.network.scale``, to the code and constants of programs as text.

    Args:
        programs: The programs by name.
        known: Modules whose parameters and buffers are left out.
        most_bytes: Largest size of a tensor or array that is read, bytes; larger ones are left out.
    """
    found: dict[str, str] = {}
    seen: dict[int, tuple[str, Any]] = {}  # keeps the objects alive, so that their identities are not reused
    pending: deque[tuple[str, Any]] = deque(programs.items())
    later: deque[tuple[str, Any]] = deque()
    while (pending or later) and len(seen) < MOST:
        if not pending:
            path, value = later.popleft()
            pending.extend((f"state of {path}.{name}", part) for name, part in state_of(value))
            continue
        path, value = pending.popleft()
        if (text := _as_text(value, most_bytes)) is not None:
            found[path] = text
            if is_sparse(value):
                later.append((path, value))
            continue
        name = _installed_name(value)
        if name is not None:
            found[f"name of {path}"] = name
        if id(value) not in seen:
            seen[id(value)] = path, value
            if (code := getattr(value, "__code__", None)) is not None and not _is_installed(value):
                found[f"code of {path}"] = _digest(_of_code(code, value.__doc__))
            pending.extend((f"{path}.{name}", part) for name, part in _parts(value, known))
            if not isinstance(value, _VISITED) and _is_installed(type(value)):
                later.append((path, value))
        elif name is None:
            found[f"object of {path}"] = f"the object of {seen[id(value)][0]}"
    return found


def of_programs(found: Mapping[str, str]) -> dict[str, str]:
    """Return the entries of :func:`contents` that results of all versions have: code and constants of programs."""
    return {path: text for path, text in found.items() if not _is_further(path)}


def of_objects(found: Mapping[str, str]) -> dict[str, str]:
    """Return the entries of :func:`contents` that results of earlier versions lack.

    They are names and states of functions, classes and objects of installed packages.
    """
    return {path: text for path, text in found.items() if _is_further(path)}


def _is_further(path: str) -> bool:
    return path.removeprefix("code of ").startswith(_FURTHER)


def unchanged(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str]:
    """Return the entries of ``after`` whose text has not changed since ``before``, and those that are new.

    An entry is new if ``before`` does not have its path. Both arguments are results of :func:`contents`.
    """
    return {path: text for path, text in after.items() if before.get(path, text) == text}


def digest(found: Mapping[str, str]) -> str:
    """Return the SHA-1 checksum of the code and the constants that :func:`contents` returned."""
    return _digest(repr(sorted(found.items())).encode())


def difference(now: Mapping[str, str], then: Mapping[str, str]) -> str:
    """Describe the first value that differs between two results of ``contents``; return an empty text if all agree."""
    for path in (*now, *then):
        if now.get(path) != then.get(path):
            return f"its {path} is {then.get(path, 'not there')}, here it is {now.get(path, 'not there')}"
    return ""


def _as_text(value: Any, most_bytes: float) -> str | None:
    """Return text for a plain value, tensor or array; None for other objects and for arrays that are too large."""
    if value is UNKNOWN:
        return TEXT_OF_UNKNOWN
    if value is None or isinstance(value, _PLAIN):
        text = repr(value)
        return text if len(text) <= LONGEST else _digest(text.encode())
    if isinstance(value, Tensor):
        if value.is_meta or value.layout != torch.strided:
            return str(tuple(value.shape))
        shape = f"{tuple(value.shape)} {value.dtype}"
        return f"{shape} {_digest(as_bytes(value))[:12]}" if value.nbytes <= most_bytes else None
    if isinstance(value, np.ndarray):
        shape = f"{value.shape} {value.dtype}"
        return f"{shape} {_digest(_array_bytes(value))[:12]}" if value.nbytes <= most_bytes else None
    return None


def _array_bytes(array: np.ndarray) -> Any:
    return repr(array.tolist()).encode() if array.dtype == object else np.ascontiguousarray(array).tobytes()


def _installed_name(value: Any) -> str | None:
    """Return the name of a function or class of an installed package, and None for any other value."""
    if not isinstance(value, FunctionType | type) or not _is_installed(value):
        return None
    return f"{value.__module__}.{value.__qualname__}"


def _parts(value: Any, known: Mapping[nn.Module, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the objects inside a value, such as attributes and items, each with its name."""
    if isinstance(value, MethodType):
        yield from (("__func__", value.__func__), ("__self__", value.__self__))
    elif isinstance(value, functools.partial):
        yield from (("func", value.func), ("args", value.args), ("keywords", value.keywords))
    elif isinstance(value, FunctionType):
        yield from () if _is_installed(value) and not value.__closure__ else _of_function(value)
    elif isinstance(value, property):
        yield from (("fget", value.fget),)
    elif isinstance(value, staticmethod | classmethod):
        yield from (("__func__", value.__func__),)
    elif isinstance(value, type):
        if not _is_installed(value):
            yield from ((name, part) for name, part in vars(value).items() if not _is_special(name))
            yield from ((base.__name__, base) for base in value.__bases__)
    elif isinstance(value, Mapping):
        kept = (
            (key, part) for key, part in list(value.items()) if isinstance(key, str) or not isinstance(part, Tensor)
        )
        yield from ((repr(key)[:LONGEST], part) for key, part in kept)
    elif isinstance(value, list | tuple | set | frozenset):
        parts = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
        yield from ((str(index), part) for index, part in enumerate(parts))
    elif isinstance(value, nn.Module):
        yield from _of_module(value, known)
    elif not isinstance(value, ModuleType | torch.Generator | Tensor | np.ndarray):
        yield from _of_object(value)


def _of_function(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield the variables of a function's closure, its default values and its globals, each with its name.

    If a global is a Python module, those of its attributes that the code names are yielded instead of the module.
    Modules of pyrovae, the standard library and installed packages are left out.
    """
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # the variable has no value yet
            continue
    yield from (("defaults", function.__defaults__), ("keyword defaults", function.__kwdefaults__))
    if wrapped := getattr(function, "__wrapped__", None):
        yield "__wrapped__", wrapped
    if _is_installed(function):
        return
    for name, attributes in _loaded(function.__code__):
        value = function.__globals__.get(name)
        if isinstance(value, ModuleType):
            if not _is_installed(value):
                yield from ((f"{name}.{each}", vars(value)[each]) for each in attributes if each in vars(value))
        elif name in function.__globals__:
            yield name, value


def _of_module(module: nn.Module, known: Mapping[nn.Module, Any]) -> Iterator[tuple[str, Any]]:
    yield "class", type(module)
    yield from module._modules.items()
    if module not in known:
        yield from (*module._parameters.items(), *module._buffers.items())
    for name, part in vars(module).items():
        if name not in _OF_TORCH and not name.startswith("_pyro") and not _is_special(name):
            yield name, part


def _of_object(value: Any) -> Iterator[tuple[str, Any]]:
    if _is_installed(type(value)) and not isinstance(value, _DESCRIBED):
        return
    yield "class", type(value)
    yield from ((name, part) for name, part in list(getattr(value, "__dict__", {}).items()) if not _is_special(name))
    for each in type(value).__mro__:
        names = each.__dict__.get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            if hasattr(value, name) and not _is_special(name):
                yield name, getattr(value, name)


def _loaded(code: CodeType) -> list[tuple[str, list[str]]]:
    """Return a pair ``(name, attributes)`` for each global variable that the code reads.

    ``attributes`` lists the names of all attributes that the code reads from any object, so it is the same in all
    pairs.
    """
    names: dict[str, None] = {}
    attributes: dict[str, None] = {}
    pending = [code]
    while pending:
        current = pending.pop()
        for instruction in dis.get_instructions(current):
            if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                names[instruction.argval] = None
            elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD"):
                attributes[instruction.argval] = None
        pending += [constant for constant in current.co_consts if isinstance(constant, CodeType)]
    return [(name, list(attributes)) for name in names]


def _of_code(code: CodeType, documentation: str | None = None) -> bytes:
    """Return the instructions, names and constants of code as bytes, without line numbers and without the docstring."""
    constants = [
        _of_code(constant) if isinstance(constant, CodeType) else _of_constant(constant)
        for constant in code.co_consts
        if documentation is None or constant != documentation
    ]
    return repr((code.co_code, code.co_names, code.co_varnames, constants)).encode()


def _of_constant(constant: Any) -> str:
    return repr(sorted(map(repr, constant))) if isinstance(constant, frozenset) else repr(constant)


def _is_special(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _is_installed(value: Any) -> bool:
    """Return true if a function, class or module belongs to pyrovae, the standard library or an installed package."""
    name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
    return name is not None and _is_installed_module(name)


@functools.cache
def _is_installed_module(name: str) -> bool:
    top = name.partition(".")[0]
    if top == "__main__":
        return False
    if top in sys.stdlib_module_names or top == __name__.partition(".")[0]:
        return True
    file = getattr(sys.modules.get(name), "__file__", None)
    return file is not None and str(Path(file).resolve()).startswith(_PACKAGES)


def _digest(content: Any) -> str:
    checksum: Callable[..., Any] = hashlib.sha1
    return str(checksum(content, usedforsecurity=False).hexdigest())
