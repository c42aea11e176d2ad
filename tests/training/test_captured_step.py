"""Captured updates of the parameters give the same numbers, and are captured again if the old graph is invalid."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytorch_optimizer import Lookahead
from torch import Tensor, nn
from torch.optim import Adam, AdamW, NAdam, Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from pyrovae.training import captured_step
from pyrovae.training.captured_step import CapturedUpdates, can_be_captured
from tests.conftest import small_vae
from tests.steps import compiled_step


class Update:
    """An update of three parameters by Adam, with the number of its captures."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        self.captures = 0
        monkeypatch.setattr(captured_step, "capture", self._capture)
        self.parameters = [nn.Parameter(torch.ones(size)) for size in (1, 2, 3)]
        self.gradients = [torch.ones(size) for size in (1, 2, 3)]
        self.optimizer = Adam(self.parameters, fused=True, **options)
        self.captured = CapturedUpdates(self.optimizer)

    def _capture(self, function: Callable[[], None], _: torch.device) -> tuple[Callable[[], None], None]:
        """Imitate a CUDA graph: the capture does nothing, and each replay repeats the recorded operations."""
        assert all(group["capturable"] for group in self.optimizer.param_groups)
        self.captures += 1
        (group,) = self.optimizer.param_groups
        seen = {name: value for name, value in group.items() if name != "params"}

        def launch() -> None:
            now = {name: group[name] for name in seen}
            group.update(seen)
            function()
            group.update(now)

        return launch, None

    def __call__(self, gradients: list[Tensor] | None = None) -> list[float]:
        gradients = self.gradients if gradients is None else gradients
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        self.captured(self.optimizer.step, gradients)
        return [float(parameter[0].detach()) for parameter in self.parameters]


def test_an_update_is_made_once_a_call_and_captured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    update = Update(monkeypatch, lr=0.1)
    for steps in (1, 2, 3):
        assert update() == pytest.approx([1 - 0.1 * steps] * 3), "Adam's first steps are of the learning rate"
    assert update.captures == 1
    assert not update.optimizer.param_groups[0]["capturable"], "as it was"


def test_gradients_in_another_place_have_a_graph_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    update = Update(monkeypatch)
    others = [gradient.clone() for gradient in update.gradients]
    for given in (update.gradients, others, update.gradients, others):
        update(given)
    assert update.captures == 2


def test_a_graph_reads_the_learning_rate_of_adam(monkeypatch: pytest.MonkeyPatch) -> None:
    update = Update(monkeypatch, lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(update.optimizer, 0.5)
    for _ in range(2):
        update()
    schedule.step()
    for _ in range(2):
        values = update()
    assert update.captures == 1
    assert values == pytest.approx([1 - 2 * 0.1 - 2 * 0.05] * 3)
    assert type(update.optimizer.param_groups[0]["lr"]) is float, "as it was"


def test_another_option_is_captured_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, captured = Update(monkeypatch, lr=0.1), Update(monkeypatch, lr=0.1)
    plain.captured = lambda update, _: update()  # type: ignore[assignment]
    for update in (captured, plain):
        for maximize in (False, False, True, True):
            update.optimizer.param_groups[0]["maximize"] = maximize
            update()
    assert captured.captures == 2
    assert float(captured.parameters[0].detach()) == pytest.approx(float(plain.parameters[0].detach()))


def loaded(optimizer: Optimizer) -> None:
    optimizer.load_state_dict(optimizer.state_dict())
    for parameter in optimizer.state:
        optimizer.state[parameter] = {name: value.clone() for name, value in optimizer.state[parameter].items()}


def moved(optimizer: Optimizer) -> None:
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.data = parameter.data.clone()


@pytest.mark.parametrize("change", [loaded, moved])
def test_tensors_in_another_place_are_captured_anew(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[Optimizer], None]
) -> None:
    update = Update(monkeypatch)
    update()
    before = dict(update.optimizer.state), [parameter.data for parameter in update.parameters]  # no address is reused
    change(update.optimizer)
    update()
    assert update.captures == 2, before


def test_an_update_that_cannot_be_captured_is_made_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    update = Update(monkeypatch, lr=0.1)

    def refuse(*_: Any) -> None:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(captured_step, "capture", refuse)
    with pytest.warns(UserWarning, match="without capturing the optimizer's step: CUDA error: operation not permitted"):
        update()
    for _ in range(2):
        values = update()
    assert values == pytest.approx([1 - 3 * 0.1] * 3)


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(1))]


class Projected(Adam):
    """An optimizer that changes parameters after its step."""


class Wrapper(Optimizer):
    """An optimizer that does not expose the attributes of torch's optimizers."""

    def __init__(self, inner: Optimizer) -> None:
        self.inner = inner

    @property
    def param_groups(self) -> Any:
        return self.inner.param_groups


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: Adam(parameters(), fused=True), True),
        (lambda: AdamW(parameters(), fused=True), True),
        (lambda: NAdam(parameters(), capturable=True), True),
        (lambda: Adam(parameters()), False),
        (lambda: torch.optim.SGD(parameters()), False),
        (lambda: Projected(parameters(), capturable=True), False),
        (lambda: Lookahead(NAdam(parameters(), capturable=True)), False),
        (lambda: Wrapper(NAdam(parameters(), capturable=True)), False),
        (lambda: Adam(parameters(), lr=torch.tensor(0.1), fused=True), False),
        (lambda: Adam([{"params": parameters()}, {"params": parameters(), "fused": False}], fused=True), False),
    ],
)
def test_only_steps_without_python_of_their_own_are_captured(make: Callable[[], Optimizer], expected: bool) -> None:
    assert can_be_captured(make()) == expected


def test_a_step_with_hooks_is_not_captured() -> None:
    optimizer = Adam(parameters(), fused=True)
    assert can_be_captured(optimizer)
    handle = optimizer.register_step_post_hook(lambda *_: None)
    assert not can_be_captured(optimizer)
    handle.remove()
    handle = register_optimizer_step_pre_hook(lambda *_: None)
    assert not can_be_captured(optimizer)
    handle.remove()
    assert can_be_captured(optimizer)


def test_steps_are_freed_with_their_graphs(x: Tensor) -> None:
    step, gradients = compiled_step(small_vae(), (x,), weighted=False)
    assert gradients.captured is not None
    alive = weakref.ref(gradients)
    gc.disable()
    try:
        del step, gradients
        assert alive() is None
    finally:
        gc.enable()
