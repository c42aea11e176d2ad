"""Checks of arguments: whole numbers, finite data, available devices, and shapes that components accept."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

Data = Tensor | tuple[Tensor, ...]


def as_tuple(data: Data) -> tuple[Tensor, ...]:
    """Return data as a tuple of tensors, the arguments of a program. A single tensor becomes a tuple of one tensor."""
    return data if isinstance(data, tuple) else (data,)


def check_whole(**numbers: Any) -> None:
    """Raise TypeError for a count that is not an integer, because torch would round it or raise an unclear error later.

    Raises:
        TypeError: If a value is not an integer, or is a bool.
    """
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, Integral):
            got = f"a tensor of shape {tuple(number.shape)}" if isinstance(number, Tensor) else repr(number)
            raise TypeError(f"{name} must be a whole number, got {got}")


@contextmanager
def explained(role: str, *context: Tensor) -> Iterator[None]:
    """Context manager: replace an error of torch by an error that names the component and its inputs.

    Raises:
        ValueError: If torch raises a RuntimeError or an IndexError, unless memory is exhausted.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, IndexError) as error:  # torch raises these for shapes and dtypes that do not fit
        given = " and ".join(
            f"a tensor of shape {tuple(each.shape)}, {each.dtype}" if isinstance(each, Tensor) else repr(each)
            for each in context
        )
        reason = str(error).splitlines()[0]
        if not context:
            raise ValueError(
                f"the {role} cannot be constructed ({reason}). Pass arguments of matching shapes."
            ) from error
        raise ValueError(
            f"the {role} cannot take {given} ({reason}). Pass data of the shape and dtype that its network takes, or "
            f"change the network to take these inputs."
        ) from error


def as_device(name: str | torch.device) -> torch.device:
    """Return the device of a given name; ``"auto"`` is a CUDA device if there is one, else the CPU.

    Raises:
        ValueError: If the device is not available.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device {str(name)!r} is not available ({reason}). Use device='auto' or device='cpu'."
        ) from error


def as_tensors(name: str, data: Data) -> tuple[Tensor, ...]:
    """Check data and return them as a tuple of tensors. Error messages refer to the data by ``name``.

    Raises:
        TypeError: If the data are not dense tensors, or the first tensor is not floating-point.
        ValueError: If the data are empty, differ in length, or hold NaN or infinite values.
    """
    tensors = as_tuple(data)
    if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors):
        found = [type(tensor).__name__ for tensor in tensors]
        raise TypeError(f"{name} must be a tensor or a tuple of tensors, got {found}. Use torch.as_tensor(...).")
    if not tensors[0].is_floating_point():
        raise TypeError(f"{name} must be floating-point, got {tensors[0].dtype}. Call .float() on the tensor.")
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if not all(shapes) or len({shape[0] for shape in shapes}) > 1:
        raise ValueError(f"the tensors of {name} must share a first dimension, the number of data, got shapes {shapes}")
    if not shapes[0][0]:
        raise ValueError(f"{name} is empty, shape {shapes[0]}. Pass at least one datum.")
    if any(tensor.layout != torch.strided for tensor in tensors):
        raise TypeError(f"{name} must be dense, got {[str(tensor.layout) for tensor in tensors]}. Call .to_dense().")
    for tensor in filter(torch.is_floating_point, tensors):
        finite = tensor.isfinite().reshape(len(tensor), -1).all(1)
        if not finite.all():
            bad = (~finite).nonzero().flatten().tolist()
            raise ValueError(
                f"{len(bad)} of {len(tensor)} data in {name} hold NaN or infinite values, the first at index {bad[0]}. "
                f"Remove these data, or replace the values by zeros and pass a mask (pyrovae.likelihoods.Masked)."
            )
    return tensors


def fingerprint(tensors: tuple[Tensor, ...]) -> str:
    """Return the SHA-1 of the data, which shows whether two results are for the same data."""
    digest: Any = hashlib.sha1(usedforsecurity=False)
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(as_bytes(tensor))
    return str(digest.hexdigest())


def as_bytes(tensor: Tensor) -> Any:
    """Return the values of a tensor as a NumPy array of bytes, for a checksum."""
    dense = tensor.detach().cpu().contiguous()
    # In a contiguous tensor, a dimension of size 1 may have any stride, but a view as bytes requires a stride of 1.
    return dense.as_strided((dense.numel(),), (1,)).view(torch.uint8).numpy()


def as_digest(checksum: str) -> Tensor:
    """Convert a checksum from hexadecimal digits to a tensor of bytes, which several processes can compare."""
    return torch.frombuffer(bytearray.fromhex(checksum), dtype=torch.uint8)
