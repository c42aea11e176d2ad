"""Links between the pages of the documentation lead to existing files and headings."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def prose(text: str) -> str:
    """Return the text of a page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(text: str) -> set[str]:
    """Return the anchors of the headings of a page, which GitHub and Sphinx build in the same way."""
    headings = re.findall(r"^#{1,3} (.+)$", prose(text), flags=re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings]
    return {name if plain[:i].count(name) == 0 else f"{name}-{plain[:i].count(name)}" for i, name in enumerate(plain)}


def broken_links(text: str, folder: Path) -> list[str]:
    """Return the links of a page to files or headings that do not exist, without links to other sites."""
    broken = []
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", prose(text)):
        name, _, anchor = link.partition("#")
        target = folder / name
        if (name and not target.exists()) or (anchor and anchor not in anchors(target.read_text() if name else text)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings(page: Path) -> None:
    assert broken_links(page.read_text(), page.parent) == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# Title\n\n## Grey values, `x`\n\n```sh\n# no heading\n```\n")
    good = "[a](other.md) [b](other.md#grey-values-x) [c](#here) [d](https://example.org/x)\n\n# Here\n"
    assert broken_links(good, tmp_path) == []
    bad = "[a](missing.md) [b](other.md#no-heading) [c](#there)\n\n# Here\n"
    assert broken_links(bad, tmp_path) == ["missing.md", "other.md#no-heading", "#there"]


def test_every_page_is_in_a_table_of_contents() -> None:
    docs = ROOT / "docs"
    trees = {page: re.findall(r"```{toctree}\n(.*?)```", page.read_text(), flags=re.DOTALL) for page in PAGES}
    listed = {
        (page.parent / line).with_suffix(".md").resolve()
        for page, blocks in trees.items()
        for line in "".join(blocks).splitlines()
        if line and not line.startswith(":")
    }
    assert {page for page in docs.rglob("*.md") if page.name != "index.md" or page.parent != docs} == listed
