"""The code of README and docs runs as it stands, and their links lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = {page: re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL) for page in PAGES}


def test_code_is_found() -> None:
    assert {page.name: len(blocks) for page, blocks in BLOCKS.items() if blocks} == {
        "README.md": 3,
        "components.md": 7,
        "evaluation.md": 5,
        "index.md": 1,
        "lecture.md": 21,
        "long_runs.md": 3,
        "objectives.md": 1,
        "parallel.md": 1,
        "performance.md": 1,
    }


@pytest.mark.parametrize("page", [page for page in PAGES if BLOCKS[page]], ids=lambda page: page.name)
def test_code_blocks_run_in_order(page: Path) -> None:
    scope: dict[str, object] = {}
    for block in BLOCKS[page]:
        exec(compile(block, str(page), "exec"), scope)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!http)([^)]+)\)", page.read_text()):
        assert (page.parent / link.split("#")[0]).exists(), link
