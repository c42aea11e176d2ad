"""Each cell has the expected outcome, and the page shows these outcomes."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

import pyrovae as pv
from tests.programs import tools
from tests.programs.case import TOOLS
from tests.programs.cases import CASES
from tests.programs.driver import outcome
from tests.programs.record import PATH
from tests.programs.refusals import REFUSALS


def cells() -> Iterator[Any]:
    """Yield each program with each tool. A third of the cells are ordinary tests, but fewer of NUTS, which is slow."""
    for row, name in enumerate(CASES):
        for column, tool in enumerate(TOOLS):
            marks = [pytest.mark.slow] if (row + column) % (9 if tool == "nuts" else 3) else []
            yield pytest.param(name, tool, marks=marks, id=f"{name}-{tool}")


@pytest.mark.parametrize(("name", "tool"), list(cells()))
def test_a_cell_has_the_expected_outcome(name: str, tool: str) -> None:
    found = outcome(CASES[name], tool)
    assert found.kind == CASES[name].kind(tool), f"{found.message}\n{found.where}"
    if found.kind == "refused":
        assert re.search(REFUSALS[CASES[name].refused[tool]], found.message), found.message


def test_the_committed_outcomes_are_the_expected_ones() -> None:
    """Run ``python -m tests.programs.record`` and ``python -m experiments.tables`` after a change of a program."""
    committed = json.loads(PATH.read_text())
    assert list(committed) == list(CASES)
    for name, row in committed.items():
        assert list(row) == list(TOOLS)
        for tool, cell in row.items():
            assert cell["outcome"] == CASES[name].kind(tool), (name, tool)
            assert cell.get("refusal") == CASES[name].refused.get(tool), (name, tool)


def test_a_wrong_number_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks fail if log p(x) is off by a tenth of a nat, or the loss of a step by a thousandth."""
    case = CASES["one latent a datum, hand-written"]
    estimate = pv.evaluation.rqmc

    def shifted(*args: Any, **kwargs: Any) -> Any:
        results = estimate(*args, **kwargs)
        return results.assign(log_likelihood=results.log_likelihood + 0.1)

    with monkeypatch.context() as patch:
        patch.setitem(tools.CHECKS, "rqmc", lambda case: tools.check_estimator(case, shifted))
        assert outcome(case, "rqmc").kind == "wrong"
    with monkeypatch.context() as patch:
        step = pv.SVI.step
        patch.setattr(pv.SVI, "step", lambda *args, **kwargs: 1.001 * step(*args, **kwargs))
        assert outcome(case, "SVI").kind == "wrong"


def test_a_failure_deep_inside_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(case: Any) -> None:
        raise RuntimeError("the size of tensor a must match")

    monkeypatch.setitem(tools.CHECKS, "fit", fail)
    assert outcome(CASES["VAE"], "fit").kind == "error"


def test_each_refusal_is_expected_somewhere() -> None:
    assert {name for case in CASES.values() for name in case.refused.values()} == set(REFUSALS)
