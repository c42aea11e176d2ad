"""Sampling of the log-weights of a batch, in chunks of draws that fit into memory."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyrovae._compilation.graphs import compiled_or_none
from pyrovae.arguments import check_whole

if TYPE_CHECKING:
    from pyrovae.evaluation.batches import Batch
    from pyrovae.evaluation.problem import Problem
    from pyrovae.evaluation.route import Drawn


class Sampler:
    """Function that samples the log-weights of a batch, shape ``(num_draws, n)``, nats.

    If all draws of a batch fit into memory, the guide runs once for the batch. Otherwise the guide runs for a block of
    the draws at a time. The model runs for a chunk of the draws at a time, so that its tensors fit into the processor's
    cache. If the guide enumerates sites, guide and model run together.

    Args:
        problem: Model, guide and data, inside the context ``with problem:``.
        num_draws: Draws per datum.

    Attributes:
        width: Number of data in a batch.

    Raises:
        TypeError: If the number of draws is not an integer.
        ValueError: If the number of draws is less than 1.
    """

    def __init__(self, problem: "Problem", num_draws: int) -> None:
        check_draws(num_draws)
        problem.check_reach()
        self.problem, self.num_draws = problem, num_draws
        if problem.proposal is not None:
            self.width = problem.width(num_draws)
            self.block = self.chunk = max(1, min(num_draws, problem.affordable // self.width))
        elif not problem.vectorize:
            self.width = max(1, min(problem.affordable, problem.memory // (8 * num_draws)))
            self.block = self.chunk = max(1, min(num_draws, problem.affordable // self.width))
        elif problem.probe.enumerates:
            self._plan(problem.affordable, problem.affordable)
        else:
            use = problem.probe.memory
            self._plan(
                max(1, int(problem.memory / (use.guide_per_draw + use.guide_per_datum / num_draws))),
                max(1, int(problem.memory / use.model_per_draw)),
            )
        compiles = problem.options["compile"] and problem.vectorize
        compiles &= not problem.probe.masked  # a compiled graph cannot compare the masks of a batch
        self.regular = (self.width, self.chunk) if compiles else None
        self.graph: Callable[..., Sequence[Tensor]] | None = None

    def __call__(self, batch: "Batch") -> Tensor:
        """Run guide and model on a batch, and return its log-weights."""
        if self.problem.probe.enumerates:
            return self._together(batch)
        parts = []
        for done in range(0, self.num_draws, self.block):
            count = min(self.block, self.num_draws - done)
            drawn = self.problem.draw(batch, count)
            for start in range(0, count, self.chunk):
                stop = min(start + self.chunk, count)
                parts.append(self._log_joint(batch, drawn, start, stop) - drawn.log_q[start:stop])
        return torch.cat(parts)

    def _plan(self, of_guide: int, of_model: int) -> None:
        """Set ``width``, ``block`` and ``chunk``, the numbers of data and draws in a run of the guide and of the model.

        ``width`` is the number of data in a batch. ``block`` is the number of draws in one run of the guide, and
        ``chunk`` is the number of draws in one run of the model.

        Of two runs with the same number of log-weights, the run on few data with many draws is faster. The matrix
        products of both runs have the same size, but the run on few data reads less from memory.

        Args:
            of_guide: Largest number of log-weights for which a run of the guide fits into memory.
            of_model: Largest number of log-weights for which a run of the model fits into memory.
        """
        few = max(8, of_model // self.num_draws)
        most = max(1, min(self.problem.size, of_guide // self.num_draws, of_model))
        self.width = min(few, most) if self.problem.probe.cuttable else self.problem.plate.size
        self.block = min(self.num_draws, max(1, of_guide // self.width))
        self.chunk = _even(self.block, max(1, of_model // self.width))

    def _together(self, batch: "Batch") -> Tensor:
        counts = [min(self.chunk, self.num_draws - done) for done in range(0, self.num_draws, self.chunk)]
        return torch.cat([self.problem.run(batch, count).log_weights for count in counts])

    def _log_joint(self, batch: "Batch", drawn: "Drawn", start: int, stop: int) -> Tensor:
        if drawn.log_joint is not None:
            return drawn.log_joint[start:stop]
        values, masks = drawn.part(start, stop), drawn.masks_of(start, stop)

        def run() -> Tensor:
            return self.problem.log_joint(batch, values, stop - start, masks)

        if (batch.size, stop - start) != self.regular:
            return run()
        inputs = [tensor for tensor in (*batch.args, *values.values()) if isinstance(tensor, Tensor)]
        if self.graph is None:
            own = self.problem.isolation
            self.graph = compiled_or_none(
                lambda: [run()], own.tensors, inputs, own.modules, caller="evaluation", frozen=True
            )
            self.regular = None if self.graph is None else self.regular
        return run() if self.graph is None else self.graph(*inputs)[0]


def check_draws(num_samples: int) -> None:
    """Check that a number of draws is a positive integer.

    Raises:
        TypeError: If the number is not an integer.
        ValueError: If the number is less than 1.
    """
    check_whole(num_samples=num_samples)
    if num_samples < 1:
        raise ValueError(f"num_samples, the number of draws per datum, must be at least 1, got {num_samples}")


def _even(total: int, most: int) -> int:
    """Return a chunk size of at most ``most`` for ``total`` draws.

    Let n be the smallest possible number of chunks. If one of the numbers n, ..., 2 n - 1 divides ``total``, the
    smallest of these divisors is the number of chunks, and all chunks have the same size. Otherwise there are n chunks,
    and the last chunk is smaller than the others.
    """
    fewest = math.ceil(total / most)
    number = next((n for n in range(fewest, 2 * fewest) if total % n == 0), fewest)
    return math.ceil(total / number)
