"""Every experiment runs at toy size and writes the documented files."""

import importlib
import json
import pkgutil
import runpy
import sys
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
import tyro
import xarray as xr

import experiments
import pyrovae as pv
from experiments._codes import distances_to_nearest, hoyer_sparsity, precision_and_recall
from experiments._letters import letters
from tests.conftest import small_vae

TOYS = {
    "elbo_vs_iwae": {
        "data": "digits", "hidden": (16,), "latent": 2, "epochs": 1, "kl_warmup": 0, "num_samples": 60, "test_size": 15,
    },
    "priors": {
        "data": "digits", "hidden": (16,), "latent": 2, "epochs": 1, "kl_warmup": 0, "num_samples": 60, "test_size": 15,
        "components": 5,
    },
    "likelihoods": {
        "data": "digits", "hidden": (16,), "latent": 2, "epochs": 1, "kl_warmup": 0, "num_samples": 60, "test_size": 15,
        "components": 2,
    },
    "colour": {
        "channels": (4, 4), "latents": (2,), "stride": 32, "epochs": 1, "kl_warmup": 0, "num_samples": 120,
        "test_size": 2,
    },
    "posteriors": {
        "data": "digits", "hidden": (16,), "latent": 2, "epochs": 1, "kl_warmup": 0, "num_samples": 60, "test_size": 15,
        "context": 3,
    },
    "evaluation": {
        "data": "digits", "hidden": (16,), "latent": 2, "epochs": 1, "kl_warmup": 0, "num_samples": 60, "num_data": 5,
        "draws": (32, 64), "temperatures": (3, 6), "num_chains": 4, "pca_latent": 3,
    },
    "gaps": {
        "data": "digits", "hidden": (16,), "latent": 2, "epochs": 1, "kl_warmup": 0, "num_samples": 60, "num_data": 5,
        "num_chains": 4, "num_temperatures": 4, "num_steps": 5, "context": 3,
    },
    "published_protocol": {
        "data": "digits", "hidden": (16,), "latent": 2, "epochs": 1, "kl_warmup": 0, "num_samples": 60, "test_size": 15,
        "components": 5, "context": 3, "draws": (1, 50, 100), "num_reference": 3, "num_chains": 4,
        "num_temperatures": 4, "compile": False,
    },
    "latent_space": {
        "data": "digits", "hidden": (16,), "latent": 3, "epochs": 1, "kl_warmup": 0, "num_samples": 60, "test_size": 40,
        "pairs": 7, "cells": 3,
    },
    "sweep": {
        "data": "digits", "hidden": (16,), "latent": 2, "epochs": 1, "kl_warmup": 0, "num_samples": 60, "test_size": 15,
        "components": 5, "repeats": 2, "parallel": False,
    },
    "tighter_bounds": {
        "data": "digits", "hidden": (16,), "latent": 2, "epochs": 1, "particles": (1, 3), "repeats": 9,
        "dimensions": 3,
    },
    "autoencoders": {
        "data": "digits", "hidden": (16,), "latent": 2, "epochs": 1, "kl_warmup": 0, "num_samples": 60, "test_size": 15,
    },
    "em.mixture": {"max_iterations": 4},
    "em.bayesian": {"num_data": 40, "steps": 3, "num_draws": 5},
    "em.alternating": {
        "hidden": (16,), "latent": 2, "steps": 8, "record": 4, "turns": (1, 4), "runs": 2, "num_samples": 60,
        "test_size": 15,
    },
    "gradient_estimators.moments": {
        "hidden": (16,), "latent": 2, "epochs": 1, "draws": (1, 3), "repeats": 5, "num_data": 4, "dimensions": 3,
    },
    "gradient_estimators.learning": {
        "hidden": (16,), "latent": 2, "epochs": 1, "draws": (1, 3), "num_samples": 60, "test_size": 15,
    },
    "blurriness.experiment": {
        "batch_size": 1000, "hidden": (16,), "latent": 2, "epochs": 1, "kl_warmup": 0, "num_samples": 4,
        "test_size": 40, "classifier_epochs": 1, "toy_steps": 5, "models": ("VAE",),
    },
}  # fmt: skip

