"""Summaries of the reproduced rows: spread over seeds, weights of other libraries, and changes of a ranking."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import hypot
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pandas as pd

from experiments.reproduce.papers import AGAIN, PAPERS, SEEDS, paper_of
from experiments.reproduce.rows import COLUMNS, RELIABLE, cells, slug, tabulate

LIBRARIES = {"pythae": "pythae", "numpyro": "NumPyro"}
DIFFERENCE = "log p(x given z), largest difference"


def seeds(docs: Path) -> pd.DataFrame:
    """Return one row of the IWAE paper by seed, followed by the mean ± standard deviation over the seeds."""
    paper, folder = paper_of(AGAIN), docs / "reproduction"
    targets = {AGAIN: PAPERS[paper][AGAIN].target}
    lines = {f"seed {seed}": tabulate(paper, targets, folder / part).loc[AGAIN] for seed, part in SEEDS.items()}
    found = [kept for part in SEEDS.values() if (kept := _read(folder / part / paper / f"{slug(AGAIN)}.json"))]
    lines["mean ± standard deviation over seeds"] = pd.Series(dict.fromkeys(COLUMNS, "") | _spread(found))
    return pd.DataFrame(lines).T


def _spread(found: list[dict[str, Any]]) -> dict[str, str]:
    columns = {"5,000 encoder draws": [kept["nll"] for kept in found], "ELBO": [kept["elbo"] for kept in found]}
    if all("quoted" in kept for kept in found):
        columns["log p(x)"] = [kept["quoted"]["nll"] for kept in found]
        columns["overstated by"] = [kept["quoted"]["overstated_by"] for kept in found]
    return {name: f"{mean(each):.2f} ± {stdev(each):.2f}" for name, each in columns.items() if len(each) > 1}


def foreign(docs: Path) -> pd.DataFrame:
    """Return the evaluation of VAEs that other libraries trained. The cells of untrained VAEs are empty."""
    lines = {}
    for library, name in LIBRARIES.items():
        kept = _read(docs / "reproduction" / "foreign" / f"{library}.json")
        line = dict.fromkeys((DIFFERENCE, *COLUMNS[1:]), "")
        lines[name] = line | ({DIFFERENCE: f"{kept['largest_difference']:.0e}", **cells(kept)} if kept else {})
    return pd.DataFrame(lines).T


def further_training(docs: Path) -> pd.DataFrame:
    """Return the NLL of rows by encoder draws, before and after a further training."""
    lines = {}
    for path in sorted((docs / "reproduction" / "further_training").glob("*.json")):
        kept = json.loads(path.read_text())
        trained = "encoder trained" if kept["trains"] == "encoder" else "trained"
        labels = {"before": "as trained", "after": f"{trained} for {kept['epochs']} more epochs"}
        for when, label in labels.items():
            lines[f"{kept['row']}: {label}"] = {
                "test digits": f"{kept['digits']:,}",
                "5,000 encoder draws": f"{kept[when]['nll']:.2f}",
                "k-hat > 0.7": f"{kept[when]['k_hat_above_0.7']:.0%}",
            }
    return pd.DataFrame(lines).T


@dataclass(frozen=True)
class Numbers:
    """Estimates of the test NLL of a row, nats.

    Attributes:
        row: Name of the row.
        published: Published NLL.
        draws: NLL of this reproduction by the published protocol.
        quoted: NLL of this reproduction by ``log_likelihood``.
        error: Monte Carlo error of ``quoted``.
        reliable: Fraction of the data whose estimate is reliable.
    """

    row: str
    published: float
    draws: float
    quoted: float
    error: float
    reliable: float


def rankings(docs: Path) -> str:
    """Return a paragraph, a table and a list in Markdown on the pairs of rows whose order changes."""
    tables = {paper: _numbers(docs, paper) for paper in PAPERS}
    tables = {paper: numbers for paper, numbers in tables.items() if len(numbers) > 1}
    if not tables:
        return (
            "No rankings can be compared yet. A comparison needs two rows of one table that have both the NLL by 5,000 "
            "encoder draws and the NLL by log *p(x)*.\n"
        )
    lines, changes = {}, []
    for paper, numbers in tables.items():
        pairs = list(combinations(numbers, 2))
        decided = [(a, b) for a, b in pairs if abs(a.quoted - b.quoted) > 2 * hypot(a.error, b.error)]
        found = {column: [pair for pair in decided if _changes(*pair, column)] for column in ("draws", "published")}
        changes += [_sentence(paper, *pair, column) for column, each in found.items() for pair in each]
        lines[paper] = {
            "rows with both numbers": len(numbers),
            "pairs": len(pairs),
            "too close to call": len(pairs) - len(decided),
            "5,000 encoder draws and log p(x) disagree": len(found["draws"]),
            "published and log p(x) disagree": len(found["published"]),
        }
    table = pd.DataFrame(lines).T
    sums = table.sum()
    summary = (
        f"Number of pairs of rows in these tables: {sums['pairs']}. Number of pairs whose order differs between 5,000 "
        f"encoder draws and log p(x): {sums.iloc[3]}. Number of pairs whose order differs between the published "
        f"numbers and log p(x): {sums.iloc[4]}. A pair is too close to call if its values of log p(x) differ by less "
        f"than twice their Monte Carlo error. Its order does not count as different.\n"
    )
    unreliable = [numbers.row for each in tables.values() for numbers in each if numbers.reliable < RELIABLE]
    note = f"\nLess than 95% of the data are reliable in these rows: {'; '.join(unreliable)}.\n" if unreliable else ""
    listed = "\n" + "".join(changes) if changes else ""
    return f"{summary}\n{as_markdown(table)}{note}{listed}"


def as_markdown(table: pd.DataFrame) -> str:
    """Return a table in Markdown with numbers to the right, words to the left, and single characters in the middle."""
    lines = [("", *table.columns), ("---", *map(_alignment, table.values.T)), *table.itertuples()]
    return "".join(f"|{'|'.join(f' {cell} '.replace('  ', ' ') for cell in line)}|\n" for line in lines)


def _alignment(column: Sequence[Any]) -> str:
    cells = [str(cell) for cell in column]
    if any(re.search("[A-Za-z]{4}", cell) for cell in cells):
        return "---"
    return ":---:" if all(len(cell) == 1 for cell in cells) else "---:"


def _numbers(docs: Path, paper: str) -> list[Numbers]:
    """Return the estimates of those rows of a paper that have both a published NLL and a reproduction."""
    return list(_found(docs / "reproduction" / paper, {name: row.target for name, row in PAPERS[paper].items()}))


def _found(folder: Path, targets: Mapping[str, float]) -> Iterator[Numbers]:
    for row, target in targets.items():
        kept = _read(folder / f"{slug(row)}.json")
        if quoted := kept.get("quoted"):
            yield Numbers(row, target, kept["nll"], quoted["nll"], quoted["monte_carlo_error"], quoted["reliable"])


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def _changes(a: Numbers, b: Numbers, column: str) -> bool:
    """Return whether a column orders two rows differently than log p(x) does."""
    return (getattr(a, column) - getattr(b, column)) * (a.quoted - b.quoted) < 0


def _sentence(paper: str, a: Numbers, b: Numbers, column: str) -> str:
    better, worse = (a, b) if a.quoted < b.quoted else (b, a)
    name = {"draws": "5,000 encoder draws", "published": "the published numbers"}[column]
    return (
        f"- *{paper}*: {worse.row} is better than {better.row} by {name} ({getattr(worse, column):.2f} and "
        f"{getattr(better, column):.2f}), and worse by log p(x) ({worse.quoted:.2f} and {better.quoted:.2f}).\n"
    )


def _of(count: int, total: int) -> str:
    return f"{count or 'none'} of {total} pairs"
