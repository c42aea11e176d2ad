"""Several processes, of one machine or of many, that compute one thing together, by torch's own process groups.

``torchrun`` starts the processes and tells each in the environment which one it is. In a script that has joined them,
:func:`pyrovae.fit` and :func:`pyrovae.evaluation.evaluate` share their work out; without ``torchrun`` the same script
is one process. Every process runs the whole script and gets all results; printing and writing are for the first.
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
    """Joins the processes that ``torchrun`` has started, for as long as the context lasts; alone, it does nothing.

    They talk by gloo, and on CUDA devices by NCCL. Each takes the device of its rank on its machine, ``LOCAL_RANK``.

    Args:
        device: Where to compute; ``"auto"`` is a CUDA device if there is one, else the CPU.

    Raises:
        ValueError: If the device is not there, or the machine has fewer CUDA devices than processes.

    Returns:
        A context.

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
                f"this machine has {devices} CUDA devices and at least {local + 1} processes; start one for each "
                f"device (torchrun --nproc-per-node={devices}), or compute on the CPU (device='cpu')"
            )
        torch.cuda.set_device(local)
    place = {"store": _store(), "rank": int(os.environ["RANK"]), "world_size": int(os.environ["WORLD_SIZE"])}
    dist.init_process_group("cpu:gloo,cuda:nccl" if is_cuda else "gloo", **place)
    yield
    dist.destroy_process_group()  # not after an error, when the others would have to be waited for


def size() -> int:
    """The number of processes.

    Returns:
        1 for a process that has joined no others.

    Example:
        >>> import pyrovae as pv
        >>> pv.parallel.size()
        1
    """
    return dist.get_world_size() if _is_joined() else 1


def rank() -> int:
    """Which process this is.

    Returns:
        0 for the first, and for one that has joined no others.

    Example:
        >>> import pyrovae as pv
        >>> pv.parallel.rank()
        0
    """
    return dist.get_rank() if _is_joined() else 0


def is_first() -> bool:
    """Whether this is the process that prints and writes.

    Returns:
        Whether its rank is 0.

    Example:
        >>> import pyrovae as pv
        >>> if pv.parallel.is_first():
        ...     print("once, however many processes there are")
        once, however many processes there are
    """
    return rank() == 0


def in_first(call: Callable[[], Result]) -> Result:
    """Calls in the first process, and returns the result, or raises the error, in all.

    Args:
        call: What only one process is to do, such as a download. Its result is sent as ``torch.save`` writes it.

    Returns:
        Its result.

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
    """The results of a function for some items, in their order; each process computes some, and gets all.

    An error is raised in all of them. Tensors among the results come back on the CPU, if there are several processes.
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
    """The largest of the numbers that the processes give."""
    if size() == 1:
        return number
    tensor = torch.tensor(number)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return int(tensor)


def check_same(what: str, tensors: Iterable[Tensor]) -> None:
    """Refuses tensors that are not the same in all processes.

    Raises:
        ValueError: If they are not.
    """
    if size() == 1:
        return
    found: list[Any] = [None] * size()
    dist.all_gather_object(found, fingerprint(tuple(tensor.reshape(-1) for tensor in tensors)))
    if others := [rank for rank, other in enumerate(found) if other != found[0]]:
        raise ValueError(
            f"{what} are not in process {others[0]} what they are in the first; make them from the same seed in all, "
            f"or in the first for all (pyrovae.parallel.in_first)"
        )


def share_generators() -> None:
    """Gives torch's generators, of the CPU and of the CUDA device in use, the states that they have in the first."""
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
    """Where the processes find each other.

    As of torch 2.15, torchrun keeps one store for all restarts, unless it is told to make a new one each time, and the
    addresses of the processes that are gone would be found in it; so here each restart has names of its own.
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
    """What a call returns or raises, to be sent; pickle by itself does not know all dtypes."""
    try:
        outcome: tuple[Any, Exception | None] = call(), None
    except Exception as error:  # which all processes are to raise
        outcome = None, error
    buffer = io.BytesIO()
    torch.save(outcome, buffer)
    return buffer.getvalue()


def _result(sent: bytes) -> Any:
    value, error = torch.load(io.BytesIO(sent), map_location="cpu", weights_only=False)  # from a process of ours
    if error is not None:
        raise error
    return value
