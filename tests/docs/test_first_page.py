"""README and the first page of the documentation share their text; the table of libraries names existing functions."""

import importlib
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import pyrovae as pv

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
LIBRARIES = {"Pyro": "pyro-ppl", "NumPyro": "numpyro", "pythae": "pythae", "ArviZ": "arviz"}


def table() -> list[list[str]]:
    """Return the cells of the comparison with other libraries, the header first."""
    section = README.split("### Comparison with other libraries")[1]
    rows = [line for line in section.split("\n\n")[2].splitlines() if not line.startswith("| ---")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def column(name: str) -> list[str]:
    """Return the cells of a library, without the header."""
    header, *rows = table()
    index = next(i for i, cell in enumerate(header) if name in cell)
    return [row[index] for row in rows]


def names(cell: str) -> list[str]:
    return re.findall(r"`([\w.-]+)`", cell)


def resolve(name: str) -> Any:
    """Return the object with a dotted name; raise AttributeError or ModuleNotFoundError if there is none."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


def test_every_cell_of_pyrovae_names_a_function() -> None:
    for cell in column("pyrovae"):
        assert names(cell), cell
        for name in names(cell):
            assert callable(resolve(name.replace("pv.", "pyrovae.", 1)))


@pytest.mark.parametrize("library", LIBRARIES)
def test_cells_of_other_libraries_name_functions_of_the_stated_version(library: str) -> None:
    try:
        installed = metadata.version(LIBRARIES[library])
    except metadata.PackageNotFoundError:
        pytest.skip(f"{library} is not installed")
    stated = re.search(rf"{library} ([\d.]*\d)", README.split("The table compares", 1)[1])
    assert stated is not None
    if installed.split(".")[0] != stated[1].split(".")[0]:
        pytest.skip(f"the table compares {library} {stated[1]}, but {installed} is installed")
    for cell in column(library):
        for name in names(cell):
            assert callable(resolve(name))


def test_a_missing_function_is_noticed() -> None:
    with pytest.raises(AttributeError):
        resolve("pyro.infer.DRegELBO")


def test_the_first_page_includes_readme() -> None:
    page = (ROOT / "docs" / "index.md").read_text()
    assert page.startswith("```{include} ../README.md\n")
    (end,) = re.findall(r':end-before: "(.*?)"', page)
    shared, rest = README.split(end)
    assert "```python" in shared
    assert "](#" not in shared  # an anchor of the rest does not exist on the first page
    assert all(link.startswith("docs/") or "://" in link for link in re.findall(r"\]\(([^)]+)\)", shared))
    assert "## ELBO against IWAE" in rest


def test_the_wheel_in_readme_has_the_current_version() -> None:
    assert f"pyrovae-{pv.__version__}-py3-none-any.whl" in README
