"""Weights of the rows that were run are packed into one archive, and a row is loaded by name."""

import hashlib
import json
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch

import pyrovae as pv
from experiments.reproduce import iwae, papers, rows, vampprior, weights
from experiments.reproduce.rows import digest, slug

ROW, VAMP = "1 layer, IWAE, k = 5", "VAE, VampPrior"
EVENT = (8, 8)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "EVENT_SHAPE", EVENT)
    monkeypatch.setattr(vampprior, "COMPONENTS", 20)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two rows that were run, one of them with two seeds, and a third without weights."""
    train = pv.data.digits("static").train
    for part, row in ((".", ROW), ("seed_1", ROW), (".", VAMP)):
        paper = papers.paper_of(row)
        folder = tmp_path / "checkpoints" / part / paper / slug(row)
        folder.mkdir(parents=True)
        pv.save(papers.PAPERS[paper][row].build(train), folder / "weights.pt")
        keep(tmp_path, part, row, weights=digest(folder / "weights.pt"))
    keep(tmp_path, ".", "VAE, standard")
    return tmp_path


def keep(folder: Path, part: str, row: str, **record: object) -> None:
    path = folder / "out" / part / papers.paper_of(row) / f"{slug(row)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"row": row, **record}))


def pack(folder: Path, name: str = "weights.zip") -> tuple[list[str], list[str]]:
    return weights.pack(folder / name, out=folder / "out", checkpoints=folder / "checkpoints")


def test_all_rows_that_were_run_are_packed(run: Path) -> None:
    assert pack(run) == ([ROW, VAMP, f"{ROW} (seed 1)"], ["VAE, standard"])
    with ZipFile(run / "weights.zip") as archive:
        assert set(archive.namelist()) == {
            "iwae/1_layer-iwae-k_5.json", "iwae/1_layer-iwae-k_5.pt", "SHA256SUMS",
            "seed_1/iwae/1_layer-iwae-k_5.json", "seed_1/iwae/1_layer-iwae-k_5.pt",
            "vampprior/vae-vampprior.json", "vampprior/vae-vampprior.pt",
        }  # fmt: skip
        for line in archive.read("SHA256SUMS").decode().splitlines():
            expected, name = line.split("  ")
            assert hashlib.sha256(archive.read(name)).hexdigest() == expected
    pack(run, "again.zip")
    assert (run / "again.zip").read_bytes() == (run / "weights.zip").read_bytes()
    assert not list(run.glob("*.unfinished"))


def test_a_row_is_loaded_by_name(run: Path) -> None:
    pack(run)
    with ZipFile(run / "weights.zip") as archive:
        archive.extractall(run / "unpacked")
    state = torch.get_rng_state()
    for part, row in ((".", ROW), ("seed_1", ROW), (".", VAMP)):
        vae = weights.load(row, run / "unpacked", part=part)
        assert not vae.training
        saved = run / "checkpoints" / part / papers.paper_of(row) / slug(row) / "weights.pt"
        again = pv.load(saved, into=papers.PAPERS[papers.paper_of(row)][row].build(torch.rand(20, *EVENT)))
        for one, other in zip(vae.parameters(), again.parameters(), strict=True):
            assert torch.equal(one, other)
    x = pv.data.digits("static").test[:3]
    assert pv.evaluation.evaluate(vae, x, 10, seed=0).log_likelihood.notnull().all()
    assert not torch.equal(state, torch.get_rng_state())  # by the builds of this test
    state = torch.get_rng_state()
    weights.load(ROW, run / "unpacked")
    assert torch.equal(state, torch.get_rng_state())


def test_unknown_rows_parts_and_files_are_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"No paper has the row 'VAE'. Choose from \['1 layer, VAE, k = 1'"):
        weights.load("VAE", run)
    with pytest.raises(ValueError, match=r"'seed_3' is not a part. Choose from \['\.', "):
        weights.load(ROW, run, part="seed_3")
    with pytest.raises(OSError, match="vae-standard"):
        weights.load("VAE, standard", run)


def test_weights_of_another_run_are_not_packed(run: Path) -> None:
    keep(run, ".", ROW, weights="0" * 64)
    with pytest.raises(ValueError, match=r"1_layer-iwae-k_5.json was computed from other weights than .*weights.pt"):
        pack(run)
    assert not (run / "weights.zip").exists()


def test_an_archive_without_weights_is_not_written(tmp_path: Path) -> None:
    keep(tmp_path, ".", ROW)
    with pytest.raises(ValueError, match="Run a row first"):
        pack(tmp_path)
    assert not (tmp_path / "weights.zip").exists()


def test_main_prints_the_packed_rows(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = weights.Options(run / "dist" / "weights.zip", run / "out", run / "checkpoints")
    assert weights.main(given).exists()
    said = capsys.readouterr().out
    assert "weights.zip: 3 rows" in said
    assert f"its weights are not in {run / 'checkpoints'}: VAE, standard" in said


def test_a_row_that_is_run_can_be_packed_and_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pv.data, "mnist", lambda binarization, root: pv.data.digits(binarization))
    found = {"nll": 80.0, "standard_error": 0.2, "elbo": -85.0, "k_hat_above_0.7": 0.5, "active_units": [3]}
    monkeypatch.setattr(rows, "evaluated", lambda *_: found)
    folders = {"out": tmp_path / "out", "checkpoints": tmp_path / "checkpoints", "part": "seed_1"}
    name = "1 layer, VAE, k = 1"
    iwae.main(iwae.Options(rows=(name,), epochs=1, num_samples=20, compile=False, seed=1, **folders))
    [path] = (tmp_path / "out").rglob("*.json")
    assert path.relative_to(tmp_path).as_posix() == "out/seed_1/iwae/1_layer-vae-k_1.json"
    assert json.loads(path.read_text())["weights"] == rows.digest(next((tmp_path / "checkpoints").rglob("weights.pt")))
    assert pack(tmp_path)[0] == [f"{name} (seed 1)"]
