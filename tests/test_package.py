"""Importing the package has no side effects, and its modules import only what the design allows."""

import ast
import re
import subprocess
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from importlib import metadata
from itertools import chain
from pathlib import Path

import pytest

import pyrovae as pv
from pyrovae.versions import version

PACKAGE = Path(pv.__file__).parent
ARCHITECTURE = PACKAGE.parent / "docs" / "architecture.md"
EVERYWHERE = {"arguments", "_progress", "_warnings"}  # checks, the progress bar, the line of a warning


def allowed_imports() -> dict[str, set[str]]:
    """Read the allowed imports of each folder from the table in the documentation."""
    rows = re.findall(r"^\| `(\w+)` \|.*(?<!\\)\|(.*?)\|$", ARCHITECTURE.read_text(), flags=re.MULTILINE)
    return {name: set(re.findall(r"`(\w+)`", allowed)) for name, allowed in rows}


def test_imports_follow_the_table_of_the_documentation() -> None:
    found: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts == ("__init__",):
            continue
        imported = found.setdefault(parts[0], set())
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pyrovae"):
                top = [alias.name for alias in node.names]
                imported |= set(top if node.module == "pyrovae" else [(node.module or "").split(".")[1]])
    allowed = allowed_imports()
    assert set(found) - EVERYWHERE == set(allowed)
    for name, imported in found.items():
        assert imported - EVERYWHERE - {name} <= allowed.get(name, set()), name


def module_imports(sources: dict[str, str]) -> dict[str, set[str]]:
    """Return the modules that each module imports when it is imported, by name, from the sources of all."""
    found: dict[str, set[str]] = {}
    for name, source in sources.items():
        nodes = [node for node in ast.parse(source).body if isinstance(node, ast.ImportFrom) and node.module in sources]
        of_names = {(node.module or "", f"{node.module}.{alias.name}") for node in nodes for alias in node.names}
        found[name] = {inner if inner in sources else outer for outer, inner in of_names} - {name}
    return found


def test_modules_import_each_other_without_a_cycle() -> None:
    paths = {path.relative_to(PACKAGE.parent).with_suffix(""): path for path in PACKAGE.rglob("*.py")}
    sources = {".".join(name.parts).removesuffix(".__init__"): path.read_text() for name, path in paths.items()}
    imports = module_imports(sources)
    assert "pyrovae.evaluation.route" in imports["pyrovae.evaluation.problem"]
    assert "pyrovae.parallel" in imports["pyrovae.evaluation.report"]
    TopologicalSorter(imports).prepare()  # raises CycleError, which names the modules


def test_a_cycle_is_found() -> None:
    sources = {
        "a": "from a.b import x",
        "a.b": "from a.c import y",
        "a.c": "from a import b\nif t:\n    from a import x",
    }
    with pytest.raises(CycleError, match=r"a\.b"):
        TopologicalSorter(module_imports(sources)).prepare()


def test_importing_changes_no_global_setting() -> None:
    code = """
import random, numpy, torch, pyro, matplotlib
def settings():
    return (
        torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(),
        torch.distributions.Distribution._validate_args, torch.backends.cudnn.benchmark,
        torch.get_float32_matmul_precision(), torch.get_rng_state().tolist(), numpy.random.get_state()[1].tolist(),
        random.getstate(), pyro.settings.get(), dict(pyro.get_param_store().items()), matplotlib.rcParams.copy(),
    )
before = settings()
import pyrovae
assert settings() == before
assert pyrovae.__version__
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


HEAVY = ("arviz", "matplotlib", "pandas", "scipy", "torchvision", "xarray", "zuko", "torch._dynamo", "torch._inductor")


def run_python(code: str) -> str:
    """Run code in a fresh interpreter and return what it prints."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], check=True, capture_output=True, text=True
    ).stdout


def run_forks(*programs: str) -> None:
    """Run programs in forks of one interpreter that has imported all packages except pyrovae and zuko."""
    run_python(f"""
import os, pyro, torch, arviz, matplotlib.pyplot, pandas, sys, xarray
from torch.distributions import Distribution
assert not {{"pyrovae", "zuko"}} & set(sys.modules)
for program in {programs}:
    if not (child := os.fork()):
        exec(program, {{}})
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, program
""")


