"""All contenders of the training benchmark train the same models, at toy size."""

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest

from experiments.benchmarks import training
from experiments.benchmarks.models import NAMES
from experiments.benchmarks.problem import Sizes, check_agreement
from experiments.benchmarks.rounds import Race
from tests.experiments.turns import facts_of

TOY = {"hidden": 8, "latent": 4, "batch_size": 20, "num_data": 40}
ORDINARY = "convolutional", "counts", "markov", "mixture", "two_layers"
MODELS = [name if name in ORDINARY else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]


@pytest.mark.parametrize("name", MODELS)
def test_contenders_have_the_same_loss_and_gradient(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = facts_of(training.make_problem(Sizes(model=name, **TOY)), monkeypatch)  # type: ignore[arg-type]
    check_agreement(facts)
    assert all(each.keys() == {"loss", "gradient"} for each in facts.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_numpyro_has_the_same_loss_and_gradient(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    numpyro = pytest.importorskip("experiments.benchmarks.trainers.numpyro_", exc_type=ModuleNotFoundError)
    problem = training.make_problem(Sizes(model=name, **TOY))  # type: ignore[arg-type]
    facts = facts_of(problem, monkeypatch, NumPyro=numpyro.main)
    check_agreement(facts)
    assert facts["NumPyro"].keys() == {"loss", "gradient"}


def test_the_results_of_a_model_have_a_file_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compete(sizes: Sizes, names: Sequence[str], rounds: int) -> Race:
        once = dict.fromkeys(names, 1.0)
        return Race(pd.DataFrame({name: [1.0] * rounds for name in names}), once, once, {}, once, {})

    monkeypatch.setattr(training, "compete", compete)
    training.main(training.Options(**TOY, model="markov", rounds=2, out=tmp_path))  # type: ignore[arg-type]
    record = json.loads((tmp_path / "training_markov.json").read_text())
    assert record["options"]["model"] == "markov"
    assert record["table"]["pyrovae"]["/ Pyro"] == "1 [1, 1]"


def test_only_the_perceptron_has_several_draws() -> None:
    with pytest.raises(ValueError, match="k=3 draws per datum need model='perceptron', got model='colour'"):
        Sizes(model="colour", k=3)
