"""The gradient of a loss by torch's autograd."""

from collections.abc import Callable, Mapping

from torch import Tensor

from pyrovae.training.batches import Batch
from pyrovae.training.losses import Loss


class EagerGradients:
    """The gradient of a loss, computed by running its programs under torch's autograd.

    Args:
        loss: Loss to differentiate.
        parameters: Trained parameters by name.
    """

    is_compiled = False
    compile_seconds = 0.0

    def __init__(self, loss: Loss, parameters: Mapping[str, Tensor]) -> None:
        self.loss, self.parameters = loss, parameters

    def __call__(self, batch: Batch, kl_weight: float) -> Tensor | float:
        """Return the loss of a batch and store its gradient."""
        return self.loss(batch, kl_weight)

    def value(self, batch: Batch) -> float:
        """Return the loss of a batch without computing a gradient."""
        return self.loss.value(batch)

    def update(self, step: Callable[[], None]) -> None:
        """Make the optimizer's step."""
        step()

    def compare(self) -> None:
        """Do nothing, because there is no compiled gradient to compare with an eager one."""

    def sync_buffers(self) -> None:
        """Do nothing, because there is only one process."""
