"""The benchmark of accuracy measures the errors of all estimators against a reference, at equal computing time."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import pyrovae as pv
from experiments.benchmarks import accuracy
from tests.oracle import Oracle

SMALL = {
    "data": 6, "rounds": 2, "draws": (50, 400), "quasi_draws": (128,), "refined_draws": (200,), "temperatures": (3,),
    "precisions": (0.1,), "reference": 4000, "epochs": 1,
}  # fmt: skip


def test_errors_are_those_against_log_p() -> None:
    """The reference agrees with the closed form, and each estimator has the error and the bias of its own estimates."""
    oracle = Oracle(scale=0.6)
    x = oracle.data(6)
    options = accuracy.Options(**SMALL)
    estimators = accuracy.ways(oracle.vae, "none", options)
    plain = {"encoder draws": estimators["encoder draws"], "refined mixture": estimators["refined mixture"]}
    told, points = accuracy.measure(oracle.vae, x, "none", plain, options)
    exact = oracle.log_likelihood(x).numpy()
    assert "k-hat > 0.7 for 0%" in told
    assert points.way.tolist() == ["encoder draws", "encoder draws", "refined mixture"]
    results = [pv.evaluation.evaluate(oracle.vae, x, 400, seed=seed, progress=False) for seed in (1, 2)]
    errors = np.stack([result.log_likelihood - exact for result in results])
    mine = points[(points.way == "encoder draws") & (points.budget == 400)].iloc[0]
    assert mine.error == pytest.approx((errors**2).mean() ** 0.5, abs=0.02)  # the reference has an error of its own
    assert mine.bias == pytest.approx(errors.mean(), abs=0.02)
    assert (points.set_up > 0).all()


def test_the_ratio_is_that_to_encoder_draws_of_the_same_seconds() -> None:
    points = pd.DataFrame(
        {
            "way": ["encoder draws", "encoder draws", "log_likelihood", "annealing"],
            "budget": [100, 400, 0.1, 7],
            "seconds": [0.1, 0.4, 0.2, 1.6],
            "set_up": 0.5,
            "error": [0.8, 0.4, 0.05, 0.4],
            "bias": 0.0, "poor": 0.0, "reliable": 1.0,
        }
    )  # fmt: skip
    table = accuracy.tabulate(points)
    assert table.index[2:].tolist() == ["log_likelihood, precision 0.1", "annealing, 7 temperatures"]
    ratios = table["error / encoder draws, equal seconds"].astype(float)
    assert ratios.tolist() == pytest.approx([1, 1, 0.05 / (0.8 / 2**0.5), 2], rel=0.02)
    with pytest.raises(ValueError, match="the set-up took longer than an evaluation"):
        accuracy.tabulate(points.assign(seconds=0.0))
    assert len(accuracy.draw(points).axes[0].lines) == 3


@pytest.mark.slow
def test_all_estimators_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(accuracy, "set_up_seconds", lambda call: 1e-6 * bool(call()))  # few digits take little longer
    table = accuracy.main(accuracy.Options(**{**SMALL, "data": 60, "draws": (200, 4000)}, out=tmp_path))
    record = json.loads((tmp_path / "accuracy.json").read_text())
    assert record["table"] == table.to_dict("index")
    assert not {"weights", "out"} & record["options"].keys()  # paths are those of one machine
    all_ways = accuracy.ways(Oracle().vae, "none", accuracy.Options())
    assert {name.rsplit(", ", 1)[0] for name in table.index} == set(all_ways)
    assert table.to_string() in capsys.readouterr().out
    assert (tmp_path / "accuracy.png").stat().st_size


def test_a_power_law_needs_two_numbers() -> None:
    with pytest.raises(ValueError, match="needs two numbers of draws"):
        accuracy.Options(draws=(100, 100))
