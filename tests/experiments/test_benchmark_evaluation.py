"""The contenders of the evaluation benchmark estimate the same value, and the report holds the measured times."""

import json
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest

from experiments.benchmarks import estimates, evaluation, rounds
from experiments.benchmarks.evaluators import ours, parts, pytorch
from experiments.benchmarks.problem import Problem, check_agreement
from experiments.benchmarks.rounds import Race

TOY = {"hidden": 8, "latent": 2, "epochs": 1, "data": 6, "draws": 200, "rows": 50, "rounds": 1}


class Turns:
    """A channel without a parent process, which gives two turns."""

    facts: ClassVar[dict[str, float]] = {}
    seconds: ClassVar[list[float | None]] = []

    def __init__(self, name: str, **facts: float) -> None:
        self.turns, self.start = 2, 0.0
        Turns.facts, Turns.seconds = facts, []

    def turn(self, seconds: float | None = None) -> bool:
        Turns.seconds.append(seconds)
        self.turns -= 1
        return self.turns >= 0

    def close(self) -> None:
        assert self.turns < 0


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    return evaluation.train(evaluation.Options(**TOY))


@pytest.fixture
def problem(weights: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> Problem:
    for module in (rounds, ours):
        monkeypatch.setattr(module, "Channel", Turns)
    return evaluation.make_problem(evaluation.Options(**TOY), 6, weights)


def test_contenders_estimate_the_same(problem: Problem) -> None:
    facts = {}
    for name, main in {
        "PyTorch": partial(pytorch.main, rows=50),
        "PyTorch, several images at once": partial(pytorch.main, rows=400),
        "pyrovae": ours.main,
        "pyrovae, bfloat16": partial(ours.main, precision="bfloat16"),
    }.items():
        main(problem)
        facts[name] = Turns.facts
    result = Race(pd.DataFrame(), {}, {}, facts, {}, {})
    evaluation.check(problem, result)
    assert facts["PyTorch"]["loss"] == pytest.approx(facts["pyrovae"]["loss"], rel=1e-5)
    assert "loss" not in facts["pyrovae, bfloat16"]
    assert 0 < facts["pyrovae, bfloat16"]["mean_rounding_error"] <= facts["pyrovae, bfloat16"]["largest_rounding_error"]
    facts["PyTorch"]["log_likelihood"] += 10
    with pytest.raises(ValueError, match=r"do not estimate the same value. .* by PyTorch, and 4 Monte Carlo"):
        evaluation.check(problem, result)
    facts["PyTorch"]["loss"] += 1
    with pytest.raises(ValueError, match="do not do the same work"):
        check_agreement(facts)


def test_turns_of_one_evaluation_have_equal_numbers_of_data(problem: Problem) -> None:
    ours.main(problem)
    first, *turns = Turns.seconds
    assert first is None
    assert len(turns) == 2
    assert min(turns) > 0


def test_an_evaluation_in_one_call(problem: Problem) -> None:
    ours.main(problem, whole=True)
    assert Turns.facts["before_mb"] > 0
    assert Turns.seconds[1] > 0


def test_parts_are_timed_alone(problem: Problem) -> None:
    parts.main(problem, rows=90)  # does not divide 6 * 200
    assert set(Turns.facts) == {"noise_seconds", "products_seconds", "density_seconds"}
    assert min(*Turns.facts.values(), *Turns.seconds[1:]) > 0


def test_evaluation(
    weights: dict[str, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(evaluation, "train", lambda _: weights)
    names = ("PyTorch", "sum of parts")
    table = evaluation.main(evaluation.Options(**TOY, contenders=names, out=tmp_path))
    assert list(table.index) == list(names)
    assert list(table.columns) == [
        "ms per image", "/ pythae", "/ sum of parts", "set-up, s", "once more, s", "peak memory, MiB"
    ]  # fmt: skip
    assert table["/ pythae"].tolist() == ["", ""]
    assert table.loc["sum of parts", "/ sum of parts"] == "1 [1, 1]"
    assert table.loc["sum of parts", "set-up, s"] == ""
    printed = capsys.readouterr().out
    assert table.to_string() in printed
    assert "sum of parts, ms per image: noise " in printed
    record = json.loads((tmp_path / "evaluation.json").read_text())
    facts = record["races"]["all"]["facts"]["PyTorch"]
    assert facts["loss"] == pytest.approx(-facts["log_likelihood"], rel=0.1)


@pytest.mark.slow
def test_evaluation_of_all(
    weights: dict[str, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(evaluation, "train", lambda _: weights)
    table = evaluation.main(evaluation.Options(**TOY, out=tmp_path))
    printed = capsys.readouterr().out
    missing = [name for name in evaluation.EVALUATORS if f"{name} is missing: ModuleNotFoundError" in printed]
    assert sorted([*table.index, *missing]) == sorted(evaluation.EVALUATORS)


def test_memory(
    weights: dict[str, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(problem: Problem, contenders: dict[str, tuple[str, ...]], *_: object, rounds: int) -> Race:
        once = dict.fromkeys(contenders, 100.0 + problem.sizes.num_data)
        return Race(pd.DataFrame(), once, once, {name: {"before_mb": 90.0} for name in contenders}, once, {})

    monkeypatch.setattr(evaluation, "train", lambda _: weights)
    monkeypatch.setattr(evaluation, "run", run)
    table = evaluation.main(evaluation.Options(**TOY, peak=(3, 600), out=tmp_path))
    assert table["peak memory, MiB"].to_dict() == {
        (name, size): 100 + size for name in evaluation.WHOLE for size in (3, 600)
    }
    assert table.to_string() in capsys.readouterr().out
    assert set(json.loads((tmp_path / "evaluation_memory.json").read_text())["races"]) == {"3", "600"}


def test_invalid_options_are_refused() -> None:
    with pytest.raises(ValueError, match="'Pyrovae' is not a contender"):
        evaluation.Options(contenders=("Pyrovae",))


def test_estimates_that_are_nan_are_refused() -> None:
    with pytest.raises(ValueError, match=r"0.000 by a and nan by b"):
        estimates.check_estimates({"a": {"log_likelihood": 0.0}, "b": {"log_likelihood": float("nan")}}, 1.0)
