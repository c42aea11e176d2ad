"""The published tables' rows can be trained, go on where they stopped, and are kept with all that they took."""

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
import xarray as xr
from torch import nn

import pyrovae as pv
from experiments.reproduce import iaf, iwae, rows, vampprior

PAPERS = (iwae, vampprior, iaf)
ROWS = {f"{paper.__name__.split('.')[-1]}: {name}": row for paper in PAPERS for name, row in paper.ROWS.items()}


@pytest.fixture(autouse=True)
def small_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Embedded digits in place of those that would be downloaded."""
    monkeypatch.setattr(pv.data, "mnist", lambda binarization, root: pv.data.digits(binarization))
    monkeypatch.setattr(pv.data, "static_mnist", lambda root: pv.data.digits("static"))
    monkeypatch.setattr(vampprior, "COMPONENTS", 20)


def run(paper: ModuleType, folder: Path, *names: str, epochs: int = 1) -> pv.History:
    options = paper.Options(
        rows=names, epochs=epochs, num_samples=60, compile=False, out=folder / "out", checkpoints=folder / "checkpoints"
    )
    return paper.main(options)


@pytest.mark.parametrize("name", ROWS)
def test_a_row_has_a_loss(name: str) -> None:
    row, train = ROWS[name], pv.data.digits("static").train
    vae = row.build(train)
    loss = row.objective().loss(vae.model, vae.guide, train[:3])
    assert 0 < loss / 3 < 200  # nats; 64 fair bits are 44
    assert 80 < row.target < 100


@pytest.mark.parametrize(
    ("paper", "name"), [(iwae, "2 layers, IWAE, k = 5"), (vampprior, "HVAE, VampPrior"), (iaf, "IAF")]
)
def test_a_row_is_trained_evaluated_and_kept(
    paper: ModuleType, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = run(paper, tmp_path, name)
    assert table.to_string() in capsys.readouterr().out
    [path] = (tmp_path / "out").rglob("*.json")
    kept = json.loads(path.read_text())
    assert (kept["row"], kept["target"]) == (name, paper.ROWS[name].target)
    assert (kept["epochs"], kept["test_data"], kept["num_samples"]) == (1, 300, 60)
    assert kept["binarization"] == ("dynamic" if paper is iwae else "static")
    [evaluation] = (tmp_path / "checkpoints").rglob("evaluation.nc")
    with xr.open_dataset(evaluation) as results:
        per_datum = results.log_likelihood.values
        assert kept["elbo"] == pytest.approx(float(results.elbo.mean()))
    assert kept["nll"] == pytest.approx(-per_datum.mean())
    assert kept["standard_error"] == pytest.approx(per_datum.std(ddof=1) / 300**0.5)
    assert 0 < kept["monte_carlo_error"] < kept["standard_error"]
    assert 0 < kept["nll"] < -kept["elbo"]
    assert {"seed", "machine", "command", "train_seconds", "active_units"} <= set(kept)
    assert table.loc[name, "pyrovae"].startswith(f"{kept['nll']:.2f} ± {kept['standard_error']:.2f} (")
    assert set(table.drop(index=name)["pyrovae"]) == {""}


def test_a_row_that_has_been_run_is_not_trained_again(tmp_path: Path) -> None:
    name = "VAE, standard"
    first = run(vampprior, tmp_path, name)
    again = run(vampprior, tmp_path, name)
    assert list(again.loc[name].drop("hours")) == list(first.loc[name].drop("hours"))


def test_a_row_is_trained_as_the_options_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fits = []
    monkeypatch.setattr(pv, "fit", lambda *_, **given: fits.append(given) or pv.History("", interrupted=True))
    given = {"epochs": 3, "batch_size": 7, "learning_rate": 2e-3, "kl_warmup": 2, "precision": "bfloat16", "seed": 5}
    with pytest.raises(SystemExit, match="give the same command to go on"):
        iwae.main(iwae.Options(rows=("1 layer, VAE, k = 1",), out=tmp_path, checkpoints=tmp_path, **given))
    assert [{name: fit[name] for name in given} for fit in fits] == [given]


def test_a_row_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no row 'VAE'; choose from \['VAE, standard', "):
        run(vampprior, tmp_path, "VAE")


def test_stages_are_those_of_the_paper() -> None:
    optimizer = torch.optim.Adam(nn.Linear(1, 1).parameters(), lr=1e-3)
    schedule, rates = iwae.stages(optimizer), []
    for _ in range(3280):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    counts = [rates.count(rate) for rate in sorted(set(rates), reverse=True)]
    assert counts == [3**i for i in range(8)]
    assert (rates[0], rates[1], rates[-1]) == (1e-3, pytest.approx(1e-3 * 10 ** (-1 / 7)), pytest.approx(1e-4))
    with pytest.raises(ValueError, match="give --epochs 3280"):
        iwae.Options(schedule="paper")


def test_the_decoder_starts_at_the_mean_of_the_data() -> None:
    train = pv.data.digits("none").train
    decoder = pv.networks.mlp(3, 4, (8, 8))
    rows.set_bias(decoder, train)
    expected = train.mean(0).clamp(1e-3, 1 - 1e-3)
    *_, last = (layer for layer in decoder.modules() if isinstance(layer, nn.Linear))
    torch.testing.assert_close(last.bias.sigmoid().view(8, 8), expected)
