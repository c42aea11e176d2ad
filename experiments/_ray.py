"""Cells of a sweep in parallel on Ray: on this machine with nothing to start, or on a cluster by its address."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import xarray as xr

from experiments._cells import Compute, Executor, Settings


def is_installed() -> bool:
    """Whether Ray is there."""
    return find_spec("ray") is not None


def on_ray(
    address: str | None = None, *, cores: int | None = None, cpus_per_cell: int = 1, gpus_per_cell: int = 0
) -> Executor:
    """Makes what computes cells as Ray tasks.

    A task whose worker is killed (by the system for want of memory, with its node, by a signal) fails as one that
    raises: its exception is the cell's outcome. Ray would try some of them again by itself, but would not say so.

    Args:
        address: Of a running cluster, such as ``"10.0.0.1:6379"``; by default Ray is started on this machine, listening
            to this machine alone, and stopped afterwards. A Ray that this process is connected to is used as it is.
        cores: How many of this machine's cores to use; by default all.
        cpus_per_cell: Cores that a task occupies.
        gpus_per_cell: GPUs that a task occupies.
    """

    def execute(
        compute: Compute, cells: Mapping[str, Settings], shared: Any
    ) -> Iterator[tuple[str, xr.Dataset | Exception]]:
        with _connected(address, cores) as ray:
            remote = ray.remote(num_cpus=cpus_per_cell, num_gpus=gpus_per_cell, max_retries=0)(compute)
            everywhere = ray.put(shared)
            tasks = {remote.options(name=name).remote(cell, everywhere): name for name, cell in cells.items()}
            running = list(tasks)
            while running:
                (task,), running = ray.wait(running)
                outcome: xr.Dataset | Exception
                try:
                    outcome = ray.get(task)
                except ray.exceptions.RayTaskError as error:
                    outcome = error.cause
                except ray.exceptions.RayError as error:
                    outcome = error
                yield tasks.pop(task), outcome

    return execute


@contextmanager
def _connected(address: str | None, cores: int | None) -> Iterator[Any]:
    """Ray, connected to a cluster or to one that lives as long as this context."""
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # under uv run, workers would make environments anew
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        yield ray
        return
    logging.getLogger("ray").setLevel(logging.ERROR)
    where: dict[str, Any] = {"address": address}
    if address is None:
        where = {"address": "local", "num_cpus": cores, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield ray
    finally:
        ray.shutdown()
