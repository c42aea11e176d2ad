"""Descriptions of a run's module, data, objective, options and versions, as plain values to store and compare."""

import platform
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from pyro.infer import ELBO
from torch import Tensor, nn

from pyrovae.components import describe
from pyrovae.versions import version

Description = dict[str, Any]

FORMAT = 2  # format of the descriptions in files; version 0.1.0 wrote format 1 without a number

_ELEMENTWISE = frozenset(
    ["ASGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD"]
)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect the results of a run."""
    packages = ("pyrovae", "torch", "pyro-ppl", "numpy")
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}


def of_module(module: nn.Module) -> Description:
    """Return a description of a module: structure, types of the layers, and the dtype and shape of each tensor."""
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    tensors = {name: of_tensor(tensor) for name, tensor in named.items()}
    layers = sorted({type(part).__name__ for part in module.modules()})
    return {"tensors": tensors, "structure": describe(module), "layers": layers}


def of_tensor(tensor: Tensor) -> str:
    """Return the dtype and the shape of a tensor."""
    return f"{tensor.dtype} {tuple(tensor.shape)}"


def of_object(thing: Any) -> Description:
    """Return the type of an object and its public attributes as plain values; objectives are described recursively.

    ``max_plate_nesting`` is left out, because an ELBO determines it from the programs.
    """
    named = {name: value for name, value in vars(thing).items() if name[0] != "_" and name != "max_plate_nesting"}
    attributes = {name: of_object(value) if isinstance(value, ELBO) else plain(value) for name, value in named.items()}
    return {"type": type(thing).__name__, **attributes}


def of_trained(optimizer: torch.optim.Optimizer, named: Mapping[str, Tensor]) -> Description:
    """Return name, dtype and shape of each parameter of an optimizer, in the order of the optimizer.

    An optimizer's state refers to parameters by position, so it can be restored only in a run that trains the same
    parameters. A checkpoint therefore holds this description, and a run compares the description with its own. Without
    the comparison, a state could be assigned to the wrong parameter, and a fused optimizer could write beyond the
    memory of a smaller parameter.

    Args:
        optimizer: Optimizer of the parameters.
        named: The parameters that can be trained, by name.
    """
    names = {id(tensor): name for name, tensor in named.items()}
    found: Description = {}
    for group in optimizer.param_groups:
        for tensor in group["params"]:
            found[f"parameter {len(found)}"] = {
                "name": names.get(id(tensor), "of the optimizer itself"),
                "dtype": str(tensor.dtype),
                "shape": list(tensor.shape),
            }
    return found


def of_optimizer(optimizer: torch.optim.Optimizer) -> Description:
    """Return an optimizer's type and default options, and each parameter group's options that differ from these."""
    described: Description = {"type": type(optimizer).__name__, **plain(optimizer.defaults)}
    for index, group in enumerate(optimizer.param_groups):
        own = plain({name: value for name, value in group.items() if name not in ("params", "initial_lr")})
        if own := {name: value for name, value in own.items() if described.get(name) != value}:
            described[f"group {index}"] = own
    return described


def misfits(state: Mapping[str, Any], trained: Mapping[str, Any], optimizer: str) -> list[str]:
    """Compare an optimizer's state dict with the trained parameters, and return a sentence for each mismatch.

    Args:
        state: The state dict of the optimizer.
        trained: The parameters, as described by :func:`of_trained`.
        optimizer: Name of the optimizer's type. For an element-wise optimizer of torch, each state must have the shape
            of its parameter. For any other optimizer, only the number of parameters is checked.
    """
    count = sum(len(group["params"]) for group in state["param_groups"])
    if count != len(trained):
        return [f"the optimizer has states for {count} trained parameters, but {len(trained)} are trained here"]
    found = []
    for (position, states), parameter in (
        (item, trained[f"parameter {item[0]}"]) for item in state["state"].items() if optimizer in _ELEMENTWISE
    ):
        for name, value in states.items():
            if isinstance(value, Tensor) and value.numel() > 1 and list(value.shape) != parameter["shape"]:
                found.append(
                    f"{name} of trained parameter {position}, {parameter['name']!r}, has shape {list(value.shape)}, "
                    f"but the parameter has shape {parameter['shape']}"
                )
    return found


def as_number(value: Any) -> Any:
    """Return a NumPy scalar as a Python number, and any other value unchanged."""
    return value.item() if isinstance(value, np.generic) else value


def plain(value: Any) -> Any:
    """Convert a value to numbers, strings, lists and dictionaries; any other object becomes its name or type."""
    match value:
        case np.generic():  # precedes the numbers, because some NumPy scalars are floats
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
    """Return a sentence for each difference between two descriptions."""
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


def differences_of_modules(now: Description, then: Description, file_format: int) -> list[str]:
    """Return a sentence for each difference between the description of a module and a description from a file.

    A file of format 1 describes the structure of a module in another way. For such a file, only the tensors and the
    types of torch's layers are compared.
    """
    if file_format > 1:
        return differences(now, then)
    printed = "\n".join(map(str, then["structure"].values()))
    before = {name for name in re.findall(r"\b([A-Z]\w*)\(", printed) if hasattr(nn, name)}
    missing = sorted(before.difference(now["layers"]))
    return [
        *differences(now["tensors"], then["tensors"], "tensors "),
        *(f"structure: {name} was there and is not here" for name in missing),
    ]


def differences_of_runs(now: Description, then: Description, file_format: int) -> list[str]:
    """Return a sentence for each difference between the description of a run and a description from a file.

    For a file of format 1, entries that only one of the two descriptions has are not compared.
    """
    if file_format > 1:
        return differences(now, then)
    found = differences_of_modules(now["module"], then["module"], file_format)
    return found + differences(*_shared({**now, "module": {}}, {**then, "module": {}}))


def first_of(found: list[str]) -> str:
    """Return the first three differences as text, with the number of further differences."""
    return ", ".join(found[:3]) + (f", and {len(found) - 3} more" if len(found) > 3 else "")


def _shared(now: Description, then: Description) -> tuple[Description, Description]:
    """Return both descriptions, restricted to their common entries."""
    pairs: dict[str, tuple[Any, Any]] = {}
    for key in now.keys() & then.keys():
        one, other = now[key], then[key]
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            pairs[key] = _shared(dict(one), dict(other))
        elif not isinstance(one, Mapping) and not isinstance(other, Mapping):
            pairs[key] = one, other
    return {key: pair[0] for key, pair in pairs.items()}, {key: pair[1] for key, pair in pairs.items()}
