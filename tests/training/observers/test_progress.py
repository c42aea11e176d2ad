"""Logs and progress bars of a run are right, and silent unless requested."""

import ast
import logging
import os
import re
import signal
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import pyrovae as pv
from tests.conftest import small_vae
from tests.watched import fit, messages


def test_a_run_is_logged(tmp_path: Path, x: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "pyrovae")
    vae = small_vae()
    fit(vae, x[:8], x[8:], epochs=2, checkpoint=tmp_path, device="cpu")
    count = sum(parameter.numel() for parameter in vae.parameters())
    first, second = (tmp_path / f"checkpoint-00000{epoch}-000000.pt" for epoch in (1, 2))
    about = f"training VAE ({count} parameters) by Trace_ELBO on 8 data of shape (6,), 4 validation data, on cpu, from"
    assert messages(caplog, logging.DEBUG) == [
        f"wrote {tmp_path / 'checkpoint-000000-000000.pt'}",
        f"{about} epoch 0, step 0",
        "epoch 0: train -#, valid -#, # s",
        f"wrote {first}",
        "epoch 1: train -#, valid -#, # s",
        f"wrote {second}",
        "trained 2 epochs; the module has the weights of epoch 1",
    ]
    caplog.clear()
    fit(vae, x[:8], x[8:], epochs=3, checkpoint=tmp_path, device="cpu")
    assert messages(caplog) == [
        f"continuing from {second}",
        f"{about} epoch 2, step 0",
        "epoch 2: train -#, valid -#, # s",
        "trained 3 epochs; the module has the weights of epoch 2",
    ]


@pytest.mark.usefixtures("interpreted")
def test_the_end_of_a_run_is_logged(tmp_path: Path, x: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    def stopping(x: Tensor, calls: list[int] = []) -> Tensor:  # noqa: B006
        calls.append(0)
        if len(calls) == 3 + 3 * 1 + 2:  # the check, an epoch, and the second step
            signal.raise_signal(signal.SIGINT)
        return x

    caplog.set_level("INFO", "pyrovae")
    fit(small_vae(), x, epochs=9, batch_size=4, checkpoint=tmp_path, compile=True, transform=stopping)
    told = messages(caplog)
    assert told[1:3] == ["compiled for a batch of 4 in # s", "epoch 0: train -#, # s"]
    assert told[3:] == [
        "stopped by SIGINT in epoch 1, step 2",
        "trained 1 epochs; the module has the weights of the last step",
    ]
    caplog.clear()
    history = fit(small_vae(), x[:6], 1 - x[:6], epochs=500, learning_rate=0.1, patience=2)
    assert messages(caplog)[-2:] == [
        "stopped because the bound on the validation data has not improved for 2 epochs",
        f"trained {len(history.train)} epochs; the module has the weights of epoch {history.best_epoch}",
    ]


def test_nothing_is_on_the_screen_unless_asked_for(
    tmp_path: Path, vae: pv.VAE, x: Tensor, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's
    pv.fit(vae, x, epochs=2, checkpoint=tmp_path / "kept", tensorboard=tmp_path / "board")
    logging.getLogger("pyrovae.training").warning("heard by nobody")
    pv.evaluation.evaluate(vae.model, vae.guide, x, 5)
    pv.evaluation.nuts(vae.model, vae.guide, x[:2], 20, warmup_steps=20, num_chains=2, seed=0)
    assert capfd.readouterr() == ("", "")


def test_the_package_prints_nothing_itself() -> None:
    for path in Path(pv.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.Name) and node.id == "print"), path
            if isinstance(node, ast.Attribute) and node.attr in ("stdout", "stderr", "__stdout__", "__stderr__"):
                assert path.name == "nuts.py", path  # this module checks whether the output is a terminal


@contextmanager
def as_stderr(is_terminal: bool) -> Iterator[Callable[[], str]]:
    """Return a standard error that is a pseudo-terminal or a pipe, and a function that reads its text."""
    here, there = os.openpty() if is_terminal else os.pipe()
    os.set_blocking(here, False)
    if is_terminal:
        termios.tcsetwinsize(there, (24, 120))

    def read() -> str:
        parts = []
        with suppress(BlockingIOError):  # there is no more
            while True:
                parts.append(os.read(here, 1024))
        return b"".join(parts).decode()

    with os.fdopen(there, "w", buffering=1) as stream, redirect_stderr(stream):
        yield read
    os.close(here)


def pause(seconds: float) -> Callable[[Tensor], Tensor]:
    """Return a slow transform."""

    def transform(x: Tensor) -> Tensor:
        time.sleep(seconds)
        return x

    return transform


def test_on_a_terminal_a_bar_shows_bounds_rate_and_time_left(x: Tensor) -> None:
    with as_stderr(is_terminal=True) as read:
        history = pv.fit(small_vae(), x, x, epochs=12, batch_size=6, transform=pause(0.05))
        bars = read().rstrip().split("\r")
    pattern = r"Trace_ELBO: +\d+%\|.*\| \d+/24 \[00:0\d<00:0\d, +\d+\.\d+step/s, train -\d+\.\d\d, valid -\d+\.\d\d\]"
    assert sum(re.match(pattern, bar) is not None for bar in bars) > 3, bars
    assert "24/24" in bars[-1]
    assert f"train {history.train[-1]:.2f}, valid {history.valid[-1]:.2f}" in bars[-1]


def test_the_rate_of_a_run_that_goes_on_is_that_of_its_own_steps(tmp_path: Path, x: Tensor) -> None:
    options: Any = {"checkpoint": tmp_path, "checkpoint_every": 500, "batch_size": 1}
    fit(small_vae(), x, epochs=10, transform=pause(0), **options)
    with as_stderr(is_terminal=True) as read:
        pv.fit(small_vae(), x, epochs=12, transform=pause(0.05), **options)
        rates = [float(rate) for rate in re.findall(r"(\d+\.\d+)step/s", read())]
    assert rates
    assert max(rates) < 20


def test_in_a_pipe_there_is_no_bar(vae: pv.VAE, x: Tensor) -> None:
    for is_terminal, progress in ((False, True), (True, False)):
        with as_stderr(is_terminal) as read:
            pv.fit(vae, x, epochs=3, transform=pause(0.05), progress=progress)
            pv.evaluation.evaluate(vae.model, vae.guide, x, 5, progress=progress)
            assert read() == ""
