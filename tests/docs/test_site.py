"""The check of the built site finds loaded files, lost links and names that the search lacks."""

import json
from pathlib import Path

import pytest

from tests.docs import site

GOOD = """<link rel="stylesheet" href="style.css"><link rel="canonical" href="https://example.org/a">
<h1 id="top"></h1><a href="https://example.org">x</a><a href="#top">x</a><a href="b.html#here">x</a>
<a href="data:,">x</a>"""


@pytest.fixture
def built(tmp_path: Path) -> Path:
    (tmp_path / "style.css").touch()
    (tmp_path / "a.html").write_text(GOOD)
    (tmp_path / "b.html").write_text('<p id="here"></p>')
    names = [name.rpartition(".") for name in sorted(site.public_names())]
    objects = {prefix: [[0, 0, 1, "", name] for other, _, name in names if other == prefix] for prefix, _, _ in names}
    (tmp_path / "searchindex.js").write_text(f"Search.setIndex({json.dumps({'objects': objects})})")
    return tmp_path


def test_a_good_site_has_no_faults(built: Path) -> None:
    assert site.main(built) == 0


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('<script src="https://cdn.example.org/x.js"></script>', "a.html loads https://cdn.example.org/x.js"),
        ('<link rel="stylesheet" href="//fonts.example.org">', "a.html loads //fonts.example.org"),
        ('<img src="missing.png">', "a.html links to missing.png"),
        ('<a href="c.html">x</a>', "a.html links to c.html"),
        ('<a href="b.html#lost">x</a>', "a.html links to b.html#lost"),
        ('<a href="#lost">x</a>', "a.html links to #lost"),
    ],
)
def test_a_fault_is_found(text: str, fault: str, built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (built / "a.html").write_text(GOOD + text)
    assert site.main(built) == 1
    assert capsys.readouterr().out.strip() == fault


def test_a_name_without_an_entry_in_the_search_index_is_found(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = built / "searchindex.js"
    index.write_text(index.read_text().replace('"evaluate"', '"other"'))
    assert site.main(built) == 1
    assert capsys.readouterr().out.strip() == "search does not find pyrovae.evaluation.evaluate"
