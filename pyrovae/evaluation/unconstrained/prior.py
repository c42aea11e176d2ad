r"""Draws from the prior, which find modes that neither the guide nor chains from its draws reach.

A guide that is narrow and sits at one of several modes has nearly equal weights p/q, and chains that start at its draws
stay at this mode. Draws from the prior reach all modes. If the data say little about the latents, or the latents are
few, some of the draws have a high likelihood.

Let :math:`u_s` be S draws from the prior, and let R be the region in which the weight p/q of the guide is so large that
its draws may miss R. Then

.. math:: \frac1S \sum_s p(x \mid u_s), \qquad \frac1S \sum_s 1[u_s \in R]\, p(x \mid u_s)

are unbiased estimates of p(x), and of the part of p(x) that R holds. If the first is not much lower than the guide's
estimate of p(x), the prior is *near* the posterior, and a mixture can contain it (:class:`WithPrior`). If the second is
not small, the guide *misses* a region.

For most VAEs, no draw from the prior has a high likelihood. The test then finds nothing, and costs ``NUM_DRAWS``
evaluations of log p(x, z). If the best draw has a likelihood that is not much too low, ``MORE_DRAWS`` follow.
"""

import math
from typing import NamedTuple, Self

import torch
from torch import Tensor

from pyrovae._waist.sites import is_enumerated
from pyrovae.evaluation.batches import Batch
from pyrovae.evaluation.problem import Problem
from pyrovae.evaluation.unconstrained.target import Target

NUM_DRAWS, MORE_DRAWS = 128, 512
PROMISING = 20.0  # more draws follow if the best log-likelihood exceeds the guide's estimate minus this, nats
NEAR = 5.0  # nats by which the first estimate may be lower than the guide's estimate
HEAVY = math.log(10)  # draws of the guide may miss a point whose log-weight exceeds their mean by more, nats
NEGLIGIBLE = 0.02  # part of p(x) that may be missed; the error is then 0.02 nats


class Reach(NamedTuple):
    """Result of a comparison of draws from the prior with the guide, for the data of a batch.

    Attributes:
        near: True if the prior is near the posterior of a datum, shape ``(N,)``.
        missed: True if the guide misses a region of this posterior, shape ``(N,)``.
        evaluations: Number of evaluations of log p(x, z) for each datum, shape ``(N,)``.
    """

    near: Tensor
    missed: Tensor
    evaluations: Tensor

    @classmethod
    def unknown(cls, size: int) -> "Reach":
        """Return the result for data whose prior cannot be used."""
        near, missed = torch.zeros(2, size, dtype=torch.bool)
        return cls(near, missed, torch.zeros(size, dtype=torch.long))


def reach_of_prior(target: Target, level: Tensor) -> Reach:
    """Compare draws from the prior with the guide.

    Args:
        target: Posteriors of N data, with the guide.
        level: Log of the mean weight of draws from the guide, shape ``(N,)``, nats; may be NaN.
    """
    level = _finite(level)
    found, drawn = Reach.unknown(target.size), _Drawn.of(target, NUM_DRAWS)
    inside = (drawn.log_likelihood.amax(0) > level - PROMISING).nonzero()[:, 0]
    found.evaluations.add_(NUM_DRAWS)
    if len(inside):
        part, level = target if len(inside) == target.size else target.subset(inside), level[inside]
        drawn = drawn.of_data(inside).joined(_Drawn.of(part, MORE_DRAWS))
        log_weights = drawn.log_joint - part.log_guide(drawn.u).nan_to_num(nan=-math.inf).double().cpu()
        found.near[inside], found.missed[inside] = _compare(drawn.log_likelihood, log_weights, level)
        found.evaluations[inside] += MORE_DRAWS
    return found


