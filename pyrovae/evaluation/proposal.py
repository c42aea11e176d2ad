"""Protocol of a guide that is fitted to the posterior of each datum, and so becomes a better proposal."""

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from torch import Tensor

from pyrovae._refinement.normal import Normal
from pyrovae._waist.sites import Program
from pyrovae.evaluation.batches import Batch
from pyrovae.evaluation.route import Drawn

if TYPE_CHECKING:
    from pyrovae.evaluation.problem import Problem


@runtime_checkable
class Proposal(Protocol):
    """A guide that is fitted to the posterior of each datum, such as :class:`pyrovae.guides.Refined`.

    Attributes:
        guide: The guide from which the fit starts.
    """

    guide: Program

    def open(self, problem: "Problem") -> None:
        """Prepare the proposal for a model, guide and data. ``with problem:`` calls this before the first batch."""

    def width(self, problem: "Problem") -> int:
        """Return the batch size of an evaluation with this proposal."""

    def draw(self, problem: "Problem", batch: Batch, num_draws: int, noise: Tensor | None = None) -> Drawn:
        """Draw latents for each datum of a batch.

        If ``noise`` is given, its standard normal vectors are used instead of random ones.
        """

    def normal(self, problem: "Problem", batch: Batch) -> Normal:
        """Return the normal density that is fitted to the posterior of each datum, in unconstrained coordinates."""

    def log_density(self, problem: "Problem", batch: Batch, values: dict[str, Tensor]) -> Tensor:
        """Return the log-density of the fitted guide at given values, shape ``(num_draws, n)``, nats."""
