"""Descriptions of arguments and options by plain values, which show whether two calls have the same arguments."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae.arguments import fingerprint
from pyrovae.evaluation.identity import TEXT_OF_UNKNOWN, contents, digest


def plain(value: Any, name: str) -> Any:
    """Describe an argument or an option by numbers, strings, lists and dictionaries.

    A tensor or array becomes its checksum. A function or another object becomes its name and a checksum of its code,
    constants and attributes.

    Args:
        value: Value of the argument.
        name: Name of the argument in error messages.

    Raises:
        ValueError: If the value holds an object that cannot be described, such as a generator or an open file.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta:
        return fingerprint((value,))
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiubc":
        return fingerprint((torch.as_tensor(value),))
    if isinstance(value, Mapping):
        parts = sorted(value.items(), key=lambda item: str(item[0]))
        return {str(key): plain(inner, f"{name}[{key!r}]") for key, inner in parts}
    if isinstance(value, list | tuple):
        return [plain(inner, f"{name}[{index}]") for index, inner in enumerate(value)]
    # A transform of torch keeps its last input and output in attributes such as `_cached_x_y`.
    found = {path: text for path, text in contents({name: value}, {}).items() if "._cached" not in path}
    if unknown := [path for path, text in found.items() if text == TEXT_OF_UNKNOWN]:
        place = unknown[0].removeprefix("state of ").removesuffix(".state")
        raise ValueError(
            f"{name} is a {type(value).__name__}, and the content of {place} cannot be compared between calls, so it "
            f"is not known whether a stored result belongs to this call. As {name}, pass a number, an array, a "
            f"function, or an object whose attributes can be pickled."
        )
    return f"{getattr(value, '__qualname__', type(value).__name__)} {digest(found)[:12]}"