def reach_of_prior_values(problem: Problem, batch: Batch, level: Tensor) -> Reach:
    """Compare draws from the prior with the guide, for latents without real coordinates, such as discrete latents.

    Args:
        problem: A model, a guide and data.
        batch: A batch of data.
        level: Log of the mean weight of draws from the guide, shape ``(N,)``, nats; may be NaN.

    Returns:
        The result of the comparison. It is unknown if the guide has other latent sites than the model, if one of the
        two enumerates sites, or if two runs of the guide have different densities.
    """
    weights = problem.run(batch, amortized=True)
    sites = [site for site in weights.model_sites if not site["is_observed"]]
    names = tuple(site["name"] for site in sites)
    of_guide = {site["name"] for site in weights.guide_sites if not site["is_observed"]}
    if problem.probe.enumerates or of_guide != set(names) or any(map(is_enumerated, sites)):
        return Reach.unknown(batch.size)
    try:
        problem.check_repeats()
    except ValueError:
        return Reach.unknown(batch.size)
    found, most, parts = Reach.unknown(batch.size), max(1, problem.affordable // batch.size), []
    for done in range(0, NUM_DRAWS + MORE_DRAWS, most):
        count = min(most, NUM_DRAWS + MORE_DRAWS - done)
        values, log_prior = problem.route.draw_prior(batch, count, names)
        log_joint = problem.log_joint(batch, values, count).nan_to_num(nan=-math.inf).double()
        log_guide = problem.log_guide(batch, values, count, amortized=True).nan_to_num(nan=-math.inf).double()
        parts.append(torch.stack([log_joint - log_prior, log_joint - log_guide]).nan_to_num(nan=-math.inf))
    log_likelihood, log_weights = torch.cat(parts, 1).cpu()
    near, missed = _compare(log_likelihood, log_weights, _finite(level))
    return found._replace(near=near, missed=missed, evaluations=found.evaluations + NUM_DRAWS + MORE_DRAWS)


def _compare(log_likelihood: Tensor, log_weights: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
    """Return the masks ``near`` and ``missed`` of :class:`Reach`.

    Args:
        log_likelihood: log p(x | z) of draws from the prior, shape ``(S, N)``, nats.
        log_weights: log p(x, z) - log q(z | x) of the same draws, shape ``(S, N)``, nats.
        level: Log of the mean weight of draws from the guide, shape ``(N,)``, nats; ``-inf`` if not known.
    """
    mass = _log_mean(torch.where(log_weights > level + HEAVY, log_likelihood, -math.inf))
    near = _log_mean(log_likelihood) > level - NEAR
    return near, near & (mass - torch.logaddexp(mass, level) > math.log(NEGLIGIBLE))


def _finite(level: Tensor) -> Tensor:
    return level.double().cpu().nan_to_num(nan=-math.inf, posinf=-math.inf)


class _Drawn(NamedTuple):
    """Draws from the prior.

    Attributes:
        u: Real vectors, shape ``(S, N, D)``.
        log_joint: log p(x, u), shape ``(S, N)``, nats, on the CPU.
        log_likelihood: log p(x | u), shape ``(S, N)``, nats, on the CPU.
    """

    u: Tensor
    log_joint: Tensor
    log_likelihood: Tensor

    @classmethod
    def of(cls, target: Target, num_draws: int) -> Self:
        """Draw from the prior of each datum, and evaluate the densities."""
        u, log_prior = target.draw_prior(num_draws)
        log_joint = target.log_joint(u).nan_to_num(nan=-math.inf)
        log_likelihood = (log_joint - log_prior).double().nan_to_num(nan=-math.inf, posinf=-math.inf)
        return cls(u, log_joint.double().cpu(), log_likelihood.cpu())

    def of_data(self, indices: Tensor) -> Self:
        """Return the draws of the data at ``indices``."""
        return type(self)(*(part[:, indices] for part in self))

    def joined(self, other: Self) -> Self:
        """Return the draws of ``self`` followed by those of ``other``."""
        return type(self)(*map(torch.cat, zip(self, other, strict=True)))


class WithPrior(Target):
    """A target whose guide is the mixture of the guide and the prior, with equal weights.

    Args:
        base: Target with the guide.
    """

    def __init__(self, base: Target) -> None:
        super().__init__(base.space, base.batch, amortized=base.amortized, is_checked=True, compiles=False)
        self.base, self.size = base, base.size

    def subset(self, indices: Tensor) -> "WithPrior":
        """Return the target of some data of the batch, given by indices of shape ``(n,)``."""
        return WithPrior(self.base.subset(indices))

    def draw(self, num_draws: int) -> tuple[Tensor, Tensor]:
        """Draw u from guide and prior in turn; return u and the log-density of their mixture, nats."""
        first = int(torch.rand(()) < 0.5)  # a single draw comes from the guide or the prior with equal probability
        is_prior = torch.arange(first, first + num_draws) % 2 == 1
        parts = [self.base.draw, self.base.draw_prior]
        counts = [int((~is_prior).sum()), int(is_prior.sum())]
        drawn = [part(count)[0] for part, count in zip(parts, counts, strict=True) if count]
        u = torch.cat(drawn)[is_prior.int().argsort(stable=True).argsort()]
        return u, self.log_guide(u)

    def log_joint(self, u: Tensor) -> Tensor:
        """Return log p(x, u), shape ``(num_draws, N)``, nats."""
        return self.base.log_joint(u)

    def log_guide(self, u: Tensor) -> Tensor:
        """Return the log-density of the mixture of guide and prior at u, shape ``(num_draws, N)``, nats."""
        log_guide = self.base.log_guide(u).nan_to_num(nan=-math.inf)
        return torch.logaddexp(log_guide, self.base.log_prior(u)) - math.log(2)

    def value_and_gradient(self, u: Tensor, beta: float = 1.0) -> tuple[Tensor, Tensor]:
        """Return an intermediate log-density of annealing, and its gradient; see the method of :class:`Target`."""
        if beta == 1:
            return self.base.value_and_gradient(u)
        return super().value_and_gradient(u, beta)

    def priors(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return location and scale of the prior of each coordinate of u."""
        return self.base.priors(u)


def _log_mean(values: Tensor) -> Tensor:
    return values.logsumexp(0) - math.log(len(values))
