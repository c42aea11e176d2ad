"""All rows of all published tables, and further runs of some of them with other seeds or schedules."""

from collections.abc import Mapping

from experiments.reproduce import flow_and_ladder, iwae, rainforth, vampprior
from experiments.reproduce.rows import Row

PAPERS: dict[str, Mapping[str, Row]] = {
    "iwae": iwae.ROWS,
    "rainforth": rainforth.ROWS,
    "vampprior": vampprior.ROWS,
    "flow_and_ladder": flow_and_ladder.ROWS,
}
MAIN = "."  # the part with the rows of the tables themselves
AGAIN = "1 layer, IWAE, k = 5"  # the row of the IWAE paper that is also run with other seeds and schedules
SEEDS = {0: MAIN, 1: "seed_1", 2: "seed_2"}  # parts by seed
PAPER_SCHEDULE = "paper_schedule"
PARTS = {MAIN: "", PAPER_SCHEDULE: "Adam, the paper's schedule", SEEDS[1]: "seed 1", SEEDS[2]: "seed 2"}


def paper_of(row: str) -> str:
    """Return the name of the paper that contains a row.

    Args:
        row: Name of the row, such as ``"1 layer, IWAE, k = 5"``.

    Raises:
        ValueError: If no paper contains the row.
    """
    for paper, rows in PAPERS.items():
        if row in rows:
            return paper
    raise ValueError(
        f"No paper has the row {row!r}. Choose from {[name for rows in PAPERS.values() for name in rows]}."
    )
