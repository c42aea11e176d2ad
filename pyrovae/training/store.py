"""Conversion between the parameters of Pyro's store, with their constraints, and the content of a file."""

import inspect
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import pyro
import torch
from pyro.distributions import constraints
from torch import Tensor, nn

Stored = dict[str, Any]

_OF_MODULES = ("$$$", "@")  # marks in the names that pyro.module and pyrovae's programs give to parameters of modules


def stored_parameters(module: nn.Module) -> dict[str, Stored]:
    """Return the parameters of Pyro's store that belong to no module: a dictionary of values and constraints by name.

    The store is global and does not know which program created a parameter. If ``module`` has a ``model`` or a
    ``guide``, the dictionary therefore holds all parameters that belong to no module. Otherwise, it is empty.

    Raises:
        TypeError: If the constraint of a parameter cannot be stored.
    """
    if not (hasattr(module, "model") or hasattr(module, "guide")):
        return {}
    own = {id(parameter) for parameter in module.parameters()}
    return {
        name: {"value": tensor, "constraint": constraint_of(name)}
        for name, tensor in pyro.get_param_store().named_parameters()
        if id(tensor) not in own and not name.startswith("__") and not any(mark in name for mark in _OF_MODULES)
    }


def constraint_of(name: str) -> Any:
    """Return the constraint of a parameter in Pyro's store as a dictionary: its name, and its arguments if it has any.

    Raises:
        TypeError: If the constraint is not in ``torch.distributions.constraints``.
    """
    constraint = pyro.get_param_store()._constraints[name]
    try:
        return _encode(constraint)
    except TypeError:
        raise TypeError(
            f"the constraint of pyro.param {name!r}, {constraint!r}, cannot be stored. Use a constraint of "
            f"torch.distributions.constraints, or make the parameter a PyroParam of the module."
        ) from None


def constraints_of(names: Iterable[str]) -> dict[str, Any]:
    """Return the constraints of parameters in Pyro's store, by name, except those that a file cannot hold."""
    found = {}
    for name in names:
        if name in pyro.get_param_store():
            with suppress(TypeError):
                found[name] = constraint_of(name)
    return found


def check_stored(stored: dict[str, Stored]) -> None:
    """Check that parameters from a file fit Pyro's store.

    Raises:
        ValueError: If a parameter in the store has the same name but another shape or constraint, or if a constraint in
            the file is unknown.
    """
    store = pyro.get_param_store()
    for name, entry in stored.items():
        try:
            constraint = _decode(entry["constraint"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"pyro.param {name!r} of the file has the unknown constraint {error}.") from error
        if name not in store:
            continue
        shape = tuple(dict(store.named_parameters())[name].shape)
        if shape != tuple(entry["value"].shape):
            raise ValueError(
                f"pyro.param {name!r} has shape {shape} in Pyro's store and {tuple(entry['value'].shape)} in the file. "
                f"Call pyro.clear_param_store() first, or use the same programs as when the file was written."
            )
        if constraint_of(name) != _encode(constraint):
            raise ValueError(
                f"pyro.param {name!r} has constraint {store._constraints[name]!r} in Pyro's store and {constraint!r} "
                f"in the file. Call pyro.clear_param_store() first, or use the same programs as when the file was "
                f"written."
            )


@torch.no_grad()
def restore_stored(stored: dict[str, Stored], device: torch.device) -> None:
    """Copy parameters from a file into Pyro's store, after :func:`check_stored`.

    If a parameter is not in the store, it is created on ``device``.
    """
    store = pyro.get_param_store()
    for name, entry in stored.items():
        value, constraint = entry["value"], _decode(entry["constraint"], device)
        if name not in store:
            start = torch.distributions.transform_to(constraint)(value.to(device, copy=True))
            store.setdefault(name, start, constraint)
        parameter = dict(store.named_parameters())[name]
        parameter.copy_(value)  # the unconstrained value, so that a transform rounds nothing


def _encode(value: Any) -> Any:
    match value:
        case None | bool() | int() | float():
            return value
        case Tensor():
            return {"tensor": value.tolist()}
        case list() | tuple():
            return [_encode(each) for each in value]
        case constraints.Constraint():
            for name in constraints.__all__:
                if getattr(constraints, name) is value:
                    return {"name": name}
            for name in constraints.__all__:
                if getattr(constraints, name) is type(value):
                    arguments = inspect.signature(type(value).__init__).parameters.keys() & vars(value).keys()
                    return {"name": name, "arguments": {key: _encode(vars(value)[key]) for key in sorted(arguments)}}
    raise TypeError(value)


def _decode(value: Any, device: torch.device | None = None) -> Any:
    """Return the constraint that :func:`_encode` has encoded, with its tensors on ``device``, by default the CPU."""
    match value:
        case {"name": str(name)} if name in constraints.__all__:
            found = getattr(constraints, name)
            return found(**_decode(value["arguments"], device)) if "arguments" in value else found
        case {"name": name}:
            raise KeyError(name)
        case {"tensor": numbers}:
            return torch.tensor(numbers, device=device)
        case dict():
            return {key: _decode(each, device) for key, each in value.items()}
        case list():
            return [_decode(each, device) for each in value]
        case _:
            return value
