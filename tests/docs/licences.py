"""The licences that installed packages state, and the table of the page on security.

``python -m tests.docs.licences`` writes the licences of the installed packages into the table.
"""

import re
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

import pyrovae as pv

PAGE = Path(pv.__file__).parent.parent / "docs" / "security.md"
ROW = re.compile(r"^\| (?!package )([a-z][\w.*-]+) \| ([^|]+) \|$", flags=re.MULTILINE)
READ = {  # read in the files of packages whose metadata do not state one licence
    "cuda-toolkit": "none stated (a package without files, by NVIDIA)",
    "matplotlib": "PSF-based (matplotlib licence)",
    "mlxtend": "BSD-3-Clause; its documentation CC-BY-4.0",
    "nvidia-*": "NVIDIA proprietary",
}
_SPDX = {"apache": "Apache-2.0", "mit": "MIT"}


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


def all_installed() -> set[str]:
    return installed_with("pyrovae", ("embedded", "tensorboard"), set())


def listed() -> dict[str, str]:
    """Return the table of the page: licences by name of the package, or by pattern of names."""
    return dict(ROW.findall(PAGE.read_text().split("## Licences")[1]))


def licence(name: str) -> str:
    """Return the licence of an installed package, as an SPDX expression where the package states one."""
    if (pattern := next((pattern for pattern in READ if fnmatch(name, pattern)), None)) is not None:
        return READ[pattern]
    stated = metadata.metadata(name)
    if (expression := stated["License-Expression"]) is not None:
        return str(expression)
    text = str(stated["License"] or "")
    kinds = [kind.split(" :: ")[-1] for kind in stated.get_all("Classifier") or [] if kind.startswith("License")]
    for short in (*kinds, text):
        first = short.lower().split(" ")[0]
        if first in _SPDX and " and " not in short.lower():
            return _SPDX[first]
    if any("bsd" in short.lower() for short in (*kinds, text)):
        return "BSD-3-Clause" if is_three_clause(name, text) else "BSD"
    return text


def is_three_clause(name: str, text: str) -> bool:
    """Return whether a licence forbids to use the names of the authors in advertisements."""
    files = [path for path in metadata.files(name) or [] if re.search("licen[cs]e|copying", path.name, re.IGNORECASE)]
    texts = [text, *(Path(str(path.locate())).read_text(errors="replace") for path in files)]
    return any(re.search(r"3-clause|neither\s+the\s+names?", each, re.IGNORECASE) for each in texts)


def main() -> None:
    """Write the table; rows of packages that are not installed here, such as those of other Pythons, are kept."""
    rows = listed()
    rows |= {name: licence(name) for name in all_installed() if not any(fnmatch(name, pattern) for pattern in READ)}
    lines = "\n".join(f"| {name} | {rows[name]} |" for name in sorted(rows))
    before, _, after = PAGE.read_text().partition("## Licences")
    table = list(ROW.finditer(after))
    PAGE.write_text(f"{before}## Licences{after[: table[0].start()]}{lines}{after[table[-1].end() :]}")


if __name__ == "__main__":
    main()
