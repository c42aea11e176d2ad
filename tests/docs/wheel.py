"""Check that the wheel works alone: install it into an empty environment, and run the first script of README there.

``python -m tests.docs.wheel`` builds the wheel with uv. The script trains for one epoch and evaluates five digits.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHORTER = {"epochs=10": "epochs=1", "splits.test[:100]": "splits.test[:5]"}


def script() -> str:
    """Return the first script of README, with less work.

    Raises:
        ValueError: If README no longer has the numbers that are replaced.
    """
    (code, *_) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    for long, short in SHORTER.items():
        if long not in code:
            raise ValueError(f"the first script of README does not contain {long!r}. Change SHORTER in {__file__}.")
        code = code.replace(long, short)
    return str(code)


def main() -> None:
    """Build, install and run."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["uv", "build", "--quiet", "--wheel", "--out-dir", folder], cwd=ROOT, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        package = f"pyrovae[embedded] @ {wheel.as_uri()}"
        command = ["uv", "run", "--quiet", "--no-project", "--isolated", "--python", sys.executable]
        subprocess.run([*command, "--with", package, "python", "-c", script()], cwd=folder, check=True)


if __name__ == "__main__":
    main()
