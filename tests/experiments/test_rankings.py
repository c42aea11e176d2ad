"""Tables over all rows: spread over seeds, weights of other libraries, and pairs of rows that change their order."""

import json
from pathlib import Path

import pytest

from experiments import _reproduced, tables
from experiments.reproduce.papers import AGAIN, PAPER_SCHEDULE, PAPERS, paper_of
from experiments.reproduce.rows import slug

STANDARD, VAMP, HVAE = "VAE, standard", "VAE, VampPrior", "HVAE, standard"  # published: 88.56, 85.57, 86.05
MACHINE = {"cores": 2, "cpu": "a processor", "versions": {"torch": "2", "pyro-ppl": "1"}}
KEPT = {
    "standard_error": 0.2, "elbo": -90.0, "k_hat_above_0.7": 0.5, "active_units": [20], "epochs": 100, "seed": 0,
    "train_seconds": 3600.0, "command": "a command", "machine": MACHINE,
}  # fmt: skip


def keep(
    docs: Path, row: str, draws: float, quoted: float | None = None, *, part: str = ".", reliable: float = 1.0
) -> None:
    path = docs / "reproduction" / part / paper_of(row) / f"{slug(row)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(KEPT | {"row": row, "nll": draws} | both(draws, quoted, reliable)))


def both(draws: float, quoted: float | None, reliable: float) -> dict[str, object]:
    if quoted is None:
        return {}
    numbers = {"nll": quoted, "standard_error": 0.2, "monte_carlo_error": 0.01, "reliable": reliable}
    return {"quoted": numbers | {"overstated_by": draws - quoted, "overstated_by_error": 0.01}}


@pytest.mark.parametrize("quoted", [None, 84.0], ids=["one number", "one row"])
def test_there_is_no_answer_without_two_rows_that_have_both_numbers(quoted: float | None, tmp_path: Path) -> None:
    assert tables.rankings(tmp_path) == (
        "No rankings can be compared yet. A comparison needs two rows of one table that have both the NLL by 5,000 "
        "encoder draws and the NLL by log *p(x)*.\n"
    )
    keep(tmp_path, STANDARD, 87.0, quoted)
    keep(tmp_path, VAMP, 85.0)
    keep(tmp_path, AGAIN, 85.0, 84.0)
    assert tables.rankings(tmp_path).startswith("No rankings can be compared yet.")


def test_rankings_that_agree(tmp_path: Path) -> None:
    keep(tmp_path, STANDARD, 87.0, 86.0)
    keep(tmp_path, VAMP, 85.0, 84.0)
    summary, _, *table = tables.rankings(tmp_path).splitlines()
    assert summary.startswith(
        "Number of pairs of rows in these tables: 1. Number of pairs whose order differs between 5,000 encoder draws "
        "and log p(x): 0. Number of pairs"
    )
    assert table[2:] == ["| vampprior | 2 | 1 | 0 | 0 | 0 |"]


def test_a_ranking_that_the_protocol_changes_is_named(tmp_path: Path) -> None:
    keep(tmp_path, STANDARD, 87.0, 86.0, reliable=0.9)
    keep(tmp_path, VAMP, 86.5, 86.4)
    keep(tmp_path, HVAE, 86.6, 86.41)
    text = tables.rankings(tmp_path)
    assert text.startswith(
        "Number of pairs of rows in these tables: 3. Number of pairs whose order differs between 5,000 encoder draws"
    )
    assert (
        "encoder draws and log p(x): 2. Number of pairs whose order differs between the published numbers and "
        "log p(x): 2. A pair" in text
    )
    assert "| vampprior | 3 | 3 | 1 | 2 | 2 |" in text
    assert f"reliable in these rows: {STANDARD}." in text
    assert (
        "- *vampprior*: VAE, VampPrior is better than VAE, standard by 5,000 encoder draws (86.50 and 87.00), "
        "and worse by log p(x) (86.40 and 86.00).\n"
    ) in text
    assert "HVAE, standard is better than VAE, standard by the published numbers (86.05 and 88.56)" in text
    assert "VAE, VampPrior is better than HVAE" not in text  # too close to call: 0.01 apart, each with an error of 0.01


def test_the_spread_over_seeds(tmp_path: Path) -> None:
    spread = "mean ± standard deviation over seeds"
    assert set(tables.seeds(tmp_path)["5,000 encoder draws"]) == {""}
    keep(tmp_path, AGAIN, 85.0, 84.0)
    assert set(tables.seeds(tmp_path).loc[spread]) == {""}
    keep(tmp_path, AGAIN, 85.2, part="seed_1")
    table = tables.seeds(tmp_path)
    assert list(table.index) == ["seed 0", "seed 1", "seed 2", spread]
    assert (table.loc[spread, "5,000 encoder draws"], table.loc[spread, "log p(x)"]) == ("85.10 ± 0.14", "")
    keep(tmp_path, AGAIN, 85.2, 84.1, part="seed_1")
    keep(tmp_path, AGAIN, 85.4, 84.2, part="seed_2")
    table = tables.seeds(tmp_path)
    assert table.loc["seed 2", "log p(x)"].startswith("84.20 ± 0.20")
    assert (table.loc[spread, "5,000 encoder draws"], table.loc[spread, "log p(x)"]) == ("85.20 ± 0.20", "84.10 ± 0.10")


def test_the_row_by_the_paper_s_schedule_is_empty_until_it_is_run(tmp_path: Path) -> None:
    table, name = tables.TABLES["iwae, other schedules"], f"{AGAIN}: Adam, the paper's schedule"
    assert list(table(tmp_path).index) == [name]
    assert table(tmp_path).loc[name, "5,000 encoder draws"] == ""
    keep(tmp_path, AGAIN, 85.3, 84.5, part=PAPER_SCHEDULE)
    assert table(tmp_path).loc[name, "5,000 encoder draws"] == "85.30 ± 0.20"
    assert list(tables.runs(tmp_path).index) == [name]


def test_foreign_weights_are_empty_until_they_are_evaluated(tmp_path: Path) -> None:
    assert set(tables.foreign(tmp_path).to_numpy().ravel()) == {""}
    folder = tmp_path / "reproduction" / "foreign"
    folder.mkdir(parents=True)
    (folder / "numpyro.json").write_text(
        json.dumps(KEPT | {"nll": 100.0, "largest_difference": 3.21e-14} | both(100.0, 99.0, 1.0))
    )
    table = tables.foreign(tmp_path)
    assert table.loc["NumPyro", _reproduced.DIFFERENCE] == "3e-14"
    assert table.loc["NumPyro", "log p(x)"] == "99.00 ± 0.20 (0.01)"
    assert set(table.loc["pythae"]) == {""}


def test_names_of_rows_and_tables_are_unique() -> None:
    names = [name for rows in PAPERS.values() for name in rows]
    assert len({slug(name) for name in names}) == len(names)
    assert all(tables.TABLES[paper].args == (paper,) for paper in PAPERS)  # no other table has replaced them
