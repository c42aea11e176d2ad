"""What is trained, in plain values that can be kept, compared and read: module, data, objective, options, versions."""

import platform
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn

from pyrovae.components import describe
from pyrovae.versions import version

Description = dict[str, Any]


def versions() -> dict[str, str]:
    """Those of Python and of the packages that numbers depend on."""
    packages = ("pyrovae", "torch", "pyro-ppl", "numpy")
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}


def of_module(module: nn.Module) -> Description:
    """Return the types and numbers of all parts of a module, and the names, types and shapes of its tensors."""
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    tensors = {name: f"{tensor.dtype} {tuple(tensor.shape)}" for name, tensor in named.items()}
    return {"tensors": tensors, "structure": describe(module)}


def of_object(thing: Any) -> Description:
    """An object's type and those of its attributes that are plain values, but for what it finds out itself."""
    attributes = {
        name: plain(value) for name, value in vars(thing).items() if name[0] != "_" and name != "max_plate_nesting"
    }
    return {"type": type(thing).__name__, **attributes}


def plain(value: Any) -> Any:
    """A value as it can be kept: what is no plain value, by its name."""
    match value:
        case np.generic():  # before numbers, since some are a kind of float
            return value.item()
        case None | bool() | int() | float() | str():
            return value
        case dict():
            return {str(key): plain(each) for key, each in value.items()}
        case list() | tuple():
            return [plain(each) for each in value]
        case partial():
            return {"function": plain(value.func), "arguments": plain(value.args), **plain(value.keywords)}
        case Tensor() if value.numel() == 1:
            return value.item()
        case _:
            return getattr(value, "__qualname__", type(value).__name__)


def differences(now: Mapping[Any, Any], then: Mapping[Any, Any], within: str = "") -> list[str]:
    """What is not the same in two descriptions, in words."""
    found = []
    for key in [*now, *(key for key in then if key not in now)]:
        name = f"{within}{key}"
        if key not in then:
            found.append(f"{name} is {now[key]!r} here and was not there")
        elif key not in now:
            found.append(f"{name} was {then[key]!r} and is not here")
        elif isinstance(now[key], Mapping) and isinstance(then[key], Mapping):
            found += differences(now[key], then[key], f"{name} ")
        elif now[key] != then[key]:
            found.append(f"{name} is {now[key]!r} here and was {then[key]!r}")
    return found


def first_of(found: list[str]) -> str:
    """The first three differences, and how many more there are."""
    return ", ".join(found[:3]) + (f", and {len(found) - 3} more" if len(found) > 3 else "")
