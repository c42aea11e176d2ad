"""The benchmarks of log_likelihood's cost and of the growth of time and memory, at toy size."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import pyrovae as pv
from experiments import _comparison as comparison
from experiments.benchmarks import cascade, scaling, streaming
from tests.conftest import small_vae


@pytest.mark.slow
@pytest.mark.usefixtures("interpreted")
def test_a_cost_has_a_row_for_each_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cascade, "FEW", 2)
    options = cascade.Options(
        data="digits",
        latent=4,
        hidden=(16,),
        epochs=1,
        kl_warmup=0,
        models=("base",),
        test_size=20,
        rounds=1,
        draws_of_encoder=200,
        out=tmp_path / "models",
        results=tmp_path,
        compile=False,
    )
    table = cascade.main(options)
    assert list(table.index) == ["base, eager", "base, compiled"]
    assert (table["evaluations"].str.replace(",", "").astype(float) > 256).all()
    assert json.loads((tmp_path / "cascade.json").read_text())["table"].keys() == set(table.index)
    assert comparison.load(options).test.shape[0] == 20


def test_calls_of_densities_and_gradients_are_counted_once() -> None:
    vae, x = small_vae(), torch.zeros(4, 6)
    with cascade.counted() as calls:
        found = pv.evaluation.log_likelihood(vae, x, seed=0, progress=False)
    spent = sum(
        count * draws * size * (3 if part == "value_and_gradient" else 1)
        for (part, draws, size), count in calls.items()
    )
    pilot = 256 * len(x)  # draws from the guide do not count as densities at given values
    assert spent == pytest.approx(float(found.evaluations.sum()) - pilot, rel=0.2)


def test_exponents_are_slopes_on_logarithmic_axes() -> None:
    rows = pd.DataFrame({"linear": [1.0, 2.0, 8.0], "fixed": [3.0, 3.0, 3.0]}, index=np.array([1, 2, 8]))
    table = scaling.tabulate("draws", rows)
    assert table["linear"].tolist() == ["1", "2 (1.00)", "8 (1.00)"]
    assert table["fixed"].tolist() == ["3", "3 (0.00)", "3 (0.00)"]
    assert list(table.index) == ["1 draws", "2 draws", "8 draws"]


@pytest.mark.slow
def test_a_measurement_has_times_and_memory() -> None:
    sizes: dict[str, Any] = {"data": 100, "draws": 20, "latents": 2, "pixels": 4, "evaluated": 4}
    found = scaling.measure(scaling.Options(**sizes), False)
    assert all(value > 0 for value in found.values())
    assert found["memory, MiB"] > 100


def test_sources_train_on_the_same_images(tmp_path: Path) -> None:
    table = streaming.main(streaming.Options(num_data=200, hidden=4, rounds=1, compile=(False,), out=tmp_path))
    assert list(table.index) == ["28 x 28, eager", "32 x 32 x 3, eager"]
    assert list(table.columns) == ["memory, ms per step", "mapped file / memory", "Dataset / memory"]
    assert (tmp_path / "streaming.json").exists()
