"""Protocol of objects that compute the gradient of a loss: eager, compiled, or distributed over processes."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor


class Gradients(Protocol):
    """Protocol of an object that computes the loss of a batch and its gradient.

    Attributes:
        parameters: Trained parameters, by name. If only a run of the programs can find the parameters, this attribute
            holds the parameters of the last run.
        is_compiled: Whether the gradient is computed by compiled graphs.
        compile_seconds: Seconds that compilation has taken so far.
    """

    parameters: Mapping[str, Tensor]
    is_compiled: bool
    compile_seconds: float

    def __call__(self, batch: Any, kl_weight: float, /) -> Any:
        """Return the loss of a batch, and store its gradient in ``.grad`` of the parameters.

        Before the call, ``.grad`` must be None.
        """

    def value(self, batch: Any) -> float:
        """Return the loss of a batch without computing a gradient."""

    def update(self, step: Callable[[], None]) -> None:
        """Make the optimizer's step from the stored gradients."""

    def compare(self) -> None:
        """Let the next call compare its loss with that of an eager run of the programs, if the gradient is compiled."""

    def sync_buffers(self) -> None:
        """Copy the buffers of the first process to all processes."""
