"""Two joined processes without torchrun, whose imports would take longer than the tests."""

import os
import pickle
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import pyro
import torch

import pyrovae as pv
from tests.faulty import PROCESSES


def in_each(size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """Call a function in several joined processes, and return the result of each. An error is raised."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes, started = [], []
    for rank in range(size):
        told, tells = PROCESSES.Pipe(duplex=False)
        place = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        process = PROCESSES.Process(target=_run, args=(tells, place, function, args), daemon=True)
        process.start()
        tells.close()
        pipes.append(told)
        started.append(process)
    outcomes = [pickle.loads(pipe.recv_bytes()) for pipe in pipes]
    for process in started:
        process.join()
    for error in outcomes:
        if isinstance(error, Exception):
            raise error
    return outcomes


def _run(tells: Connection, place: dict[str, Any], function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ |= {name: str(value) for name, value in place.items()}
    torch.set_num_threads(1)
    pyro.set_rng_seed(place["RANK"])  # generators differ, so agreement is no accident
    try:
        with pv.parallel.join("cpu"):
            result = function(*args)
    except Exception as error:
        result = error
    tells.send_bytes(pickle.dumps(result))  # by value, as the process that made it is gone when it is read
