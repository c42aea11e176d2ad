"""The update of the parameters as a CUDA graph, which replaces an optimizer's many Python calls by one launch."""

import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
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

    A graph keeps the options with which it was captured, and the addresses of gradients, parameters and the optimizer's
    state. For each new set of addresses, a new graph is captured. Graphs read the learning rate of Adam from a tensor,
    so this rate may change. If another option changes, all graphs are captured again.

    Args:
        optimizer: Optimizer whose steps are captured; see :func:`can_be_captured`.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.options = CapturableOptions(optimizer)
        self.settings: list[dict[str, Any]] = []
        self.graphs: dict[Addresses, Callable[[], None] | None] = {}

    def __call__(self, update: Callable[[], None], gradients: Sequence[Tensor]) -> None:
        """Update the parameters, whose ``.grad`` holds the gradients."""
        if (settings := self.options.fixed()) != self.settings:
            self.graphs.clear()
            self.settings = settings
        if (launch := self.graphs.get(self._addresses(gradients))) is not None:
            self.options.write_rates()
            launch()
            return
        with warnings.catch_warnings():  # the first step runs outside a graph and creates the optimizer's state
            warnings.filterwarnings("ignore", "This instance was constructed with capturable=True", UserWarning)
            update()
        if (addresses := self._addresses(gradients)) not in self.graphs:
            self.graphs[addresses] = self._capture(update, gradients[0].device)

    def _capture(self, update: Callable[[], None], device: torch.device) -> Callable[[], None] | None:
        try:
            with self.options.capturable():
                return capture(update, device)[0]
        except Exception as error:  # an error of the step itself was raised when it ran outside the graph
            reason = str(error).split("\n")[0]
            warnings.warn(
                f"fit continues without capturing the optimizer's step: {reason}", stacklevel=find_stack_level()
            )
            return None

    def _addresses(self, gradients: Sequence[Tensor]) -> Addresses:
        return tuple(tensor.data_ptr() for tensor in (*gradients, *self.options.tensors()))


class CapturableOptions:
    """The options of an optimizer, in the form that the capture of a step needs.

    Args:
        optimizer: Optimizer whose steps are captured.

    Attributes:
        has_rates: True if graphs read the learning rates from tensors, which Adam supports.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        is_adam = type(optimizer) in (torch.optim.Adam, torch.optim.AdamW)
        self.has_rates = is_adam and not any(isinstance(group["lr"], Tensor) for group in optimizer.param_groups)
        self._rates: list[Tensor] = []
        self._written: list[float] = []

    def fixed(self) -> list[dict[str, Any]]:
        """Return, for each parameter group, the options whose values become fixed when a graph is captured."""
        variable = {"params", "lr"} if self.has_rates else {"params"}
        return [_without(group, variable) for group in self.optimizer.param_groups]

    def tensors(self) -> list[Tensor]:
        """Return the parameters and the tensors of the optimizer's state."""
        groups, state = self.optimizer.param_groups, self.optimizer.state.values()
        parameters = [parameter for group in groups for parameter in group["params"]]
        return [*parameters, *(value for values in state for value in values.values() if isinstance(value, Tensor))]

    def write_rates(self) -> None:
        """Write the current learning rates into the tensors from which graphs read them."""
        if self.has_rates and self._written != (current := [group["lr"] for group in self.optimizer.param_groups]):
            for rate, value in zip(self._rates, current, strict=True):
                rate.fill_(value)
            self._written = current

    @contextmanager
    def capturable(self) -> Iterator[None]:
        """Context manager: mark the optimizer as capturable, and replace Adam's learning rates by tensors.

        Without the mark, torch raises an error during the capture.
        """
        groups = self.optimizer.param_groups
        before = [{name: group[name] for name in ("capturable", "lr")} for group in groups]
        if self.has_rates and len(self._rates) != len(groups):
            self._rates = [torch.zeros((), dtype=torch.float32, device=self.tensors()[0].device) for _ in groups]
            self._written = []
        self.write_rates()
        try:
            for index, group in enumerate(groups):
                group["capturable"] = True
                if self.has_rates:
                    group["lr"] = self._rates[index]
            yield
        finally:
            for group, options in zip(groups, before, strict=True):
                group.update(options)


def can_be_captured(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether the steps of an optimizer can be captured as a CUDA graph.

    The optimizer must be one of torch's own, without hooks. It must be a fused Adam or AdamW, or have the option
    ``capturable=True``. Options that are tensors must be on a CUDA device.
    """
    kind = type(optimizer)
    if not kind.__module__.startswith("torch.optim."):
        return False
    is_adam = kind in (torch.optim.Adam, torch.optim.AdamW)
    if not all(group.get("capturable") or (is_adam and group["fused"]) for group in optimizer.param_groups):
        return False
    options = [_without(group, {"params"}) for group in optimizer.param_groups]
    if any(isinstance(leaf, Tensor) and not leaf.is_cuda for leaf in tree_leaves(options)):
        return False  # such as a learning rate tensor, which a schedule changes in place but a graph reads only once
    return not (
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or _global_optimizer_pre_hooks
        or _global_optimizer_post_hooks
    )


def _without(group: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Return the options of a parameter group, except those of the given names."""
    return {name: value for name, value in group.items() if name not in names}
