"""Repr of a component, which shows its constructor arguments, and :func:`describe`, which returns its constants.

The constants of a module are its public attributes, and its buffers that are not in the state dict.
"""

import inspect
from dataclasses import fields, is_dataclass
from functools import partial
from html import escape
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyrovae.arguments import fingerprint


class Described(nn.Module):
    """Base of components whose repr is a constructor call, such as ``Bernoulli(network=Sequential(1,234 parameters))``.

    A subclass keeps every argument of its constructor as an attribute of the same name. Your own components need no
    base class; if they use this class, they print like the components of the library.

    Example:
        >>> import pyrovae as pv
        >>> pv.likelihoods.Normal(pv.networks.mlp(2, 5), scale=0.1)
        Normal(network=Sequential(15 parameters), scale=0.1)
    """

    def __repr__(self) -> str:
        stated = ", ".join(f"{name}={text}" for name, text in _stated(self).items())
        return f"{type(self).__name__}({stated})"


class DescribedModel(Described):
    """Base of models with several components: the repr has one component per line, and notebooks show a table."""

    def __repr__(self) -> str:
        lines = "".join(f"  {name}={text},\n" for name, text in _stated(self).items())
        return f"{type(self).__name__}(\n{lines})"

    def _repr_html_(self) -> str:
        """Return a table of the components and the numbers of their parameters."""
        rows = ""
        for name, text in _stated(self).items():
            size = _size(arguments(self)[name])
            rows += f"<tr><th style='text-align: left'>{escape(name)}</th><td><code>{escape(text)}</code></td>"
            rows += f"<td style='text-align: right'>{size:,}</td></tr>"
        head = "<tr><th></th><th style='text-align: left'>component</th><th>parameters</th></tr>"
        total = f"<tr><th></th><td></td><td style='text-align: right'>{_size(self):,}</td></tr>"
        return f"<table><caption>{escape(type(self).__name__)}</caption>{head}{rows}{total}</table>"


def arguments(component: nn.Module) -> dict[str, Any]:
    """Return, by name, the constructor arguments that a component keeps as attributes of the same name."""
    parameters = inspect.signature(type(component).__init__).parameters
    return {name: getattr(component, name) for name in list(parameters)[1:] if hasattr(component, name)}


def _stated(component: nn.Module) -> dict[str, str]:
    """Return a one-line text for each constructor argument that is not at its default value, by name."""
    parameters = inspect.signature(type(component).__init__).parameters
    found = {}
    for name, value in arguments(component).items():
        default = parameters[name].default
        is_plain = value is None or isinstance(value, bool | int | float | str | tuple)
        if not (value is default or (is_plain and value == default)):
            found[name] = _short(value)
    return found


def _size(value: Any) -> int:
    """Return the number of parameters of a module or of a tuple of modules, and 0 for any other value."""
    if isinstance(value, tuple):
        return sum(map(_size, value))
    return sum(parameter.numel() for parameter in value.parameters()) if isinstance(value, nn.Module) else 0


def _short(value: Any) -> str:
    """Return one line that describes an argument, such as the number of parameters of a network."""
    if isinstance(value, Described):
        return repr(value)
    if isinstance(value, nn.Module):
        return f"{type(value).__name__}({_size(value):,} parameters)"
    if isinstance(value, Tensor):
        return f"tensor of shape {tuple(value.shape)}"
    if isinstance(value, list | tuple):
        return f"({', '.join(map(_short, value))})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key!r}: {_short(part)}' for key, part in value.items())}}}"
    if is_dataclass(value) and not isinstance(value, type):
        return repr(value)
    if isinstance(value, torch.distributions.Distribution):
        return " ".join(repr(value).split())
    if callable(value):
        return str(getattr(value, "__qualname__", type(value).__name__))
    return repr(value)


