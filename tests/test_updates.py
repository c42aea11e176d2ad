"""Captured updates of the parameters: the same numbers, and a new graph where an old one would have others."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from pyrovae.training import updates
from pyrovae.training.updates import CapturedUpdates, can_be_captured


class Update:
    """An update of three parameters by Adam, and how often it was captured."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        self.captures = 0
        monkeypatch.setattr(updates, "capture", self._capture)
        self.parameters = [nn.Parameter(torch.ones(size)) for size in (1, 2, 3)]
        self.optimizer = torch.optim.Adam(self.parameters, fused=True, **options)
        self.captured = CapturedUpdates(lambda: self.optimizer.step(), self.optimizer)  # a schedule wraps it

    def _capture(self, function: Callable[[], None]) -> tuple[Callable[[], None], None]:
        """What a CUDA graph does: nothing at first, and the same again and again."""
        assert all(group["capturable"] for group in self.optimizer.param_groups)
        self.captures += 1
        return function, None

    def __call__(self, gradients: list[torch.Tensor]) -> list[float]:
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        self.captured(gradients)
        return [float(parameter[0].detach()) for parameter in self.parameters]


@pytest.fixture
def gradients() -> list[torch.Tensor]:
    return [torch.ones(size) for size in (1, 2, 3)]


def test_an_update_is_made_once_a_call_and_captured_once(
    monkeypatch: pytest.MonkeyPatch, gradients: list[torch.Tensor]
) -> None:
    update = Update(monkeypatch, lr=0.1)
    for steps in (1, 2, 3):
        assert update(gradients) == pytest.approx([1 - 0.1 * steps] * 3), "Adam's first steps are of the learning rate"
    assert update.captures == 1
    assert not update.optimizer.param_groups[0]["capturable"], "as it was"


def test_gradients_in_another_place_have_a_graph_of_their_own(
    monkeypatch: pytest.MonkeyPatch, gradients: list[torch.Tensor]
) -> None:
    update, others = Update(monkeypatch), [gradient.clone() for gradient in gradients]
    for given in (gradients, others, gradients, others):
        update(given)
    assert update.captures == 2


def test_another_learning_rate_is_captured_anew(monkeypatch: pytest.MonkeyPatch, gradients: list[torch.Tensor]) -> None:
    update = Update(monkeypatch, lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(update.optimizer, 0.5)
    for _ in range(2):
        update(gradients)
    schedule.step()
    for _ in range(2):
        values = update(gradients)
    assert update.captures == 2
    assert values == pytest.approx([1 - 2 * 0.1 - 2 * 0.05] * 3)


def test_a_state_that_was_loaded_is_captured_anew(
    monkeypatch: pytest.MonkeyPatch, gradients: list[torch.Tensor]
) -> None:
    update = Update(monkeypatch)
    update(gradients)
    update.optimizer.load_state_dict(update.optimizer.state_dict())
    update(gradients)
    assert update.captures == 2


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda p: torch.optim.Adam(p, fused=True), True),
        (lambda p: torch.optim.AdamW(p, fused=True), True),
        (lambda p: torch.optim.NAdam(p, capturable=True), True),
        (torch.optim.Adam, False),
        (torch.optim.SGD, False),
        (type("Projected", (torch.optim.Adam,), {}), False),
    ],
)
def test_only_steps_without_python_of_their_own_are_captured(make: Callable[[Any], Any], expected: bool) -> None:
    assert can_be_captured(make([nn.Parameter(torch.ones(1))])) == expected


def test_a_step_with_hooks_is_not_captured() -> None:
    optimizer = torch.optim.Adam([nn.Parameter(torch.ones(1))], fused=True)
    optimizer.register_step_post_hook(lambda *_: None)
    assert not can_be_captured(optimizer)
