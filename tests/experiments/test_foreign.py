"""Weights of pythae and NumPyro are copied into a VAE by name; the mapping is tested without either library."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pyrovae as pv
from experiments.reproduce import foreign
from experiments.reproduce.foreign import NAMES, Options, as_vae
from experiments.reproduce.foreign_training import Trained, leaves

LATENT, HIDDEN, EVENT = 3, 7, (8, 8)
DIGITS = pv.data.digits("static")


def weights(library: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Return random tensors with the names and the shapes of the library."""
    random = np.random.default_rng(seed)
    layers = {"encoder": (64, HIDDEN), "loc": (HIDDEN, LATENT), "spread": (HIDDEN, LATENT)}
    layers |= {"hidden": (LATENT, HIDDEN), "output": (HIDDEN, 64)}
    drawn = {
        name: (random.normal(size=(size_in, size_out)) / size_in**0.5, random.normal(size=size_out))
        for name, (size_in, size_out) in layers.items()
    }
    if library == "numpyro":  # the format of SVI.get_params
        encoder = [drawn["encoder"], (), (), [drawn["loc"], [drawn["spread"], ()]]]
        return dict(leaves({"encoder$params": encoder, "decoder$params": [drawn["hidden"], (), drawn["output"], ()]}))
    names = {"encoder": "encoder.layers.0.0", "loc": "encoder.embedding", "spread": "encoder.log_var"}
    names |= {"hidden": "decoder.layers.0.0", "output": "decoder.layers.1.0"}
    found = {}
    for name, (matrix, bias) in drawn.items():
        found |= {f"{names[name]}.weight": matrix.T, f"{names[name]}.bias": bias}
    return found


def by_hand(library: str, weights: dict[str, np.ndarray], x: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return mean and scale of q(z | x), and log p(x | z), by the library's own formulas."""

    def layer(name: str, value: np.ndarray) -> np.ndarray:
        if library == "numpyro":
            return value @ weights[f"{name}.0"] + weights[f"{name}.1"]
        return value @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    if library == "pythae":
        hidden = np.maximum(layer("encoder.layers.0.0", x), 0)
        loc, scale = layer("encoder.embedding", hidden), np.exp(layer("encoder.log_var", hidden) / 2)
        logits = layer("decoder.layers.1.0", np.maximum(layer("decoder.layers.0.0", z), 0))
    else:
        hidden = np.logaddexp(layer("encoder$params.0", x), 0)
        loc, scale = layer("encoder$params.3.0", hidden), np.exp(layer("encoder$params.3.1.0", hidden))
        logits = layer("decoder$params.2", np.logaddexp(layer("decoder$params.0", z), 0))
    return loc, scale, (x * logits - np.logaddexp(logits, 0)).sum(-1)


@pytest.mark.parametrize("library", ["pythae", "numpyro"])
def test_weights_go_by_name(library: Any) -> None:
    theirs, x = weights(library), DIGITS.test[:5].double()
    vae = as_vae(theirs, NAMES[library], EVENT).double()
    vae.load_state_dict(as_exact(theirs, library))
    z = torch.randn(5, LATENT, dtype=torch.float64)
    loc, scale, log_likelihood = by_hand(library, theirs, x.flatten(1).numpy(), z.numpy())
    q = vae.encode(x)
    assert q.mean.numpy(force=True) == pytest.approx(loc, rel=1e-9)
    assert q.stddev.numpy(force=True) == pytest.approx(scale, rel=1e-9)
    assert vae.likelihood(z).log_prob(x).numpy(force=True) == pytest.approx(log_likelihood, rel=1e-9)


def as_exact(theirs: dict[str, np.ndarray], library: Any) -> dict[str, Tensor]:
    """Return the state dict with the same names, without rounding to single precision."""
    names = NAMES[library]
    return {
        ours: torch.cat([factor * foreign._as_tensor(theirs[name], names.transposed) for name, factor in found])
        for ours, found in names.sources.items()
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("encoder.log_var.bias"), r"'encoder.log_var.bias' is missing"),
        (lambda w: w.update(extra=np.zeros(1)), r"'extra' has no counterpart in the VAE"),
        (
            lambda w: w.update({"decoder.layers.1.0.weight": np.zeros((63, HIDDEN))}),
            r"1.0.weight have shape \(63, 7\) together, but 'model.likelihood.network.2.weight' has shape \(64, 7\)",
        ),
    ],
    ids=["missing", "extra", "shape"],
)
def test_weights_that_do_not_fit_are_named(change: Any, message: str) -> None:
    theirs = weights("pythae")
    change(theirs)
    with pytest.raises(ValueError, match=message):
        as_vae(theirs, NAMES["pythae"], EVENT)


def trained(library: Any, error: float) -> Trained:
    theirs = weights(library)
    exact = as_vae(theirs, NAMES[library], EVENT).double()

    def log_likelihood(z: Tensor, x: Tensor) -> Tensor:
        found: Tensor = exact.likelihood(z).log_prob(x).detach() + error
        return found

    return Trained(theirs, log_likelihood)


def options(folder: Path, **others: Any) -> Options:
    given = {"data": "digits", "num_samples": 20, "num_test": 6, "compile": False}
    return Options(**given | {"out": folder / "out", "checkpoints": folder / "checkpoints"} | others)


def test_foreign_weights_are_evaluated_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "require", lambda library: None)
    monkeypatch.setattr(foreign, "version", lambda library: "0.0")
    monkeypatch.setattr(foreign, "TRAINERS", {name: lambda *_, name=name: trained(name, 0.0) for name in NAMES})
    foreign.main(options(tmp_path))
    for library in NAMES:
        kept = json.loads((tmp_path / "out" / "foreign" / f"{library}.json").read_text())
        assert kept["largest_difference"] <= 1e-5
        assert (kept["test_data"], kept["num_samples"], kept["version"]) == (6, 20, "0.0")
        assert kept["quoted"]["overstated_by"] == pytest.approx(kept["nll"] - kept["quoted"]["nll"])
        again = as_vae(weights(library, seed=1), NAMES[library], EVENT)
        pv.load(tmp_path / "checkpoints" / "foreign" / library / "weights.pt", into=again)


def test_another_log_likelihood_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "require", lambda library: None)
    monkeypatch.setattr(foreign, "TRAINERS", {"pythae": lambda *_: trained("pythae", 2e-5)})
    with pytest.raises(ValueError, match="between pyrovae and pythae by 2e-05 nats"):
        foreign.main(options(tmp_path, libraries=("pythae",)))
    assert not (tmp_path / "out").exists()


def test_a_library_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpyro", None)
    with pytest.raises(ModuleNotFoundError, match=r"numpyro is not installed\. Run `uv run --group benchmarks python"):
        foreign.main(options(tmp_path, libraries=("numpyro",)))


@pytest.mark.slow
@pytest.mark.parametrize("library", ["pythae", "numpyro"])
@pytest.mark.filterwarnings("default")  # the libraries give warnings
def test_trained_weights_have_the_log_likelihood_of_their_library(library: Any, tmp_path: Path) -> None:
    pytest.importorskip(library)
    given = options(tmp_path, libraries=(library,), epochs=3, latent=LATENT, hidden=32)
    foreign.main(given)
    kept = json.loads((tmp_path / "out" / "foreign" / f"{library}.json").read_text())
    assert kept["largest_difference"] <= 1e-5
    assert 10 < kept["quoted"]["nll"] < 44  # nats; 64 fair bits are 44
