"""Gradients of a loss: eager, compiled, or shared out among processes; the loop knows their protocol alone."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor


class Gradients(Protocol):
    """A gradient of a loss.

    Attributes:
        parameters: Trained parameters that the last gradient is of, by name.
        compile_seconds: Time that compilation has taken so far.
    """

    parameters: Mapping[str, Tensor]
    compile_seconds: float

    def __call__(self, batch: Any, kl_weight: float, /) -> Any:
        """Return the loss of a batch and leave its gradient in ``.grad`` of the parameters, which have none before."""

    def value(self, batch: Any) -> float:
        """Return the loss of a batch without a gradient."""

    def update(self, step: Callable[[], None]) -> None:
        """Make the optimizer's step, which reads the gradients where they lie."""

    def sync_buffers(self) -> None:
        """Give all processes the buffers of the first."""