SEPARATE = ("_", "benchmarks", "reproduce", "tables")  # not experiments, or tested in files of their own


def test_no_experiment_is_untested() -> None:
    names = [
        module.name.removeprefix("experiments.")
        for module in pkgutil.walk_packages(experiments.__path__, "experiments.")
    ]
    scripts = [name for name in names if not name.startswith(SEPARATE) and not name.endswith("__main__")]
    assert {name for name in scripts if hasattr(importlib.import_module(f"experiments.{name}"), "main")} == set(TOYS)


@pytest.mark.parametrize("package", ["em", "gradient_estimators"])
def test_a_package_runs_its_scripts_with_their_options(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, ran = importlib.import_module(f"experiments.{package}.__main__"), {}
    names = [name.split(".")[1] for name in TOYS if name.startswith(f"{package}.")]
    for name in names:
        monkeypatch.setattr(f"experiments.{package}.{name}.main", partial(ran.__setitem__, name))
    arguments = [part for name in names for part in (f"--{name}.seed", "7")]
    module.main(tyro.cli(module.Options, args=arguments))
    assert {name: options.seed for name, options in ran.items()} == dict.fromkeys(names, 7)


ELSEWHERE = ("elbo_vs_iwae", "blurriness.experiment")  # run with more assertions by other ordinary tests
LONG = ("priors", "likelihoods", "published_protocol", "em.bayesian", "gradient_estimators.moments", "evaluation")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in ELSEWHERE + LONG else ()) for n in TOYS]
)
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


def test_an_experiment_runs_as_a_module(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["elbo_vs_iwae", "--help"])
    monkeypatch.delitem(sys.modules, "experiments.elbo_vs_iwae", raising=False)  # runpy warns of a loaded module
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("experiments.elbo_vs_iwae", run_name="__main__")
    assert not stopped.value.code
    assert "Gap between the ELBO and log p(x)" in capsys.readouterr().out


def test_elbo_vs_iwae_writes_the_table_and_the_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module("experiments.elbo_vs_iwae")
    table = module.main(module.Options(**TOYS["elbo_vs_iwae"], out=tmp_path))
    assert list(table.index) == ["VAE", "IWAE", "difference"]
    columns = [
        "ELBO",
        "IWAE_5",
        "IWAE_50",
        "IWAE_60",
        "log p(x)",
        "reliable",
        "ESS",
        "k-hat > 0.7",
        "active units",
        "seconds",
    ]
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
        gain = results.quoted.sel(model=models[1]) - results.quoted.sel(model=models[0])
        if name == "likelihoods":
            gain = pv.evaluation.bits_per_dimension(gain, (8, 8))
        assert results.model.values.tolist() == list(table.index) == list(models)
    mean, error = (float(part) for part in table.difference.iloc[1].split(" (")[0].split(" ± "))
    assert table.difference.iloc[0] == ""
    assert mean == pytest.approx(float(gain.mean()), abs=0.006)
    assert error == pytest.approx(float(gain.std(ddof=1)) / 15**0.5, abs=0.006)


def test_an_unknown_model_is_named(tmp_path: Path) -> None:
    module = importlib.import_module("experiments.priors")
    with pytest.raises(
        ValueError, match=r"'Vamp' is not a model of this experiment. Choose from \['StandardNormal', .*'VampPrior'"
    ):
        module.main(module.Options(**TOYS["priors"], models=("Vamp",), out=tmp_path))


def test_autoencoders_measure_codes_and_random_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module("experiments.autoencoders")
    table = module.main(module.Options(**TOYS["autoencoders"], models=("Autoencoder", "VAE"), out=tmp_path))
    assert list(table.index) == ["Autoencoder", "VAE", "Autoencoder of letters", "no code"]
    printed = capsys.readouterr().out
    assert all(column in printed for column in table.columns)
    with xr.open_dataset(tmp_path / "evaluation.nc") as results:
        assert results.model.values.tolist() == list(table.index)[:-1]
        assert results.sizes["datum"] == results.sizes["other_datum"] == 15
        assert table.loc["VAE", "masked digits"].startswith(f"{float(results.masked.sel(model='VAE').mean()):.1f} ± ")
    assert (table.loc[["Autoencoder", "VAE"], "farther"] != "").all()
    assert {path.stem for path in tmp_path.glob("*.png")} == {"reconstructions", "samples", "distances"}


