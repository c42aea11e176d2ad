"""One run at a time uses a folder of checkpoints, and a lock does not outlive its process."""

import errno
import fcntl
import math
import multiprocessing
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae.folder_lock import FolderLock
from tests import faulty
from tests.conftest import small_vae


def train(folder: Path, epochs: int = 2, **options: Any) -> pv.History:
    x = torch.bernoulli(torch.full((12, 6), 0.4), generator=torch.Generator().manual_seed(0))
    return pv.fit(small_vae(), x, epochs=epochs, seed=0, progress=False, checkpoint=folder, **options)


def test_a_second_run_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    partial = tmp_path / ".checkpoint-000001-000000.pt.77.partial"
    lock = FolderLock(tmp_path)
    lock.acquire()
    partial.touch()
    with pytest.raises(
        pv.CheckpointError,
        match=rf"another run uses the folder .*\(process {os.getpid()} on .*checkpoint_wait=, or give each run its",
    ):
        train(tmp_path)
    assert partial.exists()
    lock.release()
    assert len(train(tmp_path).train) == 2
    assert not list(tmp_path.glob(".*"))


def test_a_run_that_is_told_to_wait_waits(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    lock.acquire()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(train, tmp_path, checkpoint_wait=math.inf)
        time.sleep(1)
        assert not waiting.done()
        lock.release()
        assert len(waiting.result(timeout=60).train) == 2


def test_a_wait_ends(tmp_path: Path) -> None:
    first, second = FolderLock(tmp_path), FolderLock(tmp_path, wait=0.3)
    first.acquire()
    started = time.monotonic()
    with pytest.raises(BlockingIOError):
        second.acquire()
    assert time.monotonic() - started >= 0.3
    first.release()
    second.acquire()
    second.release()


class Failing:
    """A transform that fails in its second call for a training batch."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += torch.is_grad_enabled()
        if self.calls == 2:
            raise RuntimeError("a fault of the transform")
        return x


def test_a_run_that_fails_releases_the_folder(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a fault of the transform") as error:
        train(tmp_path, transform=Failing())
    assert error.value.__traceback__ is not None  # the traceback keeps the frames of the run alive
    FolderLock(tmp_path).acquire()


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
def test_a_killed_run_leaves_no_lock(name: str, tmp_path: Path) -> None:
    process, told = faulty.start(tmp_path, 1000, kl_warmup=0)
    told.recv()
    while len(list(tmp_path.glob("checkpoint-*.pt"))) < 2:
        time.sleep(0.01)
    with pytest.raises(pv.CheckpointError, match=f"process {process.pid} on"):
        faulty.train(tmp_path, 1000, kl_warmup=0)
    os.kill(process.pid, getattr(signal, name))
    process.join()
    assert len(faulty.train(tmp_path, 1, kl_warmup=0)[1].train) >= 1


def hold(folder: Path, count: int, tells: Connection) -> None:
    """Take and release the lock, and count in a file. A second owner would disturb the count."""
    number = folder / "number"
    for _ in range(count):
        lock = FolderLock(folder, wait=60)
        lock.acquire()
        value = int(number.read_text())
        time.sleep(0.001)
        number.write_text(str(value + 1))
        lock.release()
    tells.send("done")


def test_processes_take_turns(tmp_path: Path) -> None:
    (tmp_path / "number").write_text("0")
    processes = multiprocessing.get_context("fork")
    told, tells = processes.Pipe(duplex=False)
    started = [processes.Process(target=hold, args=(tmp_path, 20, tells)) for _ in range(3)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    assert (tmp_path / "number").read_text() == "60"
    assert told.poll()


def test_a_child_process_does_not_keep_the_lock(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    lock.acquire()
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(30,))
    child.start()
    lock.release()
    other = FolderLock(tmp_path)
    other.acquire()
    other.release()
    child.kill()
    child.join()


def test_a_file_system_without_locks_gives_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(_: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("pyrovae.folder_lock._lock", unsupported)
    with pytest.warns(
        UserWarning, match="does not support locks .*Function not implemented.* no other run uses this folder"
    ):
        assert len(train(tmp_path).train) == 2


def test_a_file_system_that_locks_only_what_is_open_for_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[int] = []

    def as_on_nfs(descriptor: int) -> None:
        modes.append(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE)
        if modes[-1] == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr("pyrovae.folder_lock._lock", as_on_nfs)
    lock = FolderLock(tmp_path)
    lock.acquire()
    assert modes == [os.O_RDONLY, os.O_RDWR]
    lock.release()
    assert not list(tmp_path.iterdir())