def test_importing_loads_no_package_that_is_used_later() -> None:
    code = "import pyro, sys; before = set(sys.modules); import pyrovae; print(*(set(sys.modules) - before))"
    loaded = run_python(code).split()
    assert {"pyrovae.training.fit", "pyrovae.training.data", "pyrovae.data.sources"} <= set(loaded)
    assert [name for name in loaded if name.startswith(HEAVY)] == []


def lazily(name: str) -> tuple[str, ...]:
    """Return programs that import a submodule in three ways."""
    attribute = f"""
import sys, types
import pyrovae as pv
assert "{name}" in dir(pv) and "pyrovae.{name}" not in sys.modules
assert isinstance(pv.{name}, types.ModuleType)
from pyrovae import {name}
assert {name} is pv.{name} is sys.modules["pyrovae.{name}"]
"""
    first = f"from pyrovae import {name}; import pyrovae; assert pyrovae.{name} is {name}"
    return attribute, first, f"import pyrovae.{name}; pyrovae.{name}.__all__"


def validation_after_a_flow(enabled: bool) -> str:
    return f"""
import pyro, sys, pyrovae as pv
from torch.distributions import Distribution
pyro.enable_validation({enabled})
pv.priors.NormalizingFlow(2)
assert "zuko" in sys.modules
assert Distribution._validate_args is {enabled}
"""


@pytest.mark.slow
def test_lazy_imports() -> None:
    """A lazy submodule is an attribute and can be imported, and the first flow leaves validation as it is."""
    submodules = [program for name in ("evaluation", "guides", "plots") for program in lazily(name)]
    run_forks(*submodules, validation_after_a_flow(True), validation_after_a_flow(False))


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'pyrovae' has no attribute 'evaluations'"):
        pv.evaluations  # type: ignore[attr-defined]  # noqa: B018


def test_public_names() -> None:
    for name in pv.__all__:
        assert hasattr(pv, name)
        assert name in dir(pv)


def test_dependencies_are_bounded() -> None:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    for dependency in chain(project["dependencies"], *project["optional-dependencies"].values()):
        open_above = re.match("pillow|xarray", dependency)  # for reasons given there
        assert re.fullmatch(r"[\w-]+>=[\d.]+" + ("" if open_above else r",<\d+"), dependency), dependency


def test_versions_of_python_are_stated_alike() -> None:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    first, beyond = map(int, re.fullmatch(r">=3\.(\d+),<3\.(\d+)", project["requires-python"]).groups())  # type: ignore[union-attr]
    stated = {line.split("3.")[1] for line in project["classifiers"] if ":: Python :: 3." in line}
    assert stated == set(map(str, range(first, beyond)))
    for page in ("README.md", "docs/contributing.md"):
        assert f"Python 3.{first} to 3.{beyond - 1}" in (PACKAGE.parent / page).read_text()


def test_supported_versions_are_those_of_the_dependencies() -> None:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    split = (re.fullmatch(r"([\w-]+)(.*)", dependency) for dependency in project["dependencies"])
    bounds = {match[1]: match[2] for match in split if match} | {"Python": project["requires-python"]}
    table = re.findall(
        r"^\| (\S+) \| `(.+?)` \|$", (PACKAGE.parent / "docs" / "versions.md").read_text(), flags=re.MULTILINE
    )
    assert len(table) == 8
    assert {name: bounds[name] for name, _ in table} == dict(table)


def test_the_version_is_known_where_nothing_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert version("pyrovae") == pv.__version__
    with pytest.raises(metadata.PackageNotFoundError):
        version("torch")


def imported_modules(path: Path) -> set[str]:
    """Return the names of all modules that a file imports, also inside of functions."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names


def test_no_module_imports_a_test_module() -> None:
    """A change to one test module must not break another. Shared code is in modules like ``oracle``."""
    tests = Path(__file__).parent
    modules = {".".join(("tests", *path.relative_to(tests).with_suffix("").parts)) for path in tests.rglob("test_*.py")}
    found = {path.name: sorted(imported_modules(path) & modules) for path in tests.rglob("*.py")}
    assert {name: imported for name, imported in found.items() if imported} == {}
