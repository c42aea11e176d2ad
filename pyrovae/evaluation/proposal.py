"""The protocol of a guide that is made for each datum from another guide."""

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from torch import Tensor

from pyrovae._waist.sites import Program
from pyrovae.evaluation.batches import Batch
from pyrovae.evaluation.route import Drawn

if TYPE_CHECKING:
    from pyrovae.evaluation.problem import Problem


@runtime_checkable
class Proposal(Protocol):
    """A guide that is made for each datum from another guide, such as :class:`pyrovae.guides.Refined`.

    Attributes:
        guide: The guide that it is made from.
    """

    guide: Program

    def open(self, problem: "Problem") -> None:
        """Get ready for the batches of an opened problem."""

    def width(self, problem: "Problem") -> int:
        """Return the number of data for a batch."""

    def draw(self, problem: "Problem", batch: Batch, num_draws: int) -> Drawn:
        """Draw for each datum of a batch."""

    def log_density(self, problem: "Problem", batch: Batch, values: dict[str, Tensor]) -> Tensor:
        """Return the log-density at given values, shape ``(num_draws, n)``, nats."""
