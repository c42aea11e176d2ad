"""The benchmark of the first minute measures what it names."""

import json
import subprocess
from pathlib import Path

import pytest

from experiments.benchmarks import first_minute


def test_a_compilation_is_a_compiled_run_minus_an_eager_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled = []

    def seconds_of(script: str, **variables: str) -> float:
        if "fit(vae, x" not in script:
            return 60.0 if "log_likelihood" in script else 0.5
        cache = Path(variables["TORCHINDUCTOR_CACHE_DIR"])
        filled.append(any(cache.iterdir()))
        if "compile=False" in script:
            return 2.0
        (cache / "graph").touch()
        return 6.0 if filled[-1] else 15.0

    monkeypatch.setattr(first_minute, "seconds_of", seconds_of)
    table = first_minute.main(first_minute.Options(rounds=2, out=tmp_path))
    assert filled == [False, False, True] * 2
    assert {name: float(seconds.split(" ")[0]) for name, seconds in table.seconds.items()} == {
        "import pyrovae": 0.5,
        "two eager steps": 2.0,
        "first compilation, cold": 13.0,
        "first compilation, warm": 4.0,
        "script of the README": 60.0,
    }
    assert json.loads((tmp_path / "first_minute.json").read_text())["table"] == table.to_dict("index")


def test_the_two_steps_run() -> None:
    script = first_minute.TWO_STEPS.format(threads=1, compiled=False)
    assert first_minute.seconds_of(script) > 0


def test_a_script_that_fails_is_an_error() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        first_minute.seconds_of("raise SystemExit(3)")


def test_the_script_is_that_of_the_readme() -> None:
    assert "pv.evaluation.log_likelihood(" in first_minute.script_of(first_minute.README)
