"""The update of the parameters as a CUDA graph: one launch in the place of an optimizer's calls from Python."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pyrovae.graphs import capture


class CapturedUpdates:
    """Makes updates, captured once for each set of tensors in which gradients lie.

    A graph keeps the numbers that it was captured with, such as the learning rate, and the tensors of the optimizer's
    state; where these are others, it is captured anew.

    Args:
        update: Makes an update from the gradients in ``.grad`` of the parameters.
        optimizer: What it makes a step of.
    """

    def __init__(self, update: Callable[[], None], optimizer: torch.optim.Optimizer) -> None:
        self.update, self.optimizer = update, optimizer
        self.settings: list[dict[str, Any]] = []
        self.state: Any = None
        self.graphs: dict[tuple[int, ...], Callable[[], None]] = {}

    def __call__(self, gradients: Sequence[Tensor]) -> None:
        """Makes an update; the gradients are those that lie in ``.grad`` of the parameters."""
        settings = [
            {name: value for name, value in group.items() if name != "params"} for group in self.optimizer.param_groups
        ]
        if settings != self.settings or self.optimizer.state is not self.state:
            self.graphs.clear()
            self.settings, self.state = settings, self.optimizer.state
        place = tuple(gradient.data_ptr() for gradient in gradients)
        if place in self.graphs:
            self.graphs[place]()
            return
        self.update()  # by which the optimizer makes the tensors of its state
        with _capturable(self.optimizer):
            self.graphs[place] = capture(self.update)[0]


def can_be_captured(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer's step does nothing outside the device: torch's fused Adam, and whoever says so."""
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:  # Python that no graph would call
        return False
    is_adam = type(optimizer) in (torch.optim.Adam, torch.optim.AdamW)
    return all(group.get("capturable") or (is_adam and group["fused"]) for group in optimizer.param_groups)


@contextmanager
def _capturable(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Tells an optimizer that it is meant to be captured; fused ones make the same step, but refuse without."""
    before = [group["capturable"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["capturable"] = True
    try:
        yield
    finally:
        for group, value in zip(optimizer.param_groups, before, strict=True):
            group["capturable"] = value
