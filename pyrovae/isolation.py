"""Running a program without leaving a trace: its modules and the global generators are afterwards as they were."""

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro import poutine
from torch import nn


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Draws from generators of its own, seeded with ``seed``; without a seed, from the global ones."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


@contextmanager
def isolated(*programs: Callable[..., Any], seed: int) -> Iterator[None]:
    """Runs programs in evaluation mode without gradients, and puts back training modes, buffers and generators."""
    modules = {module for owner in owners(*programs) for module in owner.modules()}
    training = {module: module.training for module in modules}
    buffers = [(buffer, buffer.detach().clone()) for module in modules for buffer in module.buffers(recurse=False)]
    for module in modules:
        module.training = False
    try:
        with seeded(seed), torch.no_grad(), poutine.block():
            yield
    finally:
        for module, mode in training.items():
            module.training = mode
        for buffer, before in buffers:
            buffer.data.copy_(before)


def owners(*programs: Callable[..., Any]) -> list[nn.Module]:
    """The modules that programs are, or are methods of, whatever handlers they are wrapped in."""
    unwrapped = (poutine.unwrap(program) for program in programs)
    candidates = (getattr(program, "__self__", program) for program in unwrapped)
    return [candidate for candidate in candidates if isinstance(candidate, nn.Module)]


def fresh_seed() -> int:
    """A seed from the operating system, which moves no generator."""
    return secrets.randbits(32)
