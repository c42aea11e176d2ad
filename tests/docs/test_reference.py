"""Every public name is in the reference, and its docstring has arguments, return values, errors and an example."""

import ast
import inspect
import re
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any, is_typeddict

import pytest
from torch import Tensor

import pyrovae as pv
from pyrovae.arguments import Data

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
NAMES: dict[str, Any] = {f"pyrovae.{name}": getattr(pv, name) for name in pv.__all__}
PUBLIC: dict[str, Any] = NAMES | {
    f"{name}.{part}": getattr(module, part)
    for name, module in NAMES.items()
    if isinstance(module, ModuleType)
    for part in module.__all__
}
DOCUMENTED = {name: thing for name, thing in PUBLIC.items() if not isinstance(thing, ModuleType)}
ERRORS = {name for name, thing in DOCUMENTED.items() if inspect.isclass(thing) and issubclass(thing, Exception)}
NO_PAPER = {  # everything else names where it comes from
    *(f"pyrovae.parallel.{name}" for name in ("in_first", "is_first", "join", "rank", "size")),
    *("pyrovae.CheckpointError", "pyrovae.DivergenceError", "pyrovae.History", "pyrovae.fit", "pyrovae.load"),
    *("pyrovae.SVI", "pyrovae.evaluation.Options", "pyrovae.evaluation.Problem", "pyrovae.evaluation.report"),
    *("pyrovae.networks.as_mask", "pyrovae.objectives.WeightObjective"),
    *(
        "pyrovae.save",
        "pyrovae.autoencoders.L1",
        "pyrovae.data.Splits",
        "pyrovae.data.Table",
        "pyrovae.evaluation.log_weights",
    ),
    *("pyrovae.networks.Batched", "pyrovae.networks.Joint", "pyrovae.networks.conv_decoder"),
    *("pyrovae.networks.conv_encoder", "pyrovae.networks.mlp", "pyrovae.networks.split", "pyrovae.plots.bounds"),
    *("pyrovae.plots.codes", "pyrovae.plots.images", "pyrovae.plots.learning_curves", "pyrovae.plots.strips"),
    *("pyrovae.priors.Fixed", "pyrovae.testing.check_prior", "pyrovae.testing.check_likelihood"),
    "pyrovae.testing.check_posterior",
}
SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Source|Example):\n((?:(?: .*)?\n)+)", flags=re.MULTILINE)


def sections(thing: Any) -> dict[str, str]:
    """Return the sections of a docstring by their names."""
    return dict(SECTION.findall(inspect.getdoc(thing) + "\n"))


def entry(text: str, name: str) -> str | None:
    """Return the text of a section about one name."""
    found = re.search(rf"^    \*{{0,2}}{name}: ((?:.|\n(?:     |\n))*)", text, flags=re.MULTILINE)
    return found and found[1]


def raised(thing: Any) -> set[str]:
    """Return the errors that a function, or the initializer of a class, raises in its own lines."""
    function = vars(thing).get("__init__", thing) if inspect.isclass(thing) else thing
    if not inspect.isfunction(function) or function.__name__ == "__create_fn__" or "<string>" in str(function.__code__):
        return set()
    nodes = list(ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))))
    called = {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    errors = [node.exc for node in nodes if isinstance(node, ast.Raise)]
    names = {error.func.id for error in errors if isinstance(error, ast.Call) and isinstance(error.func, ast.Name)}
    return names | ({"TypeError"} if "check_whole" in called else set())


def tables() -> tuple[set[str], list[str]]:
    """Return the modules that the pages of the reference describe, and the full names in their tables."""
    modules, names = set(), []
    for page in REFERENCE.glob("*.md"):
        modules |= set(re.findall(r"^\.\. automodule:: (\S+)$", page.read_text(), flags=re.MULTILINE))
        options = r"\.\. autosummary::\n   :toctree: api\n   :nosignatures:"
        table = rf"^\.\. currentmodule:: (\S+)\n\n{options}\n\n((?:   \S+\n)+)```$"
        blocks = re.findall(table, page.read_text(), flags=re.MULTILINE)
        names += [f"{module}.{name}" for module, block in blocks for name in block.split()]
    return modules, names


def test_each_public_object_has_one_page_in_the_reference() -> None:
    modules, names = tables()
    own = {name for name in DOCUMENTED if name != "pyrovae.bayesian.BayesianVAE"}  # it is pyrovae.BayesianVAE
    assert sorted(names) == sorted(own)
    public = {name for name, thing in PUBLIC.items() if isinstance(thing, ModuleType)}
    assert public - {"pyrovae.bayesian"} <= modules


@pytest.mark.parametrize("name", sorted(set(DOCUMENTED) - ERRORS))
def test_a_docstring_says_what_is_taken_given_and_refused(name: str) -> None:
    thing = DOCUMENTED[name]
    said = sections(thing)
    if is_typeddict(thing):
        assert all(entry(said["Attributes"], key) for key in thing.__annotations__)
        return
    signature = inspect.signature(thing)
    for parameter in signature.parameters.values():
        text = entry(said.get("Args", "") + said.get("Attributes", ""), parameter.name)
        assert text, f"it says nothing of {parameter.name}"
        if parameter.annotation in (Tensor, Data, Data | None):
            assert re.search("[Ss]hape|likewise", text), f"it does not say the shape of {parameter.name}"
    if inspect.isfunction(thing) and signature.return_annotation not in (None, "None"):
        assert "Returns" in said
    missing = [error for error in raised(thing) if f"    {error}: " not in said.get("Raises", "")]
    assert not missing, f"it does not say that it raises {missing}"


@pytest.mark.parametrize("name", sorted(set(DOCUMENTED) - ERRORS))
def test_a_docstring_has_an_example(name: str) -> None:
    assert "    >>> " in sections(DOCUMENTED[name]).get("Example", "")


def test_a_docstring_names_its_paper_with_authors_and_year() -> None:
    sources = {name: sections(thing).get("Source") for name, thing in DOCUMENTED.items()}
    assert {name for name, source in sources.items() if source is None} == NO_PAPER
    for name, source in sources.items():
        assert source is None or re.search(r"[A-Z]\w+[^)]*(19|20)\d\d\)", source.replace("\n", " ")), name


@pytest.mark.parametrize("name", [name for name in DOCUMENTED if inspect.isclass(DOCUMENTED[name])])
def test_methods_have_docstrings_too(name: str) -> None:
    own = sections(DOCUMENTED[name]).get("Raises", "")  # an initializer's section may list errors of calls
    for method, function in vars(DOCUMENTED[name]).items():
        if inspect.isfunction(function) and not method.startswith("_"):
            said = inspect.getdoc(function)
            assert said, method
            missing = [error for error in raised(function) if f"{error}: " not in said + own]
            assert not missing, f"{method} does not say that it raises {missing}"