def test_a_vae_measured_as_an_autoencoder_is_the_vae_at_its_posterior_mean() -> None:
    module = importlib.import_module("experiments.autoencoders")
    vae, x = small_vae(), torch.bernoulli(torch.full((12, 6), 0.4))
    autoencoder = module.as_autoencoder(vae)
    expected = vae.likelihood(vae.posterior(x).mean).log_prob(x)
    torch.testing.assert_close(-autoencoder.errors(x), expected)


def test_sparsity_is_that_of_one_unit_or_of_all() -> None:
    codes = torch.tensor([[0.0, -3.0, 0.0, 0.0], [2.0, -2.0, 2.0, 2.0], [1.0, 1.0, 0.0, 0.0]])
    torch.testing.assert_close(hoyer_sparsity(codes), torch.tensor([1.0, 0.0, 2 - 2**0.5]))
    torch.testing.assert_close(hoyer_sparsity(100 * codes), hoyer_sparsity(codes))


def test_precision_and_recall_know_images_of_nothing_and_images_of_one_kind() -> None:
    real, far = torch.randn(500, 3, 3), 50 + torch.randn(500, 3, 3)
    assert precision_and_recall(far, real) == (0.0, 0.0)
    assert min(precision_and_recall(torch.randn(500, 3, 3), real)) > 0.8
    one_kind = real[:1] + 1e-3 * torch.randn(500, 3, 3)
    precision, recall = precision_and_recall(one_kind, real)
    assert (precision, recall) == (1.0, pytest.approx(0.0, abs=0.01))
    half = torch.cat([torch.randn(250, 3, 3), far[:250]])
    assert precision_and_recall(half, real)[0] == pytest.approx(0.5, abs=0.1)


def test_distances_are_in_standard_deviations_of_each_unit() -> None:
    known = torch.tensor([[-1.0, -10.0], [1.0, 10.0]])
    deviation = 2**0.5
    found = distances_to_nearest(torch.tensor([[1.0, 10.0], [1.0, 20.0]]), known)
    torch.testing.assert_close(found, torch.tensor([0.0, 1 / deviation]))


def test_letters_are_ink_in_the_middle_of_the_paper() -> None:
    splits = letters((40, 10, 5), 28, seed=1)
    assert [tuple(split.shape) for split in splits] == [(40, 28, 28), (10, 28, 28), (5, 28, 28)]
    assert 0.05 < splits.train.mean() < 0.3
    assert splits.train.max() == 1
    assert not splits.train[:, [0, 1, -2, -1]].any()
    assert set(splits.test.flatten().tolist()) == {0.0, 1.0}
    assert len(splits.train.flatten(1).unique(dim=0)) == 40
    again, others = letters((40, 10, 5), 28, seed=1), letters((40, 10, 5), 28, seed=2)
    assert torch.equal(again.train, splits.train)
    assert torch.equal(again.test, splits.test)
    assert not torch.equal(others.train, splits.train)


def test_latent_space_moves_codes_and_writes_what_the_images_show(tmp_path: Path) -> None:
    module = importlib.import_module("experiments.latent_space")
    module.main(module.Options(**TOYS["latent_space"], models=("3 dimensions",), out=tmp_path))
    attributes = pd.read_csv(tmp_path / "attributes.csv", index_col=[0, 1])
    assert list(attributes.index) == [("3 dimensions", "thickness"), ("3 dimensions", "slant")]
    assert {"traversals_3_dimensions.csv", "classes.csv", "paths.csv", "neighbours.csv", "explorer_3.html"} <= {
        path.name for path in tmp_path.iterdir()
    }
