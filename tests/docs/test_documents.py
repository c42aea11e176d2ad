"""The code blocks of README and docs run in order."""

import re
from pathlib import Path

import pyro
import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
HOWTO = sorted((ROOT / "docs" / "howto").glob("*.md"))
BLOCKS = {page: re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL) for page in PAGES}


def numbers(text: str, name: str) -> list[float]:
    """Return the numbers in the first line of a text that begins with a name, or an empty list."""
    line = re.search(rf"^{name} +(.*)$", text, flags=re.MULTILINE)
    return [float(number) for number in re.findall(r"-?\d+\.\d+", line[1])] if line else []


# Rows of the outputs that a page states. Other rows, such as Monte Carlo errors, depend on the machine.
OUTPUTS = {
    page: {
        name: numbers(block, name)
        for block in re.findall(r"```text\n(.*?)```", page.read_text(), flags=re.DOTALL)
        for name in ("log_likelihood", "error", "difference", "difference_error", "reliable")
        if numbers(block, name)
    }
    for page in PAGES
}


def test_code_is_found() -> None:
    assert {page.name: len(blocks) for page, blocks in BLOCKS.items() if blocks} == {
        "contributing.md": 1,
        "README.md": 3,
        "checks.md": 1,
        "components.md": 8,
        "evaluation.md": 6,
        "figures.md": 1,
        "from_pyro.md": 3,
        "from_pythae.md": 1,
        "gpu.md": 1,
        "lecture.md": 21,
        "long_runs.md": 8,
        "objectives.md": 1,
        "optimizer.md": 2,
        "own_data_set.md": 2,
        "own_estimator.md": 3,
        "own_data.md": 1,
        "own_images.md": 3,
        "cells.md": 1,
        "mixed_table.md": 2,
        "larger_than_memory.md": 1,
        "out_of_distribution.md": 1,
        "own_likelihood.md": 2,
        "own_objective.md": 2,
        "own_prior.md": 2,
        "own_program.md": 1,
        "parallel.md": 1,
        "performance.md": 1,
        "pyro_issues.md": 5,
        "resume.md": 1,
        "save_and_share.md": 2,
        "sweep.md": 2,
    }


def run_blocks(page: Path) -> None:
    scope: dict[str, object] = {}
    for block in BLOCKS[page]:
        exec(compile(block, str(page), "exec"), scope)


@pytest.mark.usefixtures("mnist5k_parsed_once", "interpreted")
@pytest.mark.parametrize("page", [page for page in PAGES if BLOCKS[page]], ids=lambda page: page.name)
def test_code_blocks_run_in_order(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_blocks(page)
    stated, printed = OUTPUTS[page], capsys.readouterr().out
    for name in stated:
        assert numbers(printed, name) == pytest.approx(stated[name], rel=0.02, abs=0.5), name


@pytest.mark.slow
@pytest.mark.usefixtures("mnist5k_parsed_once", "interpreted")
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("page", [page for page in HOWTO if BLOCKS[page]], ids=lambda page: page.name)
def test_howto_pages_run_for_other_seeds(page: Path, seed: int) -> None:
    pyro.set_rng_seed(seed)
    run_blocks(page)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if "compile=True" in "".join(BLOCKS[page])], ids=lambda page: page.name
)
def test_code_blocks_run_compiled(page: Path) -> None:
    run_blocks(page)
