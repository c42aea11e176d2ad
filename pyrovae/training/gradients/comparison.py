"""The comparison of a compiled loss with the loss of an eager run of the same programs."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from pyrovae.isolation import restore_buffers, save_buffers
from pyrovae.training.state import generator_states, restore_generators

LARGE = 0.05  # relative difference that rounding causes only if it changes a random decision
LEAST_CALLS = 20  # between two comparisons, because a comparison takes as long as an eager step


class Comparison:
    """The comparison of a compiled loss with the loss of an eager run on the same batch with the same noise.

    While the programs are recorded as a graph, their Python code computes numbers and takes branches. The graph keeps
    these numbers and branches. If one of them changes later, the graph no longer computes the loss of the programs.

    Args:
        parameters: Parameters that receive gradients.
        modules: Modules whose buffers a run may change.

    Attributes:
        is_due: True if the next call of the compiled loss is to be compared with an eager run.
        calls: Number of calls of the compiled loss since the last comparison.
        tolerance: Largest relative difference of the losses that is attributed to rounding.
    """

    def __init__(self, parameters: Iterable[Tensor], modules: Iterable[nn.Module]) -> None:
        self.parameters, self.modules = list(parameters), list(modules)
        self.is_due, self.calls, self.tolerance, self._was_large = True, 0, 0.0, False

    def request(self) -> None:
        """Let the next call of the compiled loss be compared, if the last comparison is at least 20 calls ago."""
        self.is_due = self.is_due or self.calls >= LEAST_CALLS

    def state(self) -> tuple[dict[str, Any], Any]:
        """Return the states of the random generators and copies of the buffers."""
        return generator_states(), save_buffers(self.modules)

    def restore(self, state: tuple[dict[str, Any], Any]) -> None:
        """Restore the generators and buffers, and remove gradients."""
        generators, buffers = state
        restore_generators(generators)
        restore_buffers(buffers)
        for parameter in self.parameters:
            parameter.grad = None

    def differ(self, loss: float, expected: float, eps: float) -> bool:
        """Return whether two losses differ by more than the tolerance for rounding.

        Args:
            loss: Compiled loss, nats.
            expected: Eager loss, nats.
            eps: Spacing of floating-point numbers at 1.
        """
        self.is_due, self.calls = False, 0
        is_different = _difference(loss, expected) > max(self.tolerance, 100 * eps)
        self._was_large = self._was_large and is_different
        return is_different

    def accept(self, loss: float, expected: float) -> bool:
        """Return whether the difference of two losses may come from rounding.

        A relative difference of at most 5% may come from rounding. Four times this difference becomes the tolerance of
        later comparisons. A larger difference is accepted once, because rounding may change a random decision, such as
        the value of a discrete latent site. The next call is then compared, too, and a second large difference is not
        accepted.
        """
        if _difference(loss, expected) <= LARGE:
            self.tolerance, self._was_large = 4 * _difference(loss, expected), False
            return True
        self.is_due = is_first = not self._was_large
        self._was_large = True
        return is_first


def _difference(loss: float, expected: float) -> float:
    return abs(loss - expected) / (1 + abs(expected))
