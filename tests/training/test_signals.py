"""Signals stop a run at a checkpoint, from which it can be resumed."""

import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests import faulty
from tests.conftest import small_vae
from tests.training.continuation import NEVER, Stopping, assert_same, fitted, newest

pytestmark = [  # runs in several parts give these warnings
    pytest.mark.filterwarnings("ignore:the KL warm-up does not end within"),
    pytest.mark.filterwarnings("ignore:OneCycleLR has total_steps=20, but one step per epoch"),
]


@pytest.mark.parametrize("step", [1, 7, 8, 9])  # an epoch has three steps
@pytest.mark.parametrize(
    "way", ["eager", *(pytest.param(way, marks=pytest.mark.slow) for way in ("graph", "compiled"))]
)
def test_a_run_stopped_amid_an_epoch_goes_on_from_that_step(
    step: int, way: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if way == "graph":
        request.getfixturevalue("interpreted")
    options = {"kl_warmup": 5, "compile": way != "eager"}
    whole = fitted(faulty.regularized_vae, 5, None, 0, transform=NEVER, **options)
    _, history = fitted(faulty.regularized_vae, 5, tmp_path, 0, transform=Stopping(step), **options)
    assert history.interrupted
    assert len(history.train) == step // 3
    assert newest(tmp_path) == f"checkpoint-{step // 3:06d}-{step % 3:06d}.pt"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    went_on = fitted(faulty.regularized_vae, 5, tmp_path, 1, transform=NEVER, **options)
    assert_same(went_on, whole)


def test_a_sigterm_takes_its_usual_course_once_the_run_is_saved(tmp_path: Path) -> None:
    taken: list[str] = []
    before = signal.signal(signal.SIGTERM, lambda *_: taken.append(newest(tmp_path)))
    try:
        _, history = fitted(small_vae, 5, tmp_path, 0, transform=Stopping(4, (signal.SIGTERM,) * 2))
        assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, None)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert taken == ["checkpoint-000001-000001.pt"]
    assert history.interrupted
    assert_same(fitted(small_vae, 5, tmp_path, 1, transform=NEVER), fitted(small_vae, 5, None, 0, transform=NEVER))


@pytest.mark.parametrize(
    "signals",
    [("SIGINT", "SIGTERM"), ("SIGTERM", "SIGINT"), ("SIGINT", "SIGTERM", "SIGINT"), ("SIGTERM", "SIGTERM", "SIGINT")],
    ids="-".join,
)
def test_a_sigterm_takes_its_usual_course_whatever_else_comes(signals: tuple[str, ...], tmp_path: Path) -> None:
    taken: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: taken.append(number))
    try:
        stopping = Stopping(5, tuple(getattr(signal, name) for name in signals))
        _, history = fitted(small_vae, 5, tmp_path, 0, transform=stopping)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert taken == [signal.SIGTERM]
    assert history.interrupted
    assert_same(fitted(small_vae, 5, tmp_path, 1, transform=NEVER), fitted(small_vae, 5, None, 0, transform=NEVER))


def test_a_sigterm_takes_its_usual_course_if_the_run_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def failing(x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            signal.raise_signal(signal.SIGTERM)
            raise RuntimeError("a fault of the transform")
        return x

    taken: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: taken.append(number))
    try:
        with pytest.raises(RuntimeError, match="a fault of the transform"):
            fitted(small_vae, 5, tmp_path, 0, transform=failing)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert taken == [signal.SIGTERM]
    assert "the run failed before the SIGTERM took its course: RuntimeError: a fault of the transform" in caplog.text


def test_an_ignored_sigterm_stays_ignored(tmp_path: Path) -> None:
    """As under nohup, or in a process that inherits the setting. Ctrl-C works as usual."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        whole = fitted(small_vae, 5, None, 0, transform=NEVER)
        assert_same(fitted(small_vae, 5, tmp_path / "1", 0, transform=Stopping(4, (signal.SIGTERM,))), whole)
        _, history = fitted(small_vae, 5, tmp_path / "2", 0, transform=Stopping(4, (signal.SIGTERM, signal.SIGINT)))
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    assert history.interrupted
    assert_same(fitted(small_vae, 5, tmp_path / "2", 1, transform=NEVER), whole)


@pytest.mark.parametrize("raises", [False, True])
def test_a_sigterm_reaches_the_handler_of_another_library(raises: bool, tmp_path: Path) -> None:
    """The handler runs after the checkpoint is written, once, and may raise an error, as sys.exit does."""
    taken: list[str] = []

    def handler(*_: object) -> None:
        taken.append(newest(tmp_path))
        if raises:
            sys.exit(143)

    before = signal.signal(signal.SIGTERM, handler)
    try:
        with pytest.raises(SystemExit) if raises else nullcontext():
            fitted(small_vae, 5, tmp_path, 0, transform=Stopping(5, (signal.SIGTERM,)))
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)
    assert taken == ["checkpoint-000001-000002.pt"]
    assert_same(fitted(small_vae, 5, tmp_path, 1, transform=NEVER), fitted(small_vae, 5, None, 0, transform=NEVER))


def test_a_run_in_a_thread_leaves_signals_alone(tmp_path: Path) -> None:
    """Only the main thread may set handlers, so the handler of the script runs at once and the run goes on."""
    taken: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: taken.append(number))
    try:
        with ThreadPoolExecutor(1) as pool:
            stopping = Stopping(4, (signal.SIGTERM,))
            found = pool.submit(fitted, small_vae, 5, tmp_path, 0, transform=stopping).result()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert taken == [signal.SIGTERM]
    assert_same(found, fitted(small_vae, 5, None, 0, transform=NEVER))


def train_in_a_thread(folder: Path, epochs: int) -> None:
    thread = threading.Thread(target=faulty.train, args=(folder, epochs))
    thread.start()
    thread.join()


def test_a_sigterm_ends_a_process_that_trains_in_a_thread(tmp_path: Path) -> None:
    process = faulty.PROCESSES.Process(target=train_in_a_thread, args=(tmp_path, 1000))
    process.start()
    while faulty.newest(tmp_path) < (2, 0):
        time.sleep(0.01)
    process.terminate()
    process.join()
    assert process.exitcode == -signal.SIGTERM
    done = faulty.newest(tmp_path)[0]
    state, history = faulty.train(tmp_path, done + 1)
    expected, whole = faulty.train(None, done + 1)
    assert history.train == whole.train
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    _, history = fitted(small_vae, 5, tmp_path, 0, transform=Stopping(5, (signal.SIGINT,) * 2))
    assert history.interrupted
    assert newest(tmp_path) == "checkpoint-000001-000000.pt"
    assert_same(fitted(small_vae, 5, tmp_path, 1, transform=NEVER), fitted(small_vae, 5, None, 0, transform=NEVER))
