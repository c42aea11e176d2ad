"""The update of the parameters as a CUDA graph, which replaces an optimizer's many Python calls by one launch."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks
from torch.utils._pytree import tree_leaves

from pyrovae._compilation.cuda_graphs import capture
from pyrovae._warnings import find_stack_level

Addresses = tuple[int, ...]


class CapturedUpdates:
    """Updates of parameters by CUDA graphs.

    A graph keeps the options with which it was captured, such as the learning rate, and the addresses of gradients,
    parameters and the optimizer's state. For each new set of addresses, a new graph is captured. If an option changes,
    all graphs are captured again.

    Args:
        optimizer: Optimizer whose steps are captured; see :func:`can_be_captured`.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.settings: list[dict[str, Any]] = []
        self.graphs: dict[Addresses, Callable[[], None] | None] = {}

    def __call__(self, update: Callable[[], None], gradients: Sequence[Tensor]) -> None:
        """Update the parameters, whose ``.grad`` holds the gradients."""
        if (settings := _settings(self.optimizer)) != self.settings:
            self.graphs.clear()
            self.settings = settings
        if (launch := self.graphs.get(self._addresses(gradients))) is not None:
            launch()
            return
        with warnings.catch_warnings():  # the first step runs outside a graph and creates the optimizer's state
            warnings.filterwarnings("ignore", "This instance was constructed with capturable=True", UserWarning)
            update()
        if (addresses := self._addresses(gradients)) not in self.graphs:
            self.graphs[addresses] = self._capture(update, gradients[0].device)

    def _capture(self, update: Callable[[], None], device: torch.device) -> Callable[[], None] | None:
        try:
            with _capturable(self.optimizer):
                return capture(update, device)[0]
        except Exception as error:  # an error of the step itself was raised when it ran outside the graph
            reason = str(error).split("\n")[0]
            warnings.warn(
                f"fit continues without capturing the optimizer's step: {reason}", stacklevel=find_stack_level()
            )
            return None

    def _addresses(self, gradients: Sequence[Tensor]) -> Addresses:
        groups, state = self.optimizer.param_groups, self.optimizer.state.values()
        parameters = [parameter for group in groups for parameter in group["params"]]
        kept = [value for values in state for value in values.values() if isinstance(value, Tensor)]
        return tuple(tensor.data_ptr() for tensor in (*gradients, *parameters, *kept))


def can_be_captured(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether the steps of an optimizer can be captured.

    The optimizer must be one of torch's own, without hooks. It must be a fused Adam or AdamW, or have the option
    ``capturable=True``. Options that are tensors must be on a CUDA device.
    """
    kind = type(optimizer)
    if not kind.__module__.startswith("torch.optim."):
        return False
    is_adam = kind in (torch.optim.Adam, torch.optim.AdamW)
    if not all(group.get("capturable") or (is_adam and group["fused"]) for group in optimizer.param_groups):
        return False
    if any(isinstance(leaf, Tensor) and not leaf.is_cuda for leaf in tree_leaves(_settings(optimizer))):
        return False  # such as a learning rate tensor, which a schedule changes in place but a graph reads only once
    return not (
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or _global_optimizer_pre_hooks
        or _global_optimizer_post_hooks
    )


def _settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Return the options of each parameter group, such as its learning rate."""
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]


@contextmanager
def _capturable(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Context manager: mark an optimizer as capturable, because otherwise torch raises an error during the capture."""
    before = [group["capturable"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["capturable"] = True
    try:
        yield
    finally:
        for group, value in zip(optimizer.param_groups, before, strict=True):
            group["capturable"] = value
