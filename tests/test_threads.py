"""Calls from several threads wait for each other, and forked and spawned processes compute the same numbers."""

import copy
import multiprocessing
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

import pyrovae as pv
from pyrovae._compilation import graphs
from pyrovae.isolation import LOCK
from tests.conftest import small_vae
from tests.faulty import PROCESSES

NUM_CALLS = 6


def data() -> Tensor:
    return torch.bernoulli(torch.full((20, 6), 0.4), generator=torch.Generator().manual_seed(0))


def seeded_vae() -> pv.VAE:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return small_vae()


def evaluated(vae: pv.VAE) -> list[float]:
    options: dict[str, Any] = {"seed": 0, "memory": 2**14, "progress": False}
    return pv.evaluation.evaluate(vae.model, vae.guide, data(), 100, **options).log_likelihood.values.tolist()


def annealed(vae: pv.VAE) -> list[float]:
    options: dict[str, Any] = {"num_temperatures": 3, "seed": 0, "progress": False}
    return pv.evaluation.ais(vae.model, vae.guide, data(), 4, **options).log_likelihood.values.tolist()


def active(vae: pv.VAE) -> list[float]:
    return pv.evaluation.active_units(vae.guide, data(), seed=0)["z"].values.ravel().tolist()


def trained(vae: pv.VAE) -> list[float]:
    return pv.fit(copy.deepcopy(vae), data(), epochs=2, batch_size=7, seed=0, progress=False).train


CALLS = [evaluated, annealed, active, trained]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_calls_from_threads_have_the_numbers_of_one(call: Callable[[pv.VAE], list[float]]) -> None:
    vae = seeded_vae()
    alone = call(vae)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(call, [vae] * NUM_CALLS)) == [alone] * NUM_CALLS


def test_different_calls_from_threads() -> None:
    vae = seeded_vae()
    alone = [call(vae) for call in CALLS]
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(call, vae) for _ in range(3) for call in CALLS]
        assert [call.result() for call in calls] == alone * 3


def test_runs_without_a_seed_do_not_disturb_each_other() -> None:
    """Pyro's handlers are global: two runs at once would record the sites of each other."""
    before = len(pyro.poutine.runtime._PYRO_STACK)
    running, most = 0, 0
    guard = threading.Lock()

    def watch(x: Tensor) -> Tensor:
        nonlocal running, most
        with guard:
            running += 1
            most = max(most, running)
        time.sleep(0.002)
        with guard:
            running -= 1
        return x

    def run(vae: pv.VAE) -> int:
        return len(pv.fit(vae, data(), epochs=2, batch_size=7, transform=watch, progress=False).train)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, [small_vae() for _ in range(4)])) == [2] * 4
    assert most == 1
    assert len(pyro.poutine.runtime._PYRO_STACK) == before


def test_threads_leave_the_generators_alone() -> None:
    def noisy(x: Tensor) -> Tensor:
        np.random.rand()
        random.random()
        return x

    def run(vae: pv.VAE) -> None:
        pv.fit(vae, data(), epochs=3, batch_size=7, seed=0, transform=noisy, progress=False)

    vaes = [small_vae() for _ in range(8)]
    before = np.random.get_state()[1].copy(), random.getstate(), torch.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, vaes))
    assert (np.random.get_state()[1] == before[0]).all()
    assert random.getstate() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


@pytest.mark.usefixtures("interpreted")
def test_tracing_holds_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracing replaces functions of torch and Pyro, so no other thread may run programs meanwhile."""
    own, blocked = graphs.without_values, list[bool]()

    def try_to_acquire() -> bool:
        if acquired := LOCK.acquire(blocking=False):
            LOCK.release()
        return acquired

    @contextmanager
    def watched() -> Iterator[None]:
        with own():
            with ThreadPoolExecutor(1) as other:
                blocked.append(not other.submit(try_to_acquire).result())
            yield

    monkeypatch.setattr(graphs, "without_values", watched)
    vae = seeded_vae()
    svi = pv.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO(), compile=True)
    for _ in range(3):
        svi.step(data())
    assert blocked
    assert all(blocked)


def test_two_threads_on_one_folder(tmp_path: Path) -> None:
    vae, x = seeded_vae(), data()

    def run(_: int) -> list[float]:
        options: dict[str, Any] = {"seed": 0, "progress": False, "checkpoint": tmp_path}
        return pv.evaluation.evaluate(vae.model, vae.guide, x, 100, **options).log_likelihood.values.tolist()

    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(run, range(4))
    assert others == [first] * 3


def all_numbers(_: int = 0) -> list[list[float]]:
    torch.set_num_threads(1)
    return [call(seeded_vae()) for call in CALLS]


def numbers_before_and_in_workers(method: str) -> list[list[list[float]]]:
    expected = all_numbers()
    with multiprocessing.get_context(method).Pool(2) as pool:
        return [expected, *pool.map(all_numbers, range(2))]


@pytest.mark.parametrize(
    "method", ["fork", *(pytest.param(name, marks=pytest.mark.slow) for name in ("spawn", "forkserver"))]
)
def test_worker_processes_have_the_numbers_of_their_parent(method: str) -> None:
    """The parent is a new process, since torch refuses gradients in a fork of a process whose gradients had threads."""
    with ProcessPoolExecutor(1, mp_context=PROCESSES) as parents:
        expected, *found = parents.submit(numbers_before_and_in_workers, method).result()
    assert found == [expected] * 2
