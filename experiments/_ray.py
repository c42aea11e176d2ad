"""Parallel computation of the cells of a sweep by Ray, on this machine or on a running cluster."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import xarray as xr

from experiments._cells import Compute, Executor, Settings


def is_installed() -> bool:
    """Return whether Ray is installed."""
    return find_spec("ray") is not None


def on_ray(
    address: str | None = None, *, cores: int | None = None, cpus_per_cell: int = 1, gpus_per_cell: int = 0
) -> Executor:
    """Return an executor that computes cells as Ray tasks.

    A task fails if its worker is killed, for example by the operating system when memory runs out. The exception is
    then the result of the cell. Ray's own retries are switched off because Ray does not report them.

    Args:
        address: Address of a running cluster, such as ``"10.0.0.1:6379"``. By default Ray is started on this machine,
            accepts connections from this machine only, and is stopped afterwards. An existing connection of this
            process to Ray is used as it is.
        cores: Number of cores of this machine to use; by default all.
        cpus_per_cell: Cores per task.
        gpus_per_cell: GPUs per task.
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
    """Yield Ray, connected to a cluster or to a local instance that is stopped when the context ends."""
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # under uv run, workers would create new environments
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
