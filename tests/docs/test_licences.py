"""The page on security lists the licence of every package that is installed with pyrovae."""

import re
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

import pyrovae as pv

PAGE = Path(pv.__file__).parent.parent / "docs" / "security.md"


def installed_with(name: str, extras: tuple[str, ...], found: set[str]) -> set[str]:
    """Add the names of the installed packages that a package requires, and of those that these require."""
    for line in metadata.requires(name) or []:
        requirement = Requirement(line)
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            continue
        key = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if key not in found and any(metadata.distributions(name=requirement.name)):
            found.add(key)
            installed_with(requirement.name, tuple(requirement.extras), found)
    return found


def test_every_dependency_is_listed() -> None:
    listed = re.findall(r"^\| ([\w.*-]+) \| [^|]+ \|$", PAGE.read_text(), flags=re.MULTILINE)
    found = installed_with("pyrovae", ("embedded", "tensorboard"), set())
    assert "torch" in found
    assert sorted(name for name in found if not any(fnmatch(name, pattern) for pattern in listed)) == []
