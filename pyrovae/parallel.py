"""Computations in several processes, on one or more machines, by torch's process groups.

``torchrun`` starts the processes and sets environment variables that identify them. Inside the context manager
:func:`join`, the functions :func:`pyrovae.fit` and :func:`pyrovae.evaluation.evaluate` divide their work among the
processes. Without ``torchrun`` the same script runs in a single process. Every process runs the whole script and gets
all results; only the first process should print and write files.
"""

import io
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pyrovae.arguments import as_device, fingerprint

__all__ = ["in_first", "is_first", "join", "rank", "size"]

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def join(device: str | torch.device = "auto") -> Iterator[None]:
    """Connect the processes that ``torchrun`` has started, until the context ends. Without ``torchrun``, do nothing.

    The processes communicate by gloo, and on CUDA devices by NCCL. With CUDA, each process uses the device whose index
    is ``LOCAL_RANK``, the rank of the process on its machine.

    Args:
        device: Device of the computation; ``"auto"`` is a CUDA device if there is one, else the CPU.

    Raises:
        ValueError: If the device is not available, or the machine has fewer CUDA devices than processes.

    Returns:
        A context manager.

    Example:
        >>> import pyrovae as pv
        >>> with pv.parallel.join():
        ...     pv.parallel.size(), pv.parallel.is_first()  # under torchrun --nproc-per-node=2: (2, True), (2, False)
        (1, True)
    """
    if _is_joined() or not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        yield
        return
    is_cuda = as_device(device).type == "cuda"
    if is_cuda:
        local, devices = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= devices:
            raise ValueError(
                f"this machine has {devices} CUDA devices for at least {local + 1} processes. Start one process for "
                f"each device (torchrun --nproc-per-node={devices}), or compute on the CPU (device='cpu')."
            )
        torch.cuda.set_device(local)
    place = {"store": _store(), "rank": int(os.environ["RANK"]), "world_size": int(os.environ["WORLD_SIZE"])}
    dist.init_process_group("cpu:gloo,cuda:nccl" if is_cuda else "gloo", **place)
    yield
    dist.destroy_process_group()  # skipped after an error, when it would wait for the other processes


def size() -> int:
    """Return the number of processes.

    Returns:
        Number of processes; 1 if the process has not joined others.

    Example:
        >>> import pyrovae as pv
        >>> pv.parallel.size()
        1
    """
    return dist.get_world_size() if _is_joined() else 1


def rank() -> int:
    """Return the rank of this process.

    Returns:
        Rank; 0 for the first process, and for a process that has not joined others.

    Example:
        >>> import pyrovae as pv
        >>> pv.parallel.rank()
        0
    """
    return dist.get_rank() if _is_joined() else 0


def is_first() -> bool:
    """Return whether this process is the one that prints and writes files.

    Returns:
        True if its rank is 0.

    Example:
        >>> import pyrovae as pv
        >>> if pv.parallel.is_first():
        ...     print("printed once, for any number of processes")
        printed once, for any number of processes
    """
    return rank() == 0


def in_first(call: Callable[[], Result]) -> Result:
    """Call a function in the first process only, and return its result in all processes.

    If the function raises an error, all processes raise this error.

    Args:
        call: Function that only one process should call, such as a download. ``torch.save`` serializes its result.

    Returns:
        The result of the function.

    Example:
        >>> import pyrovae as pv
        >>> splits = pv.parallel.in_first(pv.data.digits)
        >>> splits.name
        'digits'
    """
    if size() == 1:
        return call()
    outcome = [_outcome(call) if is_first() else b""]
    dist.broadcast_object_list(outcome, src=0)
    return _result(outcome[0])


def by_turns(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield the results of a function for items, in the order of the items.

    Each process computes some of the results and receives all. An error of the function is raised in all processes. If
    there are several processes, tensors in the results are moved to the CPU.
    """
    if size() == 1:
        yield from map(function, items)
        return
    items = iter(items)
    while turn := list(islice(items, size())):
        mine = _outcome(partial(function, turn[rank()])) if rank() < len(turn) else b""
        outcomes = [b""] * size()
        dist.all_gather_object(outcomes, mine)
        yield from map(_result, outcomes[: len(turn)])


def largest(number: int) -> int:
    """Return the largest of the numbers that the processes pass to this function."""
    if size() == 1:
        return number
    tensor = torch.tensor(number)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return int(tensor)


def check_same(what: str, tensors: Iterable[Tensor]) -> None:
    """Raise ValueError if tensors are not the same in all processes.

    Raises:
        ValueError: If the tensors differ.
    """
    if size() == 1:
        return
    found: list[Any] = [None] * size()
    dist.all_gather_object(found, fingerprint(tuple(tensor.reshape(-1) for tensor in tensors)))
    if others := [rank for rank, other in enumerate(found) if other != found[0]]:
        raise ValueError(
            f"{what} differ between process {others[0]} and the first process. Create them from the same seed in all "
            f"processes, or only in the first (pyrovae.parallel.in_first)."
        )


def share_generators() -> None:
    """Copy the states of torch's generators (CPU and current CUDA device) from the first process to all processes."""
    if size() == 1:
        return
    state = torch.get_rng_state()
    dist.broadcast(state, src=0)
    torch.set_rng_state(state)
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state = torch.cuda.get_rng_state()
        dist.broadcast(state, src=0)
        torch.cuda.set_rng_state(state)


def _store() -> Any:
    """Return the store by which the processes find each other.

    Since torch 2.15, torchrun by default keeps one store for all restarts. Such a store still holds the addresses of
    processes that have ended, so each restart puts its own prefix before its keys in the store.
    """
    is_kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    host, port, number = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), int(os.environ["WORLD_SIZE"])
    is_master = os.environ["RANK"] == "0" and not is_kept
    store = dist.TCPStore(host, port, number, is_master)  # type: ignore[attr-defined]
    if not is_kept:
        return store
    restart = os.environ["TORCHELASTIC_RESTART_COUNT"]
    return dist.PrefixStore(f"restart {restart}", store)  # type: ignore[attr-defined]


def _is_joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def _outcome(call: Callable[[], Any]) -> bytes:
    """Call a function, and serialize its result or error by ``torch.save``.

    ``torch.save`` is used because pickle does not support all dtypes.
    """
    try:
        outcome: tuple[Any, Exception | None] = call(), None
    except Exception as error:  # all processes raise it
        outcome = None, error
    buffer = io.BytesIO()
    torch.save(outcome, buffer)
    return buffer.getvalue()


def _result(sent: bytes) -> Any:
    value, error = torch.load(io.BytesIO(sent), map_location="cpu", weights_only=False)  # sent by a process of this run
    if error is not None:
        raise error
    return value
