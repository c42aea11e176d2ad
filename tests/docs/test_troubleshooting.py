"""Each message that the page on troubleshooting quotes occurs in the source, and has a cause and a remedy."""

import ast
import re
from pathlib import Path

import pytest

import pyrovae as pv

PACKAGE = Path(pv.__file__).parent
PAGE = PACKAGE.parent / "docs" / "troubleshooting.md"
ENTRIES = dict(re.findall(r"^### `(.+?)`\n(.*?)(?=^##|\Z)", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE))


def texts(source: str) -> list[str]:
    """Return the strings of a module except docstrings, with ``...`` in place of the values in f-strings."""
    nodes = list(ast.walk(ast.parse(source)))
    docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    found = []
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            found.append("".join(str(v.value) if isinstance(v, ast.Constant) else "..." for v in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            found.append(node.value)
    return found


SOURCE = [text for path in PACKAGE.rglob("*.py") for text in texts(path.read_text())]


def occurs(message: str, found: list[str]) -> bool:
    """Return whether a string holds the parts of a message, which ``...`` separates, in order."""
    pattern = re.compile(".+".join(re.escape(part) for part in message.split("...")), flags=re.DOTALL)
    return any(pattern.search(text) for text in found)


def test_the_page_has_entries() -> None:
    assert len(ENTRIES) > 40


@pytest.mark.parametrize("message", ENTRIES)
def test_a_quoted_message_occurs_in_the_source(message: str) -> None:
    assert occurs(message, SOURCE)


@pytest.mark.parametrize("message", ENTRIES)
def test_an_entry_has_a_cause_and_a_remedy(message: str) -> None:
    assert re.fullmatch(r"\n\*\*Cause\.\*\* .+\n\n\*\*Remedy\.\*\* .+\n+", ENTRIES[message], flags=re.DOTALL)


def test_a_message_is_found_by_its_parts() -> None:
    found = texts("""'not a message'\nraise ValueError(f"latent site {name!r} is in " f"{place}; move it")""")
    assert occurs("latent site ... is in ...; move it", found)
    assert not occurs("latent site ... is not in ...; move it", found)
    assert not occurs("not a message", found)
