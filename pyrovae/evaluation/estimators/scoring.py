"""Log-weights by running the guide once, and the model on a chunk of its draws at a time."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyrovae._compilation.graphs import compiled_or_none
from pyrovae._waist.draws import Draws
from pyrovae.evaluation.problem import Piece, Pieces
from pyrovae.isolation import owners


class Scorer:
    """Log-weights of a piece, shape ``(num_samples, n)``.

    Args:
        pieces: Where the piece is from.
        width: How many data a piece has, but for the last.
        num_samples: Draws per datum.
        block: Of how many draws the guide makes at once.
        chunk: How many of these the model scores at once.
        compile: Whether to compile the model's density for such data and chunks; what is left over is run as it is.
    """

    def __init__(
        self,
        pieces: Pieces,
        width: int,
        num_samples: int,
        block: int,
        chunk: int,
        *,
        compile: bool,  # noqa: A002
    ) -> None:
        self.pieces, self.num_samples, self.block, self.chunk = pieces, num_samples, block, chunk
        self.regular = (width, chunk) if compile else None
        self.graph: Callable[..., Sequence[Tensor]] | None = None

    def __call__(self, piece: Piece) -> Tensor:
        """Runs the programs."""
        args, parts = self.pieces.arguments(piece), []
        for done in range(0, self.num_samples, self.block):
            count = min(self.block, self.num_samples - done)
            draws = self.pieces.draw(args, count, piece.subsample)
            for start in range(0, count, self.chunk):
                stop = min(start + self.chunk, count)
                parts.append(self._log_joint(args, draws, start, stop) - draws.log_density[start:stop])
        return torch.cat(parts)

    def _log_joint(self, args: list[Tensor], draws: Draws, start: int, stop: int) -> Tensor:
        values = draws.chosen | draws.part(start, stop, self.pieces.nesting)

        def run() -> Tensor:
            return self.pieces.log_joint(args, values, stop - start)

        if (len(args[0]), stop - start) != self.regular:
            return run()
        inputs = [*args, *values.values()]
        if self.graph is None:
            modules = [module for owner in owners(self.pieces.model) for module in owner.modules()]
            tensors = [t for module in modules for t in (*module.parameters(False), *module.buffers(False))]
            self.graph = compiled_or_none(lambda: [run()], tensors, inputs, modules, caller="evaluation", frozen=True)
            self.regular = None if self.graph is None else self.regular
        return run() if self.graph is None else self.graph(*inputs)[0]
