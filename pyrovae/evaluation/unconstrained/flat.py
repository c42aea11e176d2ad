"""Densities for any number of data and draws, computed by compiled graphs of one fixed size.

A compiled graph has fixed shapes, and its compilation takes seconds. The number of data to score, however, differs
between batches: an evaluation tries several methods in turn, and each method gets only the data without a reliable
estimate so far. All pairs of a datum and a vector u of its latents are therefore put into one list. A graph scores at
most :data:`ROWS` pairs of this list at a time.
"""

from typing import Any

import torch
from torch import Tensor

from pyrovae._compilation.graphs import compiled_or_none
from pyrovae.evaluation.batches import Batch
from pyrovae.evaluation.unconstrained.space import Space
from pyrovae.evaluation.unconstrained.target import Target, kept

ROWS = 640  # pairs in a graph; matrix products of this size are as fast per row as larger ones


class FlatTarget(Target):
    """A target that computes log p(x, u) and its gradient by compiled graphs.

    A graph computes a fixed number of rows, and each row is a pair of a datum and a vector u. If the pairs of a call
    fill less than half of the rows, the call runs without compilation. The guide and the intermediate densities of
    annealing are never compiled.

    Args:
        space: The map to real vectors.
        batch: A batch of data.
        is_checked: True if the latent sites of the batch have already been checked against ``space``.
    """

    def __init__(self, space: Space, batch: Batch, *, is_checked: bool = False) -> None:
        super().__init__(space, batch, amortized=True, is_checked=is_checked, compiles=False)
        self.rows = min(ROWS, space.problem.affordable)

    def subset(self, indices: Tensor) -> "FlatTarget":
        """Return the target for those data of the batch that ``indices``, shape ``(n,)``, selects."""
        return FlatTarget(self.space, self.problem.select(self.batch, indices), is_checked=True)

    def log_joint(self, u: Tensor) -> Tensor:
        """Return log p(x, u) at real vectors u, shape ``(num_draws, N)``, nats."""
        if u.requires_grad or self._are_few(u):
            return super().log_joint(u)
        parts = [part[0] for part in self._in_parts(u, with_gradient=False)]
        return torch.cat(parts).reshape(u.shape[:2])

    def log_densities(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p(x, u) and log q(u | x) at real vectors u, each of shape ``(num_draws, N)``, nats."""
        if u.requires_grad or self._are_few(u):
            return super().log_densities(u)
        return self.log_joint(u), self.log_guide(u)

    def value_and_gradient(self, u: Tensor, beta: float = 1.0) -> tuple[Tensor, Tensor]:
        """Return an intermediate log-density of annealing, and its gradient; see the method of :class:`Target`."""
        if beta != 1 or self._are_few(u):
            return super().value_and_gradient(u, beta)
        values, gradients = zip(*self._in_parts(u.detach(), with_gradient=True), strict=True)
        return torch.cat(values).reshape(u.shape[:2]), torch.cat(gradients).reshape(u.shape)

    def _are_few(self, u: Tensor) -> bool:
        """Return true if ``u`` holds fewer vectors than half of ``self.rows``, the fixed size of a compiled graph."""
        return 2 * len(u) * self.size < self.rows

    def _in_parts(self, u: Tensor, *, with_gradient: bool) -> list[list[Tensor]]:
        """Compute log p(x, u) of all pairs of a datum and a vector u in chunks, with its gradient if requested.

        Returns:
            One list for each chunk, in order. The list of a chunk of n pairs holds log p(x, u), shape ``(n,)``, nats,
            and, if requested, its gradient, shape ``(n, D)``.
        """
        pairs, found = u.flatten(0, 1), list[list[Tensor]]()
        datum = torch.arange(len(pairs), device=u.device) % self.size
        for start in range(0, len(pairs), self.rows):
            some, of = pairs[start : start + self.rows], datum[start : start + self.rows]
            if 2 * len(some) < self.rows:
                found.append(self._densities(self.problem.select(self.batch, of), some, with_gradient))
            else:
                missing = self.rows - len(some)
                filled = torch.cat([of, of[:1].expand(missing)]), torch.cat([some, some[:1].expand(missing, -1)])
                found.append([part[: len(some)] for part in self._by_graph(*filled, with_gradient)])
        return found

    def _by_graph(self, datum: Tensor, u: Tensor, with_gradient: bool) -> list[Tensor]:
        part = self.problem.select(self.batch, datum)
        inputs = [tensor for tensor in (*part.args, u) if isinstance(tensor, Tensor)]
        graphs, key = self.space.graphs, (len(u), int(with_gradient))
        if key not in graphs:
            own: Any = self.problem.isolation

            def run() -> list[Tensor]:
                return self._densities(part, u, with_gradient)

            graphs[key] = compiled_or_none(run, own.tensors, inputs, own.modules, caller="evaluation", frozen=True)
        graph = graphs[key]
        return self._densities(part, u, with_gradient) if graph is None else kept(graph(*inputs))

    def _densities(self, part: Batch, u: Tensor, with_gradient: bool) -> list[Tensor]:
        """Return log p(x, u), shape ``(n,)``, for n pairs of a datum and a vector u, and its gradient if requested."""
        target = Target(self.space, part, amortized=True, is_checked=True, compiles=False)
        if with_gradient:
            value, gradient = target.value_and_gradient(u[None])
            return [value[0], gradient[0]]
        return [target.log_joint(u[None])[0]]


def target_of(space: Space, batch: Batch) -> Target:
    """Return the target of a batch.

    With the option ``compile``, the target is a :class:`FlatTarget` if the program can run on any number of data and
    with many draws at once. All subsets of the batch then use the same compiled graphs. Otherwise, the target is a
    plain :class:`Target`.
    """
    problem = space.problem
    if problem.options["compile"] and problem.vectorize and problem.probe.cuttable:
        return FlatTarget(space, batch)
    return Target(space, batch, amortized=True)