def describe(module: nn.Module) -> dict[str, dict[str, Any]]:
    """Return a description of a module and of each of its submodules, by name.

    A description is a dictionary of the type and the constants, as plain values. The module itself has the name
    ``"module"``.

    Constants are public attributes: numbers, strings, functions (by name), distributions (by their parameters), data
    classes (by their fields), and containers of these. Buffers that are not in the state dict are constants too.
    Parameters and the other buffers are not constants. Two modules with equal descriptions and equal state dicts define
    the same densities, provided that their code is the same.

    Example:
        >>> import pyrovae as pv
        >>> from pyrovae.components import describe
        >>> describe(pv.likelihoods.StudentT(pv.networks.mlp(2, 5), df=3.0))["module"]["df"]
        3.0
    """
    return {name or "module": {"type": type(part).__name__, **_numbers(part)} for name, part in module.named_modules()}


_ABSENT = object()  # stands for values that are not part of a description
_SHAPES = ("_batch_shape", "_event_shape", "_validate_args", "_event_dim", "_mutable_params")


def _numbers(module: nn.Module) -> dict[str, Any]:
    """Return the constants of a module by name, as plain values; see :func:`describe`."""
    constants = {name: module._buffers[name] for name in sorted(module._non_persistent_buffers_set)}
    public = {name: value for name, value in vars(module).items() if name[0] != "_" and name != "training"}
    return _plain_items({**public, **_initialization(public), **constants})


def _initialization(public: dict[str, Any]) -> dict[str, Any]:
    """Return ``{"init_loc_fn": function}`` to replace this entry of ``public``, or ``{}`` if nothing is replaced.

    An autoguide with ``init_loc_fn=init_to_value(values=...)`` stores a partial function that holds the tensors
    ``values``. Pyro may train these tensors in place, so they are not constants of the module. The new entry is the
    same partial function without ``values``.

    Args:
        public: Public attributes of the module.
    """
    match public.get("init_loc_fn"):
        case partial(func=function, args=args, keywords={"values": _, **others}):
            return {"init_loc_fn": partial(function, *args, **others)}
    return {}


def _plain_items(items: dict[str, Any]) -> dict[str, Any]:
    plain = {str(name): _plain(value) for name, value in items.items()}
    return {name: value for name, value in plain.items() if value is not _ABSENT}


def _plain(value: Any) -> Any:
    """Return a value as numbers, strings, lists and dictionaries, or ``_ABSENT`` if it cannot be described."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return _plain_items(value)
    if isinstance(value, list | tuple):
        return [part for part in map(_plain, value) if part is not _ABSENT]
    if isinstance(value, Tensor):
        return _plain_tensor(value)
    if isinstance(value, nn.Module) and isinstance(value, torch.distributions.Transform):
        return {"type": type(value).__name__, **_numbers(value)}
    if isinstance(value, torch.distributions.Distribution | torch.distributions.Transform):
        return {"type": type(value).__name__, **_plain_items(_parameters_of(value))}
    if isinstance(value, partial):
        return {"function": _plain(value.func), "arguments": _plain(value.args), **_plain_items(value.keywords)}
    if is_dataclass(value) and not isinstance(value, type):
        return {"type": type(value).__name__, **_plain_items({f.name: getattr(value, f.name) for f in fields(value)})}
    return getattr(value, "__qualname__", _ABSENT) if callable(value) else _ABSENT


def _plain_tensor(tensor: Tensor) -> Any:
    """Return the entries of a small tensor, or the shape and the fingerprint of a large one."""
    if tensor.is_meta:
        return list(tensor.shape)
    return tensor.tolist() if tensor.numel() <= 8 else f"{tuple(tensor.shape)} {fingerprint((tensor,))}"


def _parameters_of(value: Any) -> dict[str, Any]:
    """Return the attributes of a distribution or transform, without lazily computed attributes."""
    lazy = torch.distributions.utils.lazy_property
    return {
        name: part
        for name, part in vars(value).items()
        if name not in _SHAPES and not isinstance(getattr(type(value), name, None), lazy | property)
    }
