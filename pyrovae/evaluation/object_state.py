"""The parts from which ``pickle`` would restore an object, for objects whose attributes do not show their content."""

import copyreg
import threading
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

_WITHOUT_STATE = (  # types that hold nothing on which a value can depend
    *(type(threading.Lock()), type(threading.RLock()), weakref.ref, type(vars(Mapping)["_abc_impl"])),
)
UNKNOWN = object()  # stands for a state that cannot be described


def is_sparse(value: Any) -> bool:
    """Return whether a value is a sparse tensor."""
    return isinstance(value, Tensor) and value.layout != torch.strided and not value.is_meta


def state_of(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the parts of a sparse tensor or of an object of an installed class, each with its name.

    The parts of an object are those from which ``pickle`` would restore it. If the object cannot be pickled, its
    state is ``UNKNOWN``.
    """
    if isinstance(value, _WITHOUT_STATE):
        return
    yield "class", type(value)
    if wrapped := getattr(value, "__dict__", {}).get("__wrapped__"):  # the function inside functools.lru_cache
        yield "__wrapped__", wrapped
    try:
        parts = _sparse_parts(value) if isinstance(value, Tensor) else _pickled_parts(value)
    except Exception:  # a class may raise any error if its objects cannot be pickled
        parts = {"state": UNKNOWN}
    yield from parts.items()


def _sparse_parts(tensor: Tensor) -> dict[str, Any]:
    entries = tensor.detach().to_sparse_coo().coalesce()
    return {"indices": entries.indices(), "values": entries.values()}


def _pickled_parts(value: Any) -> dict[str, Any]:
    """Return the parts of an object from which ``pickle`` would restore it, by name."""
    reduce: Any = copyreg.dispatch_table.get(type(value))
    reduced = value.__reduce_ex__(4) if reduce is None else reduce(value)
    if isinstance(reduced, str):
        return {"name": reduced}
    function, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
    return {
        "function": function,
        "arguments": arguments,
        "state": state,
        "items": list(items or ()),
        "pairs": list(pairs or ()),
    }
