"""Run all cells and write ``docs/results/programs.json``: ``python -m tests.programs.record [part of a name] ...``.

``python -m experiments.tables`` then writes the page.
"""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tests.programs.case import TOOLS, Case
from tests.programs.cases import CASES
from tests.programs.driver import outcome
from tests.programs.refusals import name_of

PATH = Path(__file__).parents[2] / "docs" / "results" / "programs.json"


def main(parts: Sequence[str]) -> None:
    """Run the programs whose names contain one of the parts, by default all, and keep the outcomes of the others."""
    torch.set_num_threads(1)
    for name, case in CASES.items():
        if not parts or any(part in name for part in parts):
            found = record(case)
            known = json.loads(PATH.read_text()) if PATH.exists() else {}  # another process may have written
            known[name] = found
            PATH.write_text(json.dumps({name: known[name] for name in CASES if name in known}, indent=1) + "\n")


def record(case: Case) -> dict[str, Any]:
    """Return the outcome of each tool; refusals have their name and their message."""
    found = {}
    for tool in TOOLS:
        cell = outcome(case, tool)
        found[tool] = {"outcome": cell.kind}
        if cell.kind == "refused":
            message = re.sub(r"'/[^']*/(\w+\.pt)'", r"'\1'", cell.message)  # the folder is another one in each run
            found[tool] |= {"refusal": name_of(message), "message": message}
        elif cell.kind != "right":
            found[tool] |= {"message": cell.message}
            sys.stderr.write(f"{case.name}, {tool}: {cell.kind}\n{cell.where}\n")
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
