"""Signals stop a run at a checkpoint, from which it continues."""

import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests import faulty
from tests.conftest import small_vae
from tests.training.continuation import NEVER, Stopping, assert_same, fitted, newest

pytestmark = [  # of runs that are made in parts
    pytest.mark.filterwarnings("ignore:the KL warm-up does not end within"),
    pytest.mark.filterwarnings("ignore:OneCycleLR has total_steps=20, and one step per epoch"),
]


@pytest.mark.parametrize("step", [1, 7, 8, 9])  # of three steps an epoch
@pytest.mark.parametrize("way", ["eager", "graph", pytest.param("compiled", marks=pytest.mark.slow)])
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


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    _, history = fitted(small_vae, 5, tmp_path, 0, transform=Stopping(5, (signal.SIGINT,) * 2))
    assert history.interrupted
    assert newest(tmp_path) == "checkpoint-000001-000000.pt"
    assert_same(fitted(small_vae, 5, tmp_path, 1, transform=NEVER), fitted(small_vae, 5, None, 0, transform=NEVER))
