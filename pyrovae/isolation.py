"""Running a program without leaving a trace: its modules and the global generators are afterwards as they were."""

import random
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor, nn

from pyrovae.arguments import check_whole

Buffers = list[tuple[nn.Module, str, Tensor, Tensor]]


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Draw from generators of its own, seeded with ``seed``; without a seed, from the global ones.

    With a seed, the global generators of torch, NumPy and Python are afterwards as they were.

    Raises:
        TypeError: If the seed is no integer.
        ValueError: If it is negative or too large.
    """
    if seed is None:
        yield
        return
    check_whole(seed=seed)
    if not 0 <= seed < 2**64:
        raise ValueError(f"a seed lies between 0 and 2^64 - 1, got {seed}")
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(int(seed))
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


@contextmanager
def isolated(*programs: Callable[..., Any], seed: int) -> Iterator[None]:
    """Runs programs in evaluation mode without gradients, and puts back training modes, buffers and generators."""
    modules = {module for owner in owners(*programs) for module in owner.modules()}
    training = {module: module.training for module in modules}
    buffers = save_buffers(modules)
    for module in modules:
        module.training = False
    try:
        with seeded(seed), torch.no_grad(), poutine.block():
            yield
    finally:
        for module, mode in training.items():
            module.training = mode
        restore_buffers(buffers)


def save_buffers(modules: Iterable[nn.Module]) -> Buffers:
    """The buffers of modules, not of their children, with copies of their values."""
    return [
        (module, name, buffer, buffer.detach().clone())
        for module in modules
        for name, buffer in module.named_buffers(recurse=False)
    ]


def restore_buffers(buffers: Buffers) -> None:
    """Puts buffers back as they were, also those in whose place a module has put another tensor."""
    for module, name, buffer, value in buffers:
        buffer.data.copy_(value)
        module._buffers[name] = buffer


def owners(*programs: Callable[..., Any]) -> list[nn.Module]:
    """The modules that programs are, or are methods of, whatever handlers they are wrapped in."""
    candidates = []
    for program in programs:
        inner: Any = poutine.unwrap(program)
        while isinstance(inner, partial):
            inner = poutine.unwrap(inner.func)
        candidates.append(getattr(inner, "__self__", inner))
    return [candidate for candidate in candidates if isinstance(candidate, nn.Module)]


def program_device(*programs: Callable[..., Any], default: torch.device) -> torch.device:
    """The device of the first parameter that the programs' modules have."""
    parameters = (parameter for owner in owners(*programs) for parameter in owner.parameters())
    return next((parameter.device for parameter in parameters), default)


def fresh_seed() -> int:
    """A seed from the operating system, which moves no generator."""
    return secrets.randbits(32)
