"""The contenders of the benchmarks do the same work and are timed in turns, at toy size and without other libraries."""

import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import pyrovae as pv
from experiments.benchmarks import growth, profiles, training
from experiments.benchmarks.problem import CHECKED, Problem, Sizes, check_agreement, checked_noise
from experiments.benchmarks.rounds import Race, race
from tests.experiments.turns import facts_of

TOY = {"hidden": 8, "latent": 2, "batch_size": 20, "num_data": 40, "rounds": 1}
RATIOS = ["/ Pyro", "/ PyTorch", "/ PyTorch, compiled", "/ NumPyro"]
COLUMNS = ["ms per step", *RATIOS, "start and first epoch, s", "peak memory, MiB"]

CONTENDER = """
import sys
from experiments.benchmarks.rounds import serve
print("not for the parent")
turns = []

def work():
    turns.append(None)
    print('{{"seconds": 7}}', flush=True)
    if len(turns) > {turns}:
        raise OSError("out of breath")
    return {seconds}

serve("any", work, answer=42)
"""


def contender(seconds: float | None = None, turns: int = 100) -> list[str]:
    return [sys.executable, "-c", CONTENDER.format(seconds=seconds, turns=turns)]


def test_contenders_take_turns() -> None:
    result = race({"slow": contender(0.06), "fast": contender(0.02), "timed": contender()}, rounds=2)
    assert result.seconds[["slow", "fast"]].values.tolist() == [[0.06, 0.02]] * 2
    assert (result.seconds.timed > 0).all()
    assert result.first["slow"] == 0.06
    assert result.facts["fast"] == {"answer": 42}
    assert min(*result.peaks.values(), *result.ready.values()) > 0
    assert not result.missing


def test_a_contender_that_fails_is_missing_and_the_others_go_on() -> None:
    absent = [sys.executable, "-c", "import no_such_tool"]
    result = race({"absent": absent, "tired": contender(turns=2), "there": contender(0.1)}, rounds=2)
    assert list(result.seconds) == list(result.facts) == list(result.peaks) == ["there"]
    assert result.missing == {
        "absent": "ModuleNotFoundError: No module named 'no_such_tool'",
        "tired": "OSError: out of breath",
    }


def test_a_failing_contender_of_pyrovae_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"The contender pyrovae failed:\n(.|\n)*OSError: out of breath"):
        race({"there": contender(), "pyrovae": contender(turns=1)}, rounds=1)


def test_ratios_are_medians_of_ratios_within_rounds() -> None:
    seconds = pd.DataFrame({"a": [1.0, 2.0, 9.0], "b": [2.0, 8.0, 9.0]})
    once = {"a": 0.0, "b": 0.0}
    table = Race(seconds, once, once, {}, once, {}).table("a", unit_work=10)
    assert table.ms.tolist() == [200, 800]
    assert table.ratio.tolist() == [1, 2]
    assert table.loc["b", ["ratio_low", "ratio_high"]].tolist() == [1.5, 3]
    assert Race(seconds, once, once, {}, once, {}).table("c").ratio.isna().all()


def test_contenders_must_agree() -> None:
    facts = {"a": {"loss": 100.0}, "b": {}, "c": {"loss": 100.001, "gradient": 1.0}}
    check_agreement(facts)
    with pytest.raises(ValueError, match=r"the loss of a is 100 and that of d is 100\.1"):
        check_agreement({**facts, "d": {"loss": 100.1}})
    with pytest.raises(ValueError, match="gradient of c is 1 and that of d is nan"):
        check_agreement({**facts, "d": {"gradient": float("nan")}})


def test_checked_noise_makes_the_sampled_divergence_the_closed_form() -> None:
    noise = checked_noise(Sizes(latent=3))[0].astype(float)
    loc, log_scale = np.tile(np.random.RandomState(0).normal(size=(2, CHECKED, 3)), (1, 2, 1))
    z = loc + np.exp(log_scale) * noise
    sampled = (z**2 - noise**2) / 2 - log_scale
    closed = (loc**2 + np.exp(2 * log_scale) - 1) / 2 - log_scale
    assert np.allclose(sampled[:CHECKED] + sampled[CHECKED:], closed[:CHECKED] + closed[CHECKED:])


