"""Every experiment runs at toy size and writes what it promises."""

import importlib
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
import tyro
import xarray as xr

import experiments
import pyrovae as pv

TOYS = {
    "elbo_vs_iwae": {
        "data": "digits", "hidden": (16,), "latent": 2, "epochs": 1, "num_samples": 60, "test_size": 15,
    },
    "priors": {
        "data": "digits", "hidden": (16,), "latent": 2, "epochs": 1, "num_samples": 60, "test_size": 15,
        "components": 5,
    },
    "likelihoods": {
        "data": "digits", "hidden": (16,), "latent": 2, "epochs": 1, "num_samples": 60, "test_size": 15,
        "components": 2,
    },
    "posteriors": {
        "data": "digits", "hidden": (16,), "latent": 2, "epochs": 1, "num_samples": 60, "test_size": 15,
        "context": 3,
    },
    "evaluation": {
        "data": "digits", "hidden": (16,), "latent": 2, "epochs": 1, "num_samples": 60, "num_data": 5,
        "draws": (32, 64), "temperatures": (3, 6), "num_chains": 4, "pca_latent": 3,
    },
    "gaps": {
        "data": "digits", "hidden": (16,), "latent": 2, "epochs": 1, "num_samples": 60, "num_data": 5,
        "num_chains": 4, "num_temperatures": 4, "num_steps": 5, "context": 3,
    },
    "sweep": {
        "data": "digits", "hidden": (16,), "latent": 2, "epochs": 1, "num_samples": 60, "test_size": 15,
        "components": 5, "repeats": 2, "parallel": False,
    },
    "tighter_bounds": {
        "data": "digits", "hidden": (16,), "latent": 2, "epochs": 1, "particles": (1, 3), "repeats": 9,
        "dimensions": 3,
    },
}  # fmt: skip


def test_no_experiment_is_untested() -> None:
    names = {module.name for module in pkgutil.iter_modules(experiments.__path__) if not module.ispkg}
    assert {name for name in names if not name.startswith("_")} == set(TOYS)


@pytest.mark.parametrize("name", TOYS)
def test_experiment(name: str, tmp_path: Path) -> None:
    module = importlib.import_module(f"experiments.{name}")
    module.main(module.Options(**TOYS[name], out=tmp_path))
    assert (tmp_path / "results.json").stat().st_size
    assert list(tmp_path.glob("*.png"))


@pytest.mark.parametrize("name", TOYS)
def test_help_lists_every_option_with_its_default(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = importlib.import_module(f"experiments.{name}").Options
    with pytest.raises(SystemExit):
        tyro.cli(options, args=["--help"])
    text = capsys.readouterr().out
    for option in options.__dataclass_fields__:
        assert f"--{option.replace('_', '-')}" in text
    assert text.count("default: ") >= len(options.__dataclass_fields__)


def test_an_experiment_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "experiments.elbo_vs_iwae", "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "How far is the ELBO from log p(x)" in text


def test_elbo_vs_iwae_writes_the_table_and_the_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module("experiments.elbo_vs_iwae")
    table = module.main(module.Options(**TOYS["elbo_vs_iwae"], out=tmp_path))
    assert list(table.index) == ["VAE", "IWAE", "difference"]
    columns = ["ELBO", "IWAE_5", "IWAE_50", "IWAE_60", "ESS", "k-hat > 0.7", "active units", "seconds"]
    assert list(table.columns) == columns
    assert table.to_string() in capsys.readouterr().out
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["table"]["VAE"]["ELBO"] == table.loc["VAE", "ELBO"]
    assert record["options"]["epochs"] == 1
    with xr.open_dataset(tmp_path / "evaluation.nc") as results:
        assert results.model.values.tolist() == ["VAE", "IWAE"]
        assert results.sizes["datum"] == 15
        assert table.loc["IWAE", "ELBO"].startswith(f"{float(results.elbo.sel(model='IWAE').mean()):.2f} ± ")
    figures = {path.stem for path in tmp_path.glob("*.png")}
    assert figures == {"bounds", "learning_curves", "reconstructions", "samples"}


@pytest.mark.parametrize("name", ["priors", "posteriors", "likelihoods"])
def test_differences_are_paired_and_from_the_first_of_the_chosen_models(name: str, tmp_path: Path) -> None:
    module = importlib.import_module(f"experiments.{name}")
    models = {
        "priors": ("StandardNormal", "VampPrior"),
        "posteriors": ("DiagonalNormal", "Laplace"),
        "likelihoods": ("Categorical", "DiscretizedLogistic"),
    }[name]
    table = module.main(module.Options(**TOYS[name], models=models, out=tmp_path))
    with xr.open_dataset(tmp_path / "evaluation.nc") as results:
        gain = results.log_likelihood.sel(model=models[1]) - results.log_likelihood.sel(model=models[0])
        if name == "likelihoods":
            gain = pv.evaluation.bits_per_dimension(gain, (8, 8))
        assert results.model.values.tolist() == list(table.index) == list(models)
    mean, error = (float(part) for part in table.difference.iloc[1].split(" (")[0].split(" ± "))
    assert table.difference.iloc[0] == ""
    assert mean == pytest.approx(float(gain.mean()), abs=0.006)
    assert error == pytest.approx(float(gain.std(ddof=1)) / 15**0.5, abs=0.006)


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    module = importlib.import_module("experiments.priors")
    with pytest.raises(ValueError, match=r"no model 'Vamp'; choose from \['StandardNormal', .*'VampPrior'"):
        module.main(module.Options(**TOYS["priors"], models=("Vamp",), out=tmp_path))
