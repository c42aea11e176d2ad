"""Two stages of the estimation of log p(x): *refined* and *annealed*.

Both stages use densities that are fitted to the posterior of each datum.
"""

import math
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from pyrovae._refinement.annealing import Annealing
from pyrovae._refinement.mixture import MEMBERS, Draws, Member, Mixture
from pyrovae._refinement.modes import HEAVY, REMOTE, allowed_excess, cost_of_exploring, explore
from pyrovae._refinement.refine import GRADIENT_COST, add_modes, refine, refine_by_chains
from pyrovae._refinement.walks import NUM_HEAVY, Remarkable, gradients_of_walk, states_of_walk, walk
from pyrovae.evaluation import bounds
from pyrovae.evaluation.estimators.estimates import Estimates, summary
from pyrovae.evaluation.problem import Problem
from pyrovae.evaluation.unconstrained.prior import WithPrior
from pyrovae.evaluation.unconstrained.standardized import Standardized
from pyrovae.evaluation.unconstrained.target import Target

NUM_CHAINS, NUM_LEAPFROG = 128, 2
MEMBERS_WITH_PRIOR = tuple(
    member._replace(weight=member.weight / 1.5) for member in MEMBERS
)  # the guide has the other 0.4
LEAST_ACCEPTANCE = 0.3  # chains with a lower acceptance hardly move, and their weights are meaningless