def test_a_problem_is_read_as_it_was_written(tmp_path: Path) -> None:
    sizes = Sizes(latent=2, batch_size=2, num_data=4)
    problem = Problem(
        sizes, np.eye(4), checked_noise(sizes), {"encoder.0.bias": np.ones(3), "decoder.0.bias": np.zeros(3)}
    )
    problem.write(tmp_path)
    read = Problem.read(tmp_path)
    assert read.sizes == sizes
    assert (read.x == problem.x).all()
    assert (read.noise == problem.noise).all()
    assert read.part("encoder")["0.bias"].tolist() == [1, 1, 1]


def test_a_batch_that_does_not_divide_the_data_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size=30 must divide num_data=100"):
        Sizes(batch_size=30, num_data=100)


@pytest.mark.parametrize("k", [1, 3])
def test_contenders_do_the_same_work(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = training.make_problem(Sizes(hidden=8, latent=2, k=k, batch_size=20, num_data=40))
    facts = facts_of(problem, monkeypatch)
    check_agreement(facts)
    assert set(facts["PyTorch"]) == set(facts["pyrovae"]) == {"loss", "gradient"}
    assert set(facts["Pyro"]) == (set() if k > 1 else {"loss", "gradient"})
    log_two = problem.x.shape[1] * np.log(2)  # the loss of a decoder that knows nothing
    assert facts["pyrovae"]["loss"] == pytest.approx(log_two, rel=0.2)


@pytest.mark.slow
def test_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = training.main(training.Options(**TOY, contenders=("PyTorch",), out=tmp_path))
    assert list(table.index) == ["PyTorch"]
    assert list(table.columns) == COLUMNS
    assert table.loc["PyTorch", ["/ Pyro", "/ PyTorch"]].tolist() == ["", "1 [1, 1]"]
    assert table.to_string() in capsys.readouterr().out
    record = json.loads((tmp_path / "training.json").read_text())
    assert len(record["races"]["all"]["seconds"]["PyTorch"]) == 1
    assert record["machine"]["versions"]["pyrovae"] == pv.__version__


@pytest.mark.slow
def test_training_of_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = training.main(training.Options(**TOY, out=tmp_path))
    printed = capsys.readouterr().out
    missing = [name for name in training.TRAINERS if f"\n{name} is missing: ModuleNotFoundError" in printed]
    assert sorted([*table.index, *missing]) == sorted(training.TRAINERS)


def test_growth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def compete(sizes: Sizes, names: Sequence[str], rounds: int) -> Race:
        seconds = pd.DataFrame({name: [sizes.k * sizes.steps * 0.002] * rounds for name in names})
        once = dict.fromkeys(names, 1.0)
        return Race(seconds, once, once, {}, once, {})

    monkeypatch.setattr(training, "compete", compete)
    options = growth.Options(**TOY, contenders=("Pyro", "pyrovae"), quantity="k", values=(1, 3), out=tmp_path)
    table = growth.main(options)
    assert table.pyrovae.to_dict() == {1: "2 [2, 2]", 3: "6 [6, 6]"}
    assert list(table.columns) == ["Pyro", "pyrovae"]
    assert table.to_string() in capsys.readouterr().out
    assert set(json.loads((tmp_path / "growth_k.json").read_text())["races"]) == {"1", "3"}
    assert (tmp_path / "growth_k.png").stat().st_size


def test_the_data_grow_with_the_batch() -> None:
    grown = growth.sized(growth.Options(quantity="batch_size"), 300)
    assert (grown.batch_size, grown.steps) == (300, growth.STEPS)


def test_an_unknown_contender_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'Pyrovae' is not a contender. Choose from \['Pyro', 'Pyro, unvalidated'"):
        training.main(training.Options(**TOY, contenders=("Pyrovae",), out=tmp_path))


@pytest.mark.usefixtures("interpreted")
def test_profiles(tmp_path: Path) -> None:
    table = profiles.main(profiles.Options(k=2, draws=1000, steps=2, data=16, repeats=1, out=tmp_path)).astype(float)
    assert list(table.index) == ["step, ELBO", "step, IWAE_2", "evaluation of an image"]
    assert (table.products > 0).all()
    assert (table.optimizer > 0).tolist() == [True, True, False]
    kinds = [*profiles.KINDS, "rest"]
    np.testing.assert_allclose(table[kinds].sum(axis=1), table["all"], rtol=0.02)
    assert json.loads((tmp_path / "profiles.json").read_text())["options"]["k"] == 2
    with pytest.raises(ValueError, match="data=16 images with draws=1 form a single chunk"):
        profiles.of_evaluation(profiles.Options(draws=1, data=16))(nullcontext())
