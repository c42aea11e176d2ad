"""The page on private APIs lists every private name of another package that the code uses."""

import ast
from pathlib import Path

import pytest

import pyrovae as pv

PACKAGE = Path(pv.__file__).parent
PAGE = PACKAGE.parent / "docs" / "private_apis.md"
STANDARD = {"_replace", "_fields", "_getframe"}  # documented by Python in spite of their names


def is_private(name: str) -> bool:
    return name == "experimental" or (name.startswith("_") and not name.startswith("__"))


def is_stored(node: ast.Name | ast.Attribute) -> bool:
    return isinstance(node.ctx, ast.Store)


def private_names(sources: list[str]) -> set[str]:
    """Return the private modules, classes and attributes in some sources that classes in the sources do not define.

    Experimental modules count as private. An attribute is not its own because a function or a variable has its name.
    """
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    parts = [part for node in nodes if isinstance(node, ast.ClassDef) for part in node.body]
    own = {part.name for part in parts if isinstance(part, ast.FunctionDef)}
    own |= {name.id for part in parts for name in ast.walk(part) if isinstance(name, ast.Name) and is_stored(name)}
    stored = [node for node in nodes if isinstance(node, ast.Attribute) and is_stored(node)]
    own |= {node.attr for node in stored if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")}
    found = {node.attr for node in nodes if isinstance(node, ast.Attribute) and node.attr not in own}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and not node.module.startswith("pyrovae"):
            found |= {*node.module.split("."), *(alias.name for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {part for alias in node.names for part in alias.name.split(".")}
    return {name for name in found - STANDARD if is_private(name)}


def test_every_private_name_is_listed() -> None:
    found = private_names([path.read_text() for path in PACKAGE.rglob("*.py")])
    page = PAGE.read_text()
    assert "_pytree" in found
    assert sorted(name for name in found if name not in page) == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import torch._inductor as inductor", {"_inductor"}),
        ("from torch.utils._pytree import tree_map", {"_pytree"}),
        ("from torch.nn.modules.batchnorm import _BatchNorm", {"_BatchNorm"}),
        ("store._params['a'] = 1", {"_params"}),
        (
            "class A:\n    def _own(self):\n        self._x = 1\n"
            "        return self._x, self._own(), self.__dict__, t._replace()",
            set(),
        ),
        ("from pyrovae._waist import sites", set()),
        ("def _version(value):\n    return value._version", {"_version"}),
        ("Distribution._validate_args = True\nprint(Distribution._validate_args)", {"_validate_args"}),
        ("class A:\n    _x: int = 0\nprint(A()._x)", set()),
        ("from torch.fx.experimental.proxy_tensor import make_fx", {"experimental"}),
    ],
)
def test_private_names_are_found(source: str, expected: set[str]) -> None:
    assert private_names([source]) == expected