class Stages:
    """The stages *refined* and *annealed*, for the data without a reliable estimate from the stage *guide*.

    Args:
        problem: A model, a guide and data.
        estimates: Current estimates of all data of the batch.
        precision: Largest acceptable Monte Carlo standard error, nats.
        pending: Indices, in the batch, of the data that the stage *guide* did not estimate reliably, shape ``(n,)``.
        target: Posteriors of these data.
        is_hopeless: True if no estimate from a mixture can be reliable for this program.

    Attributes:
        hidden: True for data whose mixture misses a region that chains in standardized coordinates have reached, shape
            ``(n,)``.
    """

    def __init__(
        self,
        problem: Problem,
        estimates: Estimates,
        precision: float,
        pending: Tensor,
        target: Target,
        *,
        is_hopeless: bool = False,
    ) -> None:
        self.problem, self.estimates, self.precision = problem, estimates, precision
        self.pending, self.target, self.is_hopeless = pending, target, is_hopeless
        self.members = MEMBERS_WITH_PRIOR if isinstance(target, WithPrior) else MEMBERS
        options: Any = {"score_guide": target.space.scores_guide}
        self.fitted = refine(target, self.members, batch_size=target.affordable, **options)
        self.explored = self._explore()
        self.estimates.evaluations[pending] += self.fitted.evaluations.cpu()
        weights = self._largest_weight(self.explored, self.fitted.mixture(target, self.members, **options))
        # The weights of a mixture that contains the prior are bounded, so they seldom reach the higher limit.
        self._remote = HEAVY if isinstance(target, WithPrior) else REMOTE
        self.hidden = weights > self.fitted.level.cpu() + self._remote
        self._heavy = self.fitted.witnesses.u[:1].repeat(NUM_HEAVY, 1, 1)  # points with the largest weights
        self.is_drawn = torch.zeros(len(pending), dtype=torch.bool)  # draws from the present mixture have been made
        self.is_hard = self.fitted.split.chosen.cpu().clone()  # the posterior is far from normal

    def _explore(self) -> Tensor:
        """Return points that chains in standardized coordinates have reached, shape ``(W, n, D)``."""
        if self.is_hopeless or isinstance(self.target, Standardized) or not self.target.space.scaled:
            return self.fitted.witnesses.u[:0]
        other = Standardized(self.target)
        points = other.place(explore(other, other.affordable))[0]
        self.fitted.evaluations.add_(GRADIENT_COST * cost_of_exploring() + len(points))
        return points

    def refined(self, indices: Tensor, num_draws: Tensor) -> Tensor:
        """Estimate log p(x) of some data with draws from their mixtures of the guide and the fitted densities.

        Args:
            indices: Indices in the batch, shape ``(n,)``.
            num_draws: Number of draws of each datum, shape ``(n,)``. A datum with 0 draws gets no new estimate.

        Returns:
            Indices, among the given ones, of the data whose estimate is not yet reliable, but may become reliable in
            the present coordinates.
        """
        for count in num_draws[num_draws > 0].unique().tolist():
            self._refined(indices[num_draws == count], count)
        return self.unreliable(indices)

    def unreliable(self, indices: Tensor) -> Tensor:
        """Return the indices of the data without a reliable estimate that may get one in the present coordinates."""
        left = indices[~self.estimates.passes(indices, self.precision)]
        return left[:0] if self.is_hopeless else left[~self.hidden[self._inside(left)]]

    def _refined(self, indices: Tensor, num_samples: int) -> None:
        target, mixture = self._mixture(indices, self.members, score_guide=self.target.space.scores_guide)
        chunk = max(1, target.affordable // target.size)
        counts = [min(chunk, num_samples - done) for done in range(0, num_samples, chunk)]
        drawn, remarkable = _draw(mixture, counts)
        found = bounds.of_valid(drawn.log_weights, summary)
        found["log_likelihood"], found["mcse"] = _stratified(drawn, found)
        inside, witnesses = self._inside(indices), self.fitted.witnesses
        log_weights = mixture.score(witnesses.u[:, inside]).nan_to_num(nan=-math.inf)
        limit = found["log_likelihood"] + allowed_excess(num_samples)
        remote = self._largest_weight(self.explored[:, inside], mixture)
        self.hidden[inside] = remote > found["log_likelihood"] + self._remote
        found["missed"] = (log_weights.amax(0).double().cpu() > limit) | self.hidden[inside] | self.is_hopeless
        self._heavy[:, inside] = remarkable.heavy
        heavier = (remarkable.log_weights[0] > log_weights[-1]).nonzero()[:, 0]
        witnesses.replace_last(inside[heavier.cpu()], remarkable.heavy[0, heavier])  # a later mixture should cover it
        spent = num_samples + len(self.explored) + len(witnesses.u)
        self.estimates.put(indices, found, stage=1, draws=num_samples, evaluations=spent)
        self.is_drawn[inside] = True
        self._walk(indices, remarkable, num_samples)

    def _walk(self, indices: Tensor, remarkable: Remarkable, num_samples: int) -> None:
        """Look for regions that the mixtures miss, by chains from remarkable draws.

        This is done for data whose posterior is far from normal, and for each datum from its first unreliable estimate
        on.
        """
        self.is_hard[self._inside(indices)] |= ~self.estimates.passes(indices, self.precision)
        hard = self.is_hard[self._inside(indices)].nonzero().flatten()
        if self.is_hopeless or not len(hard):
            return
        rows, inside = indices[hard], self._inside(indices[hard])
        target, mixture = self._mixture(rows, self.members, score_guide=self.target.space.scores_guide)
        largest, self._heavy[:, inside] = walk(target, mixture, remarkable.select(hard), target.affordable)
        limit = self.estimates.log_likelihood[rows] + math.log(num_samples)
        self.estimates.missed[rows] |= largest.double().cpu() > limit
        self.estimates.evaluations[rows] += GRADIENT_COST * gradients_of_walk() + states_of_walk()

    def _largest_weight(self, u: Tensor, mixture: Mixture) -> Tensor:
        """Return the largest log-weight of points of each datum, shape ``(n,)``, nats; ``-inf`` without points."""
        if not len(u):
            return torch.full(u.shape[1:2], -math.inf, dtype=torch.float64)
        return mixture.score(u).nan_to_num(nan=-math.inf).amax(0).double().cpu()

    def _inside(self, indices: Tensor) -> Tensor:
        """Return the places of ``indices`` among ``pending``."""
        return torch.isin(self.pending, indices).nonzero().flatten()

    def add_increments(self, indices: Tensor) -> None:
        """Add densities near the points with the largest weights to the mixtures of the data at ``indices``.

        Args:
            indices: Indices in the batch, shape ``(n,)``, in ascending order.
        """
        inside = self._inside(indices)
        target, some = self._part(inside), self.fitted.select(inside)
        some.increments.add(target, some.density, self._heavy[:, inside], target.affordable)
        self.fitted.put(inside, some)
        self.estimates.evaluations[indices] += GRADIENT_COST * len(self._heavy)

    def can_increment(self, indices: Tensor) -> Tensor:
        """Return a mask of the data whose present mixture has given draws and can take further densities."""
        inside = self._inside(indices)
        return self.is_drawn[inside] & ~self.fitted.increments.full[inside].cpu()

    def improve(self, indices: Tensor, runs: int) -> Tensor:
        """Improve the densities that were fitted to the data at ``indices``.

        The new densities are fitted to the states of short chains, which start at draws from the current mixtures.

        Args:
            indices: Indices in the batch, shape ``(n,)``, in ascending order.
            runs: Number of runs of the chains.

        Returns:
            Effective sample size of pilot draws from the new mixtures, divided by their number, shape ``(n,)``.
        """
        inside = self._inside(indices)
        if not len(inside):
            return self.fitted.share[inside].cpu()
        target = self._part(inside)
        options: Any = {"score_guide": target.space.scores_guide, "batch_size": target.affordable}
        before, rows = self.fitted.select(inside), self.pending[inside]
        share = self.estimates.ess[rows] / self.estimates.draws[rows]
        share = torch.where(self.is_drawn[inside], share.nan_to_num(nan=0.0).to(before.share.cpu()), before.share.cpu())
        before.share.copy_(share)
        self.is_drawn[inside] = False
        after = refine_by_chains(target, before, self.members, runs=runs, **options)
        add_modes(target, after, self.members, **options)
        self.fitted.put(inside, after)
        self.estimates.evaluations[rows] += (after.evaluations - before.evaluations).cpu()
        return self.fitted.share[inside].cpu()

    def standardized(self, inside: Tensor) -> Standardized:
        """Return some of the posteriors in standardized coordinates.

        The present mixtures take the place of the guide, if the guide's density is cheap to compute.

        Args:
            inside: Places of the data among ``pending``.
        """
        fitted = self.fitted.select(inside) if self.target.space.scores_guide else None
        return Standardized(self.target.subset(inside), fitted)

    def annealed(self, indices: Tensor, temperatures: int) -> Tensor:
        """Estimate log p(x) by annealing; return the indices of the data whose estimate is not yet reliable."""
        # Chains from the wide components would have to return, so the chains start from the fitted density itself.
        target, mixture = self._mixture(indices, (Member(0.9, 0.35),), score_guide=True)
        size = max(1, self.problem.affordable // 3)  # a gradient takes more memory
        annealing = Annealing(target, mixture, temperatures, NUM_LEAPFROG, batch_size=size)
        found = bounds.of_valid(annealing.log_weights(NUM_CHAINS), summary)
        stuck = annealing.acceptance.cpu() < LEAST_ACCEPTANCE
        found["log_likelihood"] = torch.where(stuck, math.nan, found["log_likelihood"])
        self.estimates.put(indices, found, stage=2, draws=NUM_CHAINS, evaluations=annealing.evaluations)
        return indices[~self.estimates.passes(indices, self.precision)]

    def _mixture(self, indices: Tensor, members: tuple[Member, ...], *, score_guide: bool) -> tuple[Target, Mixture]:
        inside = self._inside(indices)
        target = self._part(inside)
        return target, self.fitted.select(inside).mixture(target, members, score_guide=score_guide)

    def _part(self, inside: Tensor) -> Target:
        """Return the posteriors of the data at these places among ``pending``."""
        return self.target if len(inside) == self.target.size else self.target.subset(inside)


def cost(temperatures: int) -> int:
    """Return the approximate number of evaluations of log p(x, z) per datum in the stage *annealed*."""
    return 3 * NUM_CHAINS * temperatures * NUM_LEAPFROG


def _draw(mixture: Mixture, counts: list[int]) -> tuple[Draws, Remarkable]:
    """Draw from mixtures in chunks of the given sizes; return all draws without their values, and remarkable draws."""
    parts, remarkable = list[Draws](), list[Remarkable]()
    for count in counts:
        part = mixture.draw(count)
        remarkable.append(Remarkable.of(part, mixture))
        parts.append(part.without_values())
    return Draws.cat(parts), reduce(Remarkable.joined, remarkable)


def _stratified(drawn: Draws, found: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return estimates of log p(x) and their standard errors, nats.

    The errors account for the stratification of the draws.

    Args:
        drawn: Draws from the mixtures.
        found: Statistics of the same draws, computed as if the draws were not stratified. If the estimate of log p(x)
            in ``found`` is not finite for a datum, the returned estimate and error of this datum are NaN.
    """
    estimate, mcse = (part.cpu() for part in drawn.double().log_likelihood())
    rounding = bounds.rounding_error(drawn.log_weights).cpu()
    known = found["log_likelihood"].isfinite()
    return torch.where(known, estimate, math.nan), torch.where(known, torch.hypot(mcse, rounding), math.nan)
