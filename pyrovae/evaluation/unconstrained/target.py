"""Densities of model and guide for the data of a batch, as functions of unconstrained real vectors."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pyrovae._compilation.graphs import compiled_or_none
from pyrovae.evaluation.batches import Batch
from pyrovae.evaluation.route import Drawn
from pyrovae.evaluation.unconstrained.conditional_priors import locations_and_scales
from pyrovae.evaluation.unconstrained.space import Space
from pyrovae.isolation import seeded


class Target:
    """log p(x, u) and log q(u | x) of the data of a batch, as functions of real vectors u.

    Args:
        space: The map to real vectors.
        batch: A batch of data.
        amortized: If true, q is the amortized guide, even if the problem has a refined guide.
        is_checked: True if the latent sites of the batch have already been checked against ``space``.
        compiles: If false, gradients are not compiled, even if the option ``compile`` is true. This suits subsets of a
            batch, which have many sizes: each shape of u needs its own compilation, which takes seconds.

    Attributes:
        size: Number of data in the batch, N.
        dim: Length of u, D.
        cuttable: False if every run of the programs must score the whole batch.
        affordable: Number of vectors u whose densities fit into memory if they are computed together.
    """

    def __init__(
        self,
        space: Space,
        batch: Batch,
        *,
        amortized: bool = False,
        is_checked: bool = False,
        compiles: bool = True,
    ) -> None:
        if not is_checked:
            space.check_batch(batch)
        # A shorter last batch occurs once. Batches that cannot be cut all have the same size.
        is_regular = batch.start == 0 or batch.size == space.width or not space.problem.probe.cuttable
        self.compiles = compiles and is_regular and space.problem.options["compile"] and space.problem.vectorize
        self.space, self.problem, self.batch, self.amortized = space, space.problem, batch, amortized
        self.size, self.dim, self.cuttable = batch.size, space.dim, self.problem.probe.cuttable
        self.affordable = space.affordable

    def subset(self, indices: Tensor) -> "Target":
        """Return the target of some data of the batch, given by indices of shape ``(n,)``."""
        if not self.problem.probe.cuttable:
            return _Part(self, indices)
        part = self.problem.select(self.batch, indices)
        return Target(self.space, part, amortized=self.amortized, is_checked=True, compiles=False)

    def draw(self, num_draws: int) -> tuple[Tensor, Tensor]:
        """Draw u from the guide, shape ``(num_draws, N, D)``, and return it with log q(u | x), ``(num_draws, N)``."""
        with torch.no_grad():
            drawn: Drawn = self.problem.draw(self.batch, num_draws, amortized=self.amortized)
            u = self.space.flatten(drawn.values)
            return u, drawn.log_q + self.space.values(u)[1]

    def draw_prior(self, num_draws: int) -> tuple[Tensor, Tensor]:
        """Draw u from the prior, shape ``(num_draws, N, D)``, and return it with log p(u), ``(num_draws, N)``, nats."""
        most = max(1, self.problem.affordable // self.batch.size)
        counts = [min(most, num_draws - done) for done in range(0, num_draws, most)]
        with torch.no_grad():
            u, log_prior = zip(*(self._draw_prior(count) for count in counts), strict=True)
        return torch.cat(u), torch.cat(log_prior)

    def log_prior(self, u: Tensor) -> Tensor:
        """Return log p(u), the log-density of the prior at real vectors u, shape ``(num_draws, N)``, nats."""
        return torch.cat([self._log_prior(part) for part in self._in_chunks(u, self.problem.affordable)])

    def log_joint(self, u: Tensor) -> Tensor:
        """Return log p(x, u), shape ``(num_draws, N)``, nats, at real vectors u, shape ``(num_draws, N, D)``."""
        return torch.cat([self._log_joint(part) for part in self._in_chunks(u, self.problem.affordable)])

    def log_guide(self, u: Tensor) -> Tensor:
        """Return log q(u | x) at real vectors u, shape ``(num_draws, N)``, nats."""
        return torch.cat([self._log_guide(part) for part in self._in_chunks(u, self.affordable)])

    def log_densities(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p(x, u) and log q(u | x) at real vectors u, each of shape ``(num_draws, N)``, nats."""
        return self.log_joint(u), self.log_guide(u)

    def value_and_gradient(self, u: Tensor, beta: float = 1.0) -> tuple[Tensor, Tensor]:
        r"""Return an intermediate log-density of annealing, and its gradient with respect to u.

        Args:
            u: Real vectors, shape ``(num_draws, N, D)``.
            beta: Exponent :math:`\beta` of the density :math:`p(x, u)^\beta q(u \mid x)^{1 - \beta}`. If it is 1, the
                guide does not run.

        Returns:
            Values, shape ``(num_draws, N)``, nats, and gradients, shape ``(num_draws, N, D)``.
        """
        u, power = u.detach(), torch.as_tensor(beta, dtype=u.dtype, device=u.device)

        def run() -> list[Tensor]:
            with torch.enable_grad():
                at = u.detach().requires_grad_()
                value = self.log_joint(at) if beta == 1 else self._between(at, power)
                (gradient,) = torch.autograd.grad(value.sum(), at)
            return [value.detach(), gradient]

        if not self.compiles:
            value, gradient = run()
            return value, gradient
        key = (*u.shape, int(beta == 1))
        given = *self.batch.args, *self.batch.subsample.values(), u, power
        inputs = [tensor for tensor in given if isinstance(tensor, Tensor)]
        graphs = self.space.graphs
        if key not in graphs:
            own = self.problem.isolation
            graphs[key] = compiled_or_none(run, own.tensors, inputs, own.modules, caller="evaluation", frozen=True)
        graph = graphs[key]
        value, gradient = run() if graph is None else kept(graph(*inputs))
        return value, gradient

    def priors(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return location and scale of the prior of each coordinate of u; see :func:`locations_and_scales`."""
        chunks = self._in_chunks(u, self.problem.affordable)
        parts = [locations_and_scales(self.space, self.batch, part) for part in chunks]
        location, scale = (torch.cat(each) for each in zip(*parts, strict=True))
        return location, scale

    def _in_chunks(self, u: Tensor, most: int) -> tuple[Tensor, ...]:
        """Split u along the draws, so that a run of a program for the whole batch has at most ``most`` vectors."""
        return u.split(max(1, most // self.batch.size))

    def _log_joint(self, u: Tensor) -> Tensor:
        values, log_det = self.space.values(u)
        return self.problem.log_joint(self.batch, values, len(u)) + log_det

    def _draw_prior(self, num_draws: int) -> tuple[Tensor, Tensor]:
        values, log_prior = self.problem.route.draw_prior(self.batch, num_draws, tuple(self.space.sites))
        u = self.space.flatten(values)
        return u, log_prior + self.space.values(u)[1]

    def _log_prior(self, u: Tensor) -> Tensor:
        values, log_det = self.space.values(u)
        return self.problem.route.log_prior(self.batch, values, len(u), tuple(self.space.sites)) + log_det

    def _log_guide(self, u: Tensor) -> Tensor:
        values, log_det = self.space.values(u)
        given = self.space.given_to_guide(u, values)
        return self.problem.log_guide(self.batch, given, len(u), amortized=self.amortized) + log_det

    def _between(self, u: Tensor, beta: Tensor) -> Tensor:
        log_joint, log_guide = self.log_densities(u)
        return beta * log_joint + (1 - beta) * log_guide


class _Part(Target):
    """Target of a subset of a batch, for a program that must always score the whole batch.

    The latents of all other data in the batch have fixed values, which are one draw from the guide.

    Args:
        whole: Target of the batch.
        indices: Indices, in the batch, of the data in the subset, shape ``(n,)``.
    """

    def __init__(self, whole: Target, indices: Tensor) -> None:
        super().__init__(whole.space, whole.batch, amortized=whole.amortized, is_checked=True)
        self.others = whole.draw(1)[0]
        self.whole, self.indices, self.size = whole, indices.to(self.others.device), len(indices)

    def subset(self, indices: Tensor) -> Target:
        """Return the target of a smaller subset of the data; ``indices`` are positions in the present subset."""
        return _Part(self.whole, self.indices[indices])

    def draw(self, num_draws: int) -> tuple[Tensor, Tensor]:
        """Draw u from the guide for the data in the subset, and return it with log q(u | x)."""
        u, log_q = self.whole.draw(num_draws)
        return u[:, self.indices], log_q[:, self.indices]

    def draw_prior(self, num_draws: int) -> tuple[Tensor, Tensor]:
        """Draw u from the prior for the data in the subset, and return it with log p(u)."""
        u, log_prior = self.whole.draw_prior(num_draws)
        return u[:, self.indices], log_prior[:, self.indices]

    def log_prior(self, u: Tensor) -> Tensor:
        """Return log p(u) of the data in the subset, shape ``(num_draws, n)``, nats."""
        return self.whole.log_prior(self._filled(u))[:, self.indices]

    def log_joint(self, u: Tensor) -> Tensor:
        """Return log p(x, u) of the data in the subset, shape ``(num_draws, n)``, nats."""
        return self.whole.log_joint(self._filled(u))[:, self.indices]

    def log_guide(self, u: Tensor) -> Tensor:
        """Return log q(u | x) of the data in the subset, shape ``(num_draws, n)``, nats."""
        return self.whole.log_guide(self._filled(u))[:, self.indices]

    def log_densities(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p(x, u) and log q(u | x) of the data in the subset, each of shape ``(num_draws, n)``, nats."""
        return self.log_joint(u), self.log_guide(u)

    def value_and_gradient(self, u: Tensor, beta: float = 1.0) -> tuple[Tensor, Tensor]:
        """Return an intermediate log-density of annealing, and its gradient, for the data at ``self.indices``."""
        value, gradient = self.whole.value_and_gradient(self._filled(u), beta)
        return value[:, self.indices], gradient[:, self.indices]

    def priors(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return location and scale of the prior of each coordinate of u, for the data in the subset."""
        location, scale = self.whole.priors(self._filled(u))
        return location[:, self.indices], scale[:, self.indices]

    def _filled(self, u: Tensor) -> Tensor:
        return self.others.expand(len(u), -1, -1).index_copy(1, self.indices, u)


def kept(results: Sequence[Tensor]) -> list[Tensor]:
    """Return results. On CUDA, return copies, because the next call of the CUDA graph overwrites the results."""
    return [result.clone() if result.is_cuda else result for result in results]


def check_gradients(target: Target) -> None:
    """Check that log p(x, u) has a gradient at draws from the guide, as Hamiltonian chains need.

    Raises:
        FloatingPointError: If the gradient of a datum is NaN or infinite although log p(x, u) is finite.
    """
    with seeded(torch.initial_seed() + 2**62), torch.enable_grad():  # other random numbers do not depend on this test
        u = target.draw(1)[0].requires_grad_()
        value = target.log_joint(u)  # a compiled gradient would cost seconds for this shape of u alone
        (gradient,) = torch.autograd.grad(value.sum(), u)
    bad = (value.isfinite() & ~gradient.isfinite().all(-1))[0]
    if bad.any():
        raise FloatingPointError(
            f"the gradient of log p(x, z) is NaN or infinite for {int(bad.sum())} of {target.size} data. Entries of x "
            f"that are NaN have this effect, even if they are masked. Observe numbers: obs=x.nan_to_num()."
        )
