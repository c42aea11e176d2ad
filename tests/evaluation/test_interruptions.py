"""Ctrl-C and SIGTERM in the middle of a batch: the finished rows are returned, or kept in the folder."""

import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from pyrovae.evaluation import checkpoint
from tests.evaluation.interrupted import (
    ESTIMATORS,
    NUM_DATA,
    OTHERS,
    assert_same,
    averaged,
    compute,
    num_rows,
    run_until_a_signal,
    sending,
)
from tests.faulty import PROCESSES

LONG = {"refined", "log_likelihood", "ais", "bdmc", "inference_gaps", "rqmc", "to_inference_data"}
NAMES = [name for name in (*ESTIMATORS, *OTHERS) if name not in ("nuts", "compiled")]  # NUTS has a single batch
PER_RUN = {"simulation_based_calibration"}  # its p-values are of all rows

pytestmark = pytest.mark.filterwarnings("ignore:the evaluation was interrupted")


def of_rows(whole: xr.Dataset, part: xr.Dataset, name: str) -> tuple[xr.Dataset, xr.Dataset, int]:
    """Return the rows of a whole result that a part has, the part, and their number."""
    dim = "simulation" if name in PER_RUN else "datum"
    columns = [column for column in part.data_vars if dim in part[column].dims]
    return whole[columns].isel({dim: slice(part.sizes[dim])}), part[columns], part.sizes[dim]


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in LONG else ()) for n in NAMES])
def test_ctrl_c_returns_the_finished_rows_of_every_estimator(name: str, tmp_path: Path) -> None:
    whole = compute(name, None)
    with sending(signal.SIGINT, after=1), pytest.warns(UserWarning, match="the evaluation was interrupted, and"):
        part = compute(name, tmp_path)
    expected, found, count = of_rows(whole, part, name)
    assert 0 < count < whole.sizes["simulation" if name in PER_RUN else "datum"]
    assert found.equals(expected)
    assert num_rows(tmp_path) == count
    assert_same(compute(name, tmp_path), whole)


@pytest.mark.parametrize("name", ["evaluate", "nuts"])
def test_ctrl_c_before_the_first_row(name: str, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with sending(signal.SIGINT, after=0), pytest.raises(KeyboardInterrupt):
        compute(name, tmp_path)
    assert num_rows(tmp_path) == 0
    assert signal.getsignal(signal.SIGTERM) is before
    assert_same(compute(name, tmp_path), compute(name, None))


@pytest.mark.parametrize(  # of 24 batches for each of three draws of the global latents
    "after", [24, *(pytest.param(after, marks=pytest.mark.slow) for after in (1, 25, 30))]
)
def test_ctrl_c_returns_the_finished_draws_of_the_global_latents(after: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {"seed": 1, "memory": 2**9, "progress": False}
    whole = averaged(None, **options)
    with sending(signal.SIGINT, after=after), pytest.warns(UserWarning, match="the evaluation was interrupted, and"):
        part = averaged(tmp_path, **options)
    assert part.sizes["draw"] == part.attrs["num_draws"] == 1
    assert part.sizes["datum"] == min(after, NUM_DATA)
    rows = whole.isel(draw=slice(1), datum=slice(after))
    assert part.drop_vars("log_predictive").equals(rows.drop_vars("log_predictive"))
    np.testing.assert_array_equal(part.log_predictive, rows.log_likelihood[0])
    assert ("draws of the global latents" in part.attrs["interrupted"]) == (after >= NUM_DATA)
    assert_same(averaged(tmp_path, **options), whole)


@pytest.mark.parametrize("raises", [False, True])
def test_a_sigterm_writes_the_finished_rows_and_then_takes_its_usual_course(raises: bool, tmp_path: Path) -> None:
    """The rows would be written only after seconds; the handler of another library finds them in the folder."""
    taken: list[int] = []

    def handler(*_: object) -> None:
        taken.append(num_rows(tmp_path))
        if raises:
            sys.exit(143)

    whole, before = compute("evaluate", None), signal.signal(signal.SIGTERM, handler)
    try:
        with sending(signal.SIGTERM, after=3), pytest.raises(SystemExit) if raises else nullcontext():
            part = compute("evaluate", tmp_path)
            assert part.equals(whole.isel(datum=slice(part.sizes["datum"])))
            assert part.attrs["interrupted"] == f"after {part.sizes['datum']} of {NUM_DATA} data"
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)
    assert taken == [num_rows(tmp_path)]
    assert 0 < taken[0] < NUM_DATA
    assert_same(compute("evaluate", tmp_path), whole)


def test_a_sigterm_while_the_rows_are_written_after_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, taken = checkpoint.archives.write, list[int]()

    def write(path: Path, content: Any) -> None:
        if path.name == "rows.pt":
            signal.raise_signal(signal.SIGTERM)
        own(path, content)

    whole, before = compute("evaluate", None), signal.signal(signal.SIGTERM, lambda number, _: taken.append(number))
    monkeypatch.setattr(checkpoint.archives, "write", write)
    try:
        with sending(signal.SIGINT, after=2):
            part = compute("evaluate", tmp_path)
    finally:
        signal.signal(signal.SIGTERM, before)
    monkeypatch.undo()
    assert taken == [signal.SIGTERM]
    assert num_rows(tmp_path) == part.sizes["datum"] > 0
    assert_same(compute("evaluate", tmp_path), whole)


def test_an_ignored_sigterm_does_not_stop_an_evaluation(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with sending(signal.SIGTERM, after=1):
            found = compute("evaluate", tmp_path)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    assert_same(found, compute("evaluate", None))


def test_a_sigterm_is_left_alone_without_a_folder() -> None:
    taken: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: taken.append(number))
    try:
        with sending(signal.SIGTERM, after=1):
            found = compute("evaluate", None)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert taken == [signal.SIGTERM]
    assert_same(found, compute("evaluate", None))


def test_a_sigterm_ends_the_process_and_loses_no_finished_row(tmp_path: Path) -> None:
    process = PROCESSES.Process(target=run_until_a_signal, args=("evaluate", tmp_path, signal.SIGTERM, 4))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGTERM
    assert 0 < num_rows(tmp_path) < NUM_DATA
    assert_same(compute("evaluate", tmp_path), compute("evaluate", None))
