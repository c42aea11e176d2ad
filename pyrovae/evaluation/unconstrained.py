r"""The posterior of some data as a density on real vectors, in which HMC moves and local approximations are fitted.

All latent sites of a datum are laid side by side in one vector u. A site with a constrained value, z = f(u), adds
:math:`\log |\det \partial f / \partial u|` to log p(x, z) and to log q(z | x) alike, and leaves log-weights alone.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.constraints import MixtureSameFamilyConstraint

from pyrovae._compilation.graphs import compiled_or_none
from pyrovae._waist.sites import Site, is_point
from pyrovae._waist.support import is_periodic, is_same_support, support_of
from pyrovae.distributions import support_of_flow
from pyrovae.evaluation.problem import Batch, Drawn, Problem


class Space:
    """The map between the latent sites of a program and real vectors, the same for all batches of a problem.

    Args:
        problem: An opened problem.

    Attributes:
        dim: Length of a vector u, D.

    Raises:
        ValueError: If a latent site is discrete, masked, an angle, auxiliary or a point, or its support depends on
            other latents; or if the guide enumerates a site.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        if problem.probe.enumerates:
            raise ValueError(
                "the guide enumerates a discrete latent site, so log p(x, z) and log q(z | x) are not known apart; "
                "leave the site to the model, which sums it out, or use pyrovae.evaluation.evaluate"
            )
        problem.check_repeats()
        batch = next(problem.batches(2))
        first, again = (problem.run(batch, amortized=True) for _ in range(2))
        of_guide, of_model = _latents(first.guide_sites), _latents(first.model_sites)
        for name, site in of_guide.items():
            _check_continuous(name, site, in_model=name in of_model)
        self.sites = of_guide
        self.bijections = {name: biject_to(_support(of_model[name]["fn"])) for name in of_guide}
        for name, site in _latents(again.model_sites).items():
            if name in of_guide and not is_same_support(site["fn"], of_model[name]["fn"]):
                raise ValueError(
                    f"the support of latent site {name!r} depends on other latents, so its values have no real "
                    f"coordinates of their own; give it a fixed support, or use pyrovae.evaluation.evaluate"
                )
        drawn = problem.draw(batch, 2, amortized=True)
        real = {name: self.bijections[name].inv(drawn.values[name]) for name in of_guide}
        self.shapes = {name: value.movedim(problem.data_dim, 1).shape[2:] for name, value in real.items()}
        self.dim = sum(map(math.prod, self.shapes.values()))
        self.graphs: dict[tuple[int, ...], Callable[..., Sequence[Tensor]] | None] = {}

    @property
    def width(self) -> int:
        """Number of data to which densities are fitted together, within the memory."""
        return max(8, min(64, self.problem.affordable // max(1, self.dim // 4)))

    def flatten(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return the vectors u of values of the latents, shape ``(num_draws, N, D)``."""
        dim = self.problem.data_dim
        real = (self.bijections[name].inv(values[name]).movedim(dim, 1) for name in self.sites)
        return torch.cat([value.reshape(*value.shape[:2], -1) for value in real], dim=-1)

    def values(self, u: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return the values of the latents at u, and the log-determinant of the map, shape ``(num_draws, N)``."""
        values, log_det, dim = {}, u.new_zeros(u.shape[:2]), self.problem.data_dim
        parts = u.split([math.prod(shape) for shape in self.shapes.values()], dim=-1)
        for (name, shape), part in zip(self.shapes.items(), parts, strict=True):
            real = part.reshape(*u.shape[:2], *shape).movedim(1, dim)
            values[name] = self.bijections[name](real)
            own = self.bijections[name].log_abs_det_jacobian(real, values[name]).movedim(dim, 1)
            log_det = log_det + own.reshape(*u.shape[:2], -1).sum(-1)
        return values, log_det

    def by_datum(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return values of the latents with the data as second dimension, shape ``(num_draws, N, *rest)``."""
        return {name: values[name].movedim(self.problem.data_dim, 1) for name in self.sites}


class Target:
    """log p(x, u) and log q(u | x) of the data of a batch, in real vectors u.

    Args:
        space: The map to real vectors.
        batch: Some data.
        amortized: Whether the guide is the one that a proposal refines, and not the proposal itself.

    Attributes:
        size: Number of data in the batch, N.
        dim: Length of u, D.
    """

    def __init__(self, space: Space, batch: Batch, *, amortized: bool = False) -> None:
        self.space, self.problem, self.batch, self.amortized = space, space.problem, batch, amortized
        self.size, self.dim = batch.size, space.dim

    def subset(self, indices: Tensor) -> "Target":
        """Return the target of the data of the batch with these indices, shape ``(n,)``."""
        if not self.problem.probe.cuttable:
            return _Part(self, indices)
        return Target(self.space, self.problem.select(self.batch, indices), amortized=self.amortized)

    def draw(self, num_draws: int) -> tuple[Tensor, Tensor]:
        """Draw u from the guide, shape ``(num_draws, N, D)``, and return it with log q(u | x), ``(num_draws, N)``."""
        with torch.no_grad():
            drawn: Drawn = self.problem.draw(self.batch, num_draws, amortized=self.amortized)
            u = self.space.flatten(drawn.values)
            return u, drawn.log_q + self.space.values(u)[1]

    def log_joint(self, u: Tensor) -> Tensor:
        """Return log p(x, u), shape ``(num_draws, N)``, nats."""
        values, log_det = self.space.values(u)
        return self.problem.log_joint(self.batch, values, len(u)) + log_det

    def log_guide(self, u: Tensor) -> Tensor:
        """Return log q(u | x), shape ``(num_draws, N)``, nats."""
        values, log_det = self.space.values(u)
        return self.problem.log_guide(self.batch, values, len(u), amortized=self.amortized) + log_det

    def log_densities(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p(x, u) and log q(u | x), shapes ``(num_draws, N)``, nats."""
        values, log_det = self.space.values(u)
        log_joint = self.problem.log_joint(self.batch, values, len(u))
        log_guide = self.problem.log_guide(self.batch, values, len(u), amortized=self.amortized)
        return log_joint + log_det, log_guide + log_det

    def value_and_gradient(self, u: Tensor, beta: float = 1.0) -> tuple[Tensor, Tensor]:
        r"""Return a log-density between guide and posterior, and its gradient.

        Args:
            u: Shape ``(num_draws, N, D)``.
            beta: The density is :math:`\log p(x, u)^\beta q(u \mid x)^{1 - \beta}`. With 1 the guide is not run.

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

        if not (self.problem.options["compile"] and self.problem.vectorize):
            value, gradient = run()
            return value, gradient
        key = (*u.shape, int(beta == 1))
        inputs = [tensor for tensor in (*self.batch.args, u, power) if isinstance(tensor, Tensor)]
        graphs = self.space.graphs
        if key not in graphs:
            modules = self.problem.isolation.modules
            tensors = [t for module in modules for t in (*module.parameters(False), *module.buffers(False))]
            graphs[key] = compiled_or_none(run, tensors, inputs, modules, caller="evaluation", frozen=True)
        graph = graphs[key]
        value, gradient = run() if graph is None else graph(*inputs)
        return value, gradient

    def _between(self, u: Tensor, beta: Tensor) -> Tensor:
        log_joint, log_guide = self.log_densities(u)
        return beta * log_joint + (1 - beta) * log_guide


class _Part(Target):
    """Some data of a batch that the program can only run as a whole; the others stay at a draw of the guide.

    Args:
        whole: Target of the batch.
        indices: Indices of the data, shape ``(n,)``.
    """

    def __init__(self, whole: Target, indices: Tensor) -> None:
        super().__init__(whole.space, whole.batch, amortized=whole.amortized)
        self.whole, self.indices, self.size = whole, indices, len(indices)
        self.others = whole.draw(1)[0]

    def subset(self, indices: Tensor) -> Target:
        """Return the target of some of these data."""
        return _Part(self.whole, self.indices[indices])

    def draw(self, num_draws: int) -> tuple[Tensor, Tensor]:
        """Draw u from the guide."""
        u, log_q = self.whole.draw(num_draws)
        return u[:, self.indices], log_q[:, self.indices]

    def log_joint(self, u: Tensor) -> Tensor:
        """Return log p(x, u)."""
        return self.whole.log_joint(self._filled(u))[:, self.indices]

    def log_guide(self, u: Tensor) -> Tensor:
        """Return log q(u | x)."""
        return self.whole.log_guide(self._filled(u))[:, self.indices]

    def log_densities(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p(x, u) and log q(u | x)."""
        return self.log_joint(u), self.log_guide(u)

    def value_and_gradient(self, u: Tensor, beta: float = 1.0) -> tuple[Tensor, Tensor]:
        """Return a log-density between guide and posterior, and its gradient."""
        value, gradient = self.whole.value_and_gradient(self._filled(u), beta)
        return value[:, self.indices], gradient[:, self.indices]

    def _filled(self, u: Tensor) -> Tensor:
        return self.others.expand(len(u), -1, -1).index_copy(1, self.indices, u)


def _latents(sites: list[Site]) -> dict[str, Site]:
    return {site["name"]: site for site in sites if not site["is_observed"]}


def _check_continuous(name: str, site: Site, *, in_model: bool) -> None:
    """Refuse a latent site that has no posterior density on real vectors."""
    instead = "use pyrovae.evaluation.evaluate"
    if is_point(site["fn"]):
        raise ValueError(
            f"latent site {name!r} is a point in the guide, as in Pyro's autoguides, so the guide has no density; "
            f"write a guide that samples it, or {instead}"
        )
    if getattr(support_of(site["fn"]), "is_discrete", False):
        raise ValueError(
            f"latent site {name!r} is discrete, a {type(site['fn']).__name__}, and Hamiltonian moves need continuous "
            f"latents; {instead}"
        )
    if is_periodic(site["fn"]):
        raise ValueError(
            f"latent site {name!r} is an angle of a VonMises distribution, which is periodic, and not a real number as "
            f"its support says; {instead}, or parameterize the angle by a point on the circle"
        )
    if not in_model:
        raise ValueError(
            f"latent site {name!r} is auxiliary, in the guide but not in the model, so the posterior has no such "
            f"dimension; {instead}"
        )
    if site["mask"] is not None:
        raise ValueError(
            f"latent site {name!r} is masked, so its posterior has no density where the mask is false; leave out these "
            f"data and the mask, or {instead}"
        )


def _support(distribution: Any) -> Any:
    support = support_of(distribution) or support_of_flow(distribution)
    if support is None:
        raise ValueError(
            f"{type(distribution).__name__} does not name its support, so its values cannot be mapped to real vectors; "
            f"give it a property support, such as torch.distributions.constraints.real_vector"
        )
    while isinstance(support, MixtureSameFamilyConstraint):
        support = support.base_constraint
    return support
