"""Densities for any number of data and draws, computed by compiled graphs of one fixed size.

A compiled graph has fixed shapes, and its compilation takes seconds. The number of data to score, however, differs
between batches: an evaluation tries several methods in turn, and each method gets only the data without a reliable
estimate so far. All pairs of a datum and a vector u of its latents are therefore put into one list. A graph scores at
most :data:`ROWS` pairs of this list at a time.

Gradients are often needed for few pairs, such as one for each datum that is left. A second graph, with
:data:`FEW_ROWS` rows, computes these. A run without compilation would take longer, because Pyro's handlers take
milliseconds per run, however few pairs there are.
"""

from typing import Any

import torch
from torch import Tensor

from pyrovae._compilation.graphs import compiled_or_none
from pyrovae.evaluation.batches import Batch
from pyrovae.evaluation.unconstrained.space import Space
from pyrovae.evaluation.unconstrained.target import Target, kept

ROWS = 640  # pairs in a graph; matrix products of this size are as fast per row as larger ones
FEW_ROWS = 128  # pairs in the graph for gradients of few pairs
MOST_CALLS = 3  # calls of the graph for few pairs that are faster than one call of the other graph


class FlatTarget(Target):
    """A target that computes log p(x, u) and its gradient by compiled graphs.

    A graph computes a fixed number of rows, and each row is a pair of a datum and a vector u. The guide and the
    intermediate densities of annealing are never compiled.

    Args:
        space: The map to real vectors.
        batch: A batch of data.
        is_checked: True if the latent sites of the batch have already been checked against ``space``.
    """

    def __init__(self, space: Space, batch: Batch, *, is_checked: bool = False) -> None:
        super().__init__(space, batch, amortized=True, is_checked=is_checked, compiles=False)
        self.rows = min(ROWS, self.problem.affordable)

    def subset(self, indices: Tensor) -> "FlatTarget":
        """Return the target for those data of the batch that ``indices``, shape ``(n,)``, selects."""
        return FlatTarget(self.space, self.problem.select(self.batch, indices), is_checked=True)

    def log_joint(self, u: Tensor) -> Tensor:
        """Return log p(x, u) at real vectors u, shape ``(num_draws, N)``, nats."""
        if u.requires_grad:
            return super().log_joint(u)
        parts = [part[0] for part in self._in_parts(u, with_gradient=False)]
        return torch.cat(parts).reshape(u.shape[:2])

    def value_and_gradient(self, u: Tensor, beta: float = 1.0) -> tuple[Tensor, Tensor]:
        """Return an intermediate log-density of annealing, and its gradient; see the method of :class:`Target`."""
        if beta != 1:
            return super().value_and_gradient(u, beta)
        values, gradients = zip(*self._in_parts(u.detach(), with_gradient=True), strict=True)
        return torch.cat(values).reshape(u.shape[:2]), torch.cat(gradients).reshape(u.shape)

    def _in_parts(self, u: Tensor, *, with_gradient: bool) -> list[list[Tensor]]:
        """Compute log p(x, u) of all pairs of a datum and a vector u in chunks, with its gradient if requested.

        Returns:
            One list for each chunk, in order. The list of a chunk of n pairs holds log p(x, u), shape ``(n,)``, nats,
            and, if requested, its gradient, shape ``(n, D)``.
        """
        pairs, found, start = u.flatten(0, 1).contiguous(), list[list[Tensor]](), 0  # graphs have fixed strides
        datum = torch.arange(len(pairs), device=u.device) % self.size
        while start < len(pairs):
            rows = self._next_rows(len(pairs) - start, with_gradient)
            found.append(self._by_graph(datum[start : start + rows], pairs[start : start + rows], rows, with_gradient))
            start += rows
        return found

    def _next_rows(self, left: int, with_gradient: bool) -> int:
        """Return the number of rows of the next graph if ``left`` pairs are left."""
        return FEW_ROWS if with_gradient and left <= MOST_CALLS * FEW_ROWS < self.rows else self.rows

    def _by_graph(self, datum: Tensor, u: Tensor, rows: int, with_gradient: bool) -> list[Tensor]:
        """Compute the densities of at most ``rows`` pairs by the graph with that many rows."""
        size, missing = len(u), rows - len(u)
        if missing:
            datum, u = torch.cat([datum, datum[:1].expand(missing)]), torch.cat([u, u[:1].expand(missing, -1)])
        part = self.problem.select(self.batch, datum)
        inputs = [tensor for tensor in (*part.args, u) if isinstance(tensor, Tensor)]
        graphs, key = self.space.graphs, (rows, int(with_gradient))
        if key not in graphs:
            own: Any = self.problem.isolation

            def run() -> list[Tensor]:
                return self._densities(part, u, with_gradient)

            graphs[key] = compiled_or_none(run, own.tensors, inputs, own.modules, caller="evaluation", frozen=True)
        graph = graphs[key]
        found = self._densities(part, u, with_gradient) if graph is None else kept(graph(*inputs))
        return [column[:size] for column in found]

    def _densities(self, part: Batch, u: Tensor, with_gradient: bool) -> list[Tensor]:
        """Return log p(x, u), shape ``(n,)``, for n pairs of a datum and a vector u, and its gradient if requested."""
        target = Target(self.space, part, amortized=True, is_checked=True, compiles=False)
        if with_gradient:
            value, gradient = target.value_and_gradient(u[None])
            return [value[0], gradient[0]]
        return [target.log_joint(u[None])[0]]


def target_of(space: Space, batch: Batch, *, is_checked: bool = False) -> Target:
    """Return the target of a batch.

    With the option ``compile``, the target is a :class:`FlatTarget` if the program can run on any number of data and
    with many draws at once. All subsets of the batch then use the same compiled graphs. Otherwise, the target is a
    plain :class:`Target`.
    """
    if space.is_flat:
        return FlatTarget(space, batch, is_checked=is_checked)
    return Target(space, batch, amortized=True, is_checked=is_checked)
