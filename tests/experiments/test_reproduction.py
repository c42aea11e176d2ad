"""Rows of published tables can be trained, resumed and stored with all settings."""

import copy
import dataclasses
import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import xarray as xr
from torch import nn

import pyrovae as pv
from experiments import tables
from experiments.reproduce import flow_and_ladder, further_training, iwae, rainforth, rows, vampprior
from experiments.reproduce.papers import PAPERS

NUM_TEST = 20
ROWS = {f"{paper}: {name}": row for paper, found in PAPERS.items() for name, row in found.items()}

pytestmark = pytest.mark.filterwarnings("ignore:the KL warm-up does not end")  # toy runs give this warning


@pytest.fixture(autouse=True)
def small_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few embedded digits in place of the downloaded data set."""

    def few(binarization: Any) -> pv.data.Splits:
        splits = pv.data.digits(binarization)
        return dataclasses.replace(splits, test=splits.test[:NUM_TEST])

    monkeypatch.setattr(pv.data, "mnist", lambda binarization, root: few(binarization))
    monkeypatch.setattr(pv.data, "static_mnist", lambda root: few("static"))
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
    ("paper", "name"),
    [
        (iwae, "1 layer, DReG, k = 5"),
        (vampprior, "HVAE, VampPrior"),
        (rainforth, "PIWAE, M = 8, K = 8"),
        pytest.param(iwae, "2 layers, IWAE, k = 5", marks=pytest.mark.slow),
        pytest.param(flow_and_ladder, "IAF, 1 x 100", marks=pytest.mark.slow),
        pytest.param(flow_and_ladder, "ladder VAE, 5 layers", marks=pytest.mark.slow),
    ],
)
def test_a_row_is_trained_evaluated_and_kept(
    paper: ModuleType, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = run(paper, tmp_path, name)
    assert table.to_string() in capsys.readouterr().out
    [path] = (tmp_path / "out").rglob("*.json")
    kept = json.loads(path.read_text())
    assert (kept["row"], kept["target"]) == (name, paper.ROWS[name].target)
    assert (kept["epochs"], kept["test_data"], kept["num_samples"]) == (1, NUM_TEST, 60)
    assert kept["binarization"] == ("static" if paper is vampprior else "dynamic")
    [evaluation] = (tmp_path / "checkpoints").rglob("evaluation.nc")
    with xr.open_dataset(evaluation) as results:
        per_datum = results.log_likelihood.values
        assert kept["elbo"] == pytest.approx(float(results.elbo.mean()))
        assert kept["iwae"]["5"] == pytest.approx(float(results.iwae.sel(k=5).mean()))
    assert kept["nll"] == pytest.approx(-per_datum.mean())
    assert kept["standard_error"] == pytest.approx(per_datum.std(ddof=1) / NUM_TEST**0.5)
    assert 0 < kept["nll"] < -kept["elbo"]
    quoted = kept["quoted"]
    assert 0 < quoted["monte_carlo_error"] < quoted["standard_error"]
    assert 0 <= quoted["reliable"] <= 1
    assert quoted["overstated_by"] == pytest.approx(kept["nll"] - quoted["nll"])
    assert {"seed", "machine", "command", "train_seconds", "active_units"} <= set(kept)
    assert table.loc[name, "5,000 encoder draws"] == f"{kept['nll']:.2f} ± {kept['standard_error']:.2f}"
    assert table.loc[name, "log p(x)"].startswith(f"{quoted['nll']:.2f} ± {quoted['standard_error']:.2f}")
    assert set(table.drop(index=name)["log p(x)"]) == {""}
    [weights] = (tmp_path / "checkpoints").rglob("weights.pt")
    before = path.read_text()
    options = {"rows": (name,), "num_samples": 60, "compile": False, "weights": weights}
    paper.main(paper.Options(**options, out=tmp_path / "out", checkpoints=tmp_path / "again"))
    again = json.loads(path.read_text())
    assert again["nll"] == pytest.approx(kept["nll"])
    assert again["quoted"]["nll"] == pytest.approx(quoted["nll"], abs=1e-6)
    assert again["command"] == json.loads(before)["command"]


def test_the_error_of_the_quoted_number_stands_if_nearly_all_data_are_reliable() -> None:
    kept = {"nll": 80.0, "standard_error": 0.2, "monte_carlo_error": 0.01, "reliable": 0.995}
    kept |= {"overstated_by": 0.5, "overstated_by_error": 0.01}
    assert rows._quoted(kept)["log p(x)"] == "80.00 ± 0.20 (0.01)"
    assert rows._quoted(kept | {"reliable": 0.9})["log p(x)"] == "80.00 ± 0.20"


def test_a_row_with_too_few_reliable_data_is_marked() -> None:
    kept = {
        "nll": 80.0,
        "standard_error": 0.2,
        "monte_carlo_error": 0.01,
        "overstated_by": 0.5,
        "overstated_by_error": 0.01,
    }
    shown = [rows._quoted(kept | {"reliable": share})["reliable"] for share in (0.9499, 0.95, 1.0)]
    assert shown == ["95.0%, below 95%", "95.0%", "100.0%"]


def test_the_bound_on_the_training_data_is_that_of_the_best_epoch() -> None:
    history = pv.History("Trace_ELBO", train=[-3.0, -2.0, -1.0], seconds=[1.0, 2.0, 3.0], best_epoch=1)
    row = vampprior.ROWS["VAE, standard"]
    assert rows.record("VAE, standard", row, history, rows.Options())["train_bound"] == -2


def test_a_row_that_has_been_run_is_not_trained_again(tmp_path: Path) -> None:
    name = "VAE, standard"
    first = run(vampprior, tmp_path, name)
    again = run(vampprior, tmp_path, name)
    assert list(again.loc[name].drop("hours")) == list(first.loc[name].drop("hours"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 2}, r"schedule lr_lambdas is \[\{'epochs': 2\}.* was \[\{'epochs': 1\}"),
        ({"learning_rate": 0.1}, "optimizer group 0 lr is 0.1 here and was 0.02"),
    ],
    ids=["epochs", "learning rate"],
)
def test_a_row_does_not_go_on_with_another_schedule(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    given = {"rows": ("1 layer, VAE, k = 1",), "optimizer": "muon", "learning_rate": 0.02, "epochs": 1}
    given |= {"num_samples": 60, "compile": False, "out": tmp_path / "out", "checkpoints": tmp_path / "checkpoints"}
    iwae.main(iwae.Options(**given))
    with pytest.raises(ValueError, match=f"is of another run: .*{message}"):
        iwae.main(iwae.Options(**given | change))


def test_a_row_is_trained_with_the_given_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fits = []
    monkeypatch.setattr(pv, "fit", lambda *_, **given: fits.append(given) or pv.History("", interrupted=True))
    given = {"epochs": 3, "batch_size": 7, "learning_rate": 2e-3, "kl_warmup": 2, "precision": "bfloat16", "seed": 5}
    with pytest.raises(SystemExit, match="Give the same command to resume"):
        iwae.main(iwae.Options(rows=("1 layer, VAE, k = 1",), out=tmp_path, checkpoints=tmp_path, **given))
    assert [{name: fit[name] for name in given} for fit in fits] == [given]
    assert fits[0]["optimizer"] is None
    with pytest.raises(SystemExit):
        iwae.main(iwae.Options(rows=("1 layer, VAE, k = 1",), out=tmp_path, checkpoints=tmp_path, optimizer="muon"))
    assert fits[1]["optimizer"] is rows.muon


def test_a_training_ends_with_its_hours_and_is_not_trained_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"nll": 80.0, "standard_error": 0.2, "elbo": -85.0, "k_hat_above_0.7": 0.5, "active_units": [3]}
    monkeypatch.setattr(rows, "evaluated", lambda *_: found)
    given = {"rows": ("1 layer, VAE, k = 1",), "schedule": "paper", "epochs": 3280, "batch_size": 500, "compile": False}
    given |= {"out": tmp_path / "out", "checkpoints": tmp_path / "checkpoints", "part": "paper_schedule", "hours": 1e-9}
    for _ in range(2):
        iwae.main(iwae.Options(**given))
        [path] = (tmp_path / "out" / "paper_schedule" / "iwae").iterdir()
        assert json.loads(path.read_text())["epochs"] == 1
    saved = max((tmp_path / "checkpoints" / "paper_schedule").rglob("checkpoint-*.pt"))
    assert saved.name.startswith("checkpoint-000001")


@pytest.mark.parametrize(("paper", "schedule"), [(iwae, "paper"), (rainforth, "pythae")])
def test_a_published_schedule_is_one_of_adam(
    paper: ModuleType, schedule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = []
    monkeypatch.setattr(pv, "fit", lambda *_, **given: fits.append(given) or pv.History("", interrupted=True))
    given = {"rows": (next(iter(paper.ROWS)),), "schedule": schedule, "epochs": 3280}
    with pytest.raises(SystemExit):
        paper.main(paper.Options(**given, out=tmp_path, checkpoints=tmp_path))
    optimizer = fits[0]["optimizer"]([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    assert (type(optimizer), optimizer.defaults["eps"]) == (torch.optim.Adam, 1e-4)
    for change in ({"optimizer": "muon"}, {"epochs": 10}):
        with pytest.raises(ValueError, match=r"3280|Adam"):
            paper.Options(**given | change)


def test_the_schedule_of_pythae_falls_at_its_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fits = []
    monkeypatch.setattr(pv, "fit", lambda *_, **given: fits.append(given) or pv.History("", interrupted=True))
    given = {"schedule": "pythae", "epochs": 3280, "out": tmp_path, "checkpoints": tmp_path}
    with pytest.raises(SystemExit):
        rainforth.main(rainforth.Options(rows=(next(iter(rainforth.ROWS)),), **given))
    optimizer = torch.optim.Adam(nn.Linear(1, 1).parameters(), lr=1e-3)
    schedule, rates = fits[0]["scheduler"](optimizer), []
    for _ in range(1100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    falls = [epoch for epoch in range(1, 1100) if rates[epoch] < rates[epoch - 1]]
    assert falls == [2, 5, 14, 28, 41, 122, 365, 1094]
    assert rates[-1] == pytest.approx(1e-3 * 10 ** (-8 / 7))


def test_the_weights_of_rainforth_start_as_those_of_pythae() -> None:
    vae = rainforth.build(torch.zeros(1, 28, 28))
    layers = [part for part in vae.modules() if isinstance(part, nn.Linear)]
    assert all(not layer.bias.any() for layer in layers)
    *_, last = vae.posterior.network
    bounds = [float(part.detach().abs().max()) for part in (last.weight[:50], last.weight[50:])]
    limit = (6 / 250) ** 0.5  # limit of a layer from 200 to 50 units
    assert bounds == pytest.approx([limit, limit / 2], rel=0.01)
    assert float(layers[0].weight.detach().abs().max()) == pytest.approx(
        (6 / 250) ** 0.5, rel=0.01
    )  # from 50 to 200 units


def test_rows_have_the_sizes_and_the_objectives_of_their_names() -> None:
    digits = torch.zeros(500, 28, 28)
    dreg = iwae.ROWS["1 layer, DReG, k = 50"].objective()
    assert (dreg.num_particles, dreg.gradient) == (50, "doubly_reparameterized")
    found = {name: row.objective() for name, row in rainforth.ROWS.items()}
    numbers = {name.split(",")[0]: (each.num_particles, each.num_draws) for name, each in found.items()}
    assert numbers == {"MIWAE": (8, 64), "PIWAE": (8, 64), "CIWAE": (64, 64)}
    assert found["CIWAE, K = 64, beta = 0.05"].beta == 0.05
    ladder = flow_and_ladder.ROWS["ladder VAE, 5 layers"].build(digits)
    assert ladder.latents == (64, 32, 16, 8, 4)
    assert flow_and_ladder.ROWS["IAF, 1 x 100"].build(digits).posterior.latent == 100


def test_the_learning_rate_falls_along_a_cosine_to_a_hundredth() -> None:
    optimizer = torch.optim.Adam([{"params": torch.zeros(1), "lr": 1.0}, {"params": torch.zeros(1), "lr": 10.0}])
    schedule, rates = torch.optim.lr_scheduler.LambdaLR(optimizer, rows.Cosine(4)), []
    for _ in range(5):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    half = math.sqrt(0.5) / 2
    expected = torch.tensor([1, 0.5 + half, 0.5, 0.5 - half, 0]) * 0.99 + 0.01
    torch.testing.assert_close(torch.tensor(rates), torch.stack([expected, 10 * expected], -1))


def test_muon_takes_orthogonal_steps_and_leaves_biases_to_adam() -> None:
    layer = nn.Linear(3, 3)
    before = {name: value.detach().clone() for name, value in layer.named_parameters()}
    optimizer = rows.muon(layer.parameters(), 0.1)
    left, right = (torch.linalg.qr(torch.randn(3, 3))[0] for _ in range(2))
    layer.weight.grad = left @ torch.diag(torch.tensor([1.0, 0.5, 0.3])) @ right
    layer.bias.grad = torch.tensor([3.0, -2.0, 1e-3])
    optimizer.step()
    steps = {name: value.detach() - before[name] for name, value in layer.named_parameters()}
    torch.testing.assert_close(steps["bias"], torch.tensor([-0.01, 0.01, -0.01]))
    # Five iterations of Newton and Schulz, in bfloat16, end with singular values between about 0.7 and 1.2.
    sizes = -left.T @ steps["weight"] @ right.T
    torch.testing.assert_close(sizes, 0.1 * torch.eye(3), rtol=0.35, atol=2e-3)


def test_an_unknown_row_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no row 'VAE'. Choose from \['VAE, standard', "):
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
    with pytest.raises(ValueError, match="Give --epochs 3280"):
        iwae.Options(schedule="paper")


def test_the_decoder_starts_at_the_mean_of_the_data() -> None:
    train = pv.data.digits("none").train
    decoder = pv.networks.mlp(3, 4, (8, 8))
    rows.set_bias(decoder, train)
    expected = train.mean(0).clamp(1e-3, 1 - 1e-3)
    *_, last = (layer for layer in decoder.modules() if isinstance(layer, nn.Linear))
    torch.testing.assert_close(last.bias.sigmoid().view(8, 8), expected)


@pytest.mark.parametrize("name", ["1 layer, IWAE, k = 5", "2 layers, IWAE, k = 5"])
@pytest.mark.parametrize("trains", ["encoder", "all"])
def test_a_row_is_trained_further(tmp_path: Path, name: str, trains: Any) -> None:
    torch.manual_seed(0)
    vae = iwae.ROWS[name].build(pv.data.digits("static").train)
    pv.save(vae, tmp_path / "weights.pt")
    options = further_training.Options(
        row=name,
        weights=tmp_path / "weights.pt",
        trains=trains,
        epochs=8 if trains == "encoder" else 2,
        num_particles=4,
        digits=NUM_TEST,
        num_samples=60,
        compile=False,
        precision=None,
        out=tmp_path / "reproduction" / "further_training",
    )
    table = further_training.main(options)
    assert table.loc["after", "nll"] != table.loc["before", "nll"]
    [path] = options.out.glob("*.json")
    kept = json.loads(path.read_text())
    assert kept["before"]["nll"] == table.loc["before", "nll"]
    shown = tables.TABLES["further training"](tmp_path)
    assert list(shown["5,000 encoder draws"]) == [f"{nll:.2f}" for nll in table.nll]
    assert shown.index[1].startswith(f"{name}: {'encoder ' if trains == 'encoder' else ''}trained for {options.epochs}")
    trained = copy.deepcopy(vae)
    further_training.train(trained, rows.dynamic_mnist("iwae", iwae.ROWS, rows.Options()), options)
    same = [
        torch.equal(*pair) for pair in zip(vae.likelihood.parameters(), trained.likelihood.parameters(), strict=True)
    ]
    assert all(same) if trains == "encoder" else not any(same)
    for before, after in zip(vae.guide.parameters(), trained.guide.parameters(), strict=True):
        assert not torch.equal(before, after)
