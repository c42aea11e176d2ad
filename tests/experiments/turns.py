"""Contenders of the training benchmark that train for one turn within the process of the tests."""

from functools import partial
from typing import Any, ClassVar

import pyro
import pytest

from experiments.benchmarks import rounds
from experiments.benchmarks.problem import Problem
from experiments.benchmarks.trainers import ours, pytorch, stock_pyro

TRAINERS = {
    "Pyro": partial(stock_pyro.main, validated=False),
    "PyTorch": partial(pytorch.main, compiled=False),
    "pyrovae": partial(ours.main, compiled=False),
}


class OneTurn:
    """A channel without a parent process, which gives one turn."""

    facts: ClassVar[dict[str, float]] = {}

    def __init__(self, name: str, **facts: float) -> None:
        self.turns = 1
        OneTurn.facts = facts

    def turn(self, seconds: float | None = None) -> bool:
        self.turns -= 1
        return self.turns >= 0

    def close(self) -> None:
        assert self.turns < 0


def facts_of(problem: Problem, monkeypatch: pytest.MonkeyPatch, **others: Any) -> dict[str, dict[str, float]]:
    """Return what each contender reports before it trains for one turn."""
    monkeypatch.setattr(rounds, "Channel", OneTurn)
    monkeypatch.setattr(ours, "Channel", OneTurn)
    facts = {}
    with pyro.validation_enabled(True):  # contenders switch validation off
        for name, main in (TRAINERS | others).items():
            main(problem)
            facts[name] = OneTurn.facts
    return facts
