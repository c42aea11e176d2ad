"""Fit of a proposal to each datum's posterior: by regression, and again by Hamiltonian chains if the result is poor."""

import math
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from pyrovae._refinement.chains import fit_to_chains, gradients_of_chains, num_chains, visit
from pyrovae._refinement.increments import Increments
from pyrovae._refinement.mixture import MEMBERS, Draws, Member, Mixture
from pyrovae._refinement.modes import (
    HEAVY,
    NUM_MODES,
    Modes,
    Witnesses,
    cost_of_witnesses,
    find_witnesses,
    mean_near,
)
from pyrovae._refinement.normal import Normal
from pyrovae._refinement.posterior import Posterior
from pyrovae._refinement.regression import fit
from pyrovae._refinement.split import Split, split

PILOT = 256  # number of draws that test a mixture
GOOD_SHARE = 0.1  # fraction of effective draws of the pilot below which chains improve the density
_FAR = 1e4  # a chain does not start at a draw whose log-weight is below the mean by more than this, nats
MOST_DATA = 64  # data whose chains are stored together; the draws of long chains take much memory
GRADIENT_COST = 3  # evaluations of log p(x, u) that take as long as a gradient


@dataclass(frozen=True)
class Refinement:
    """Normal densities fitted to the posteriors of N data.

    Attributes:
        density: A normal density for each datum.
        split: Two further normal densities for each datum whose posterior is far from normal. Each is fitted to one
            half of the draws from this posterior.
        modes: Further normal densities of the data whose posterior has modes that the other densities miss.
        increments: Further normal densities near points with large weights.
        witnesses: Points that the mixture of each datum should cover.
        share: Effective sample size of pilot draws, divided by their number, shape ``(N,)``. The pilot draws come from
            the mixture of the guide with the fitted densities.
        level: Log of the mean weight of the pilot draws, shape ``(N,)``, nats.
        evaluations: Number of evaluations of log p(x, u) for each datum, shape ``(N,)``; a gradient counts as 3.
        failed: True if the regression that fits ``density`` failed for a datum, shape ``(N,)``.
    """

    density: Normal
    split: Split
    modes: Modes
    increments: Increments
    witnesses: Witnesses
    share: Tensor
    level: Tensor
    evaluations: Tensor
    failed: Tensor

    def select(self, indices: Tensor) -> Self:
        """Return the :class:`Refinement` of the data at ``indices``."""
        return type(self)(
            self.density.select(indices),
            self.split.select(indices),
            self.modes.select(indices),
            self.increments.select(indices),
            self.witnesses.select(indices),
            *(part[indices] for part in (self.share, self.level, self.evaluations, self.failed)),
        )

    def put(self, indices: Tensor, other: Self) -> None:
        """Replace, in place, the values of the data at ``indices`` by those of ``other``."""
        for mine, theirs in self._pairs(other, "density", "split", "modes", "increments", "witnesses"):
            mine.put(indices, theirs)
        for mine, theirs in self._pairs(other, "share", "level", "evaluations", "failed"):
            mine[indices] = theirs

    def _pairs(self, other: Self, *names: str) -> list[tuple[Any, Any]]:
        return [(getattr(self, name), getattr(other, name)) for name in names]

    def mixture(self, posterior: Posterior, members: tuple[Member, ...] = MEMBERS, *, score_guide: bool) -> Mixture:
        """Return the mixture of the guide with the fitted densities, for each datum."""
        options: Any = {"failed": self.failed, "score_guide": score_guide}
        parts: Any = {"split": self.split, "modes": self.modes, "increments": self.increments}
        return Mixture(posterior, self.density, members, **parts, **options)


def refine(
    posterior: Posterior,
    members: tuple[Member, ...] = MEMBERS,
    *,
    score_guide: bool = True,
    batch_size: int | None = None,
) -> Refinement:
    """Fit normal densities to the posterior of each datum, to be mixed with the guide.

    For each datum, a normal density is fitted by regression. Its mixture with the guide is then tested with pilot
    draws, which are discarded. If the effective sample size of these draws is a small fraction of their number,
    :func:`refine_by_chains` fits the density again and adds two further densities. Data whose regression failed are not
    fitted again. At last, :func:`add_modes` adds densities at further modes.

    Args:
        posterior: Posteriors of N data, with the guide.
        members: Weight and width of each widened copy of the normal density in the mixture.
        score_guide: If true, the guide's density is computed at all draws; see :class:`Mixture`.
        batch_size: Largest number of gradients, over draws and data, that are computed together; by default all.
    """
    found = by_regression(posterior, batch_size)
    _test(found, posterior, members, score_guide=score_guide)
    found.evaluations.add_(PILOT)
    hard = ((found.share < GOOD_SHARE) & ~found.failed).nonzero()[:, 0]
    options: Any = {"score_guide": score_guide, "batch_size": batch_size}
    if len(hard):
        found.put(hard, refine_by_chains(_part(posterior, hard), found.select(hard), members, **options))
    add_modes(posterior, found, members, **options)
    return found


def by_regression(posterior: Posterior, batch_size: int | None = None) -> Refinement:
    """Fit a normal density to the posterior of each datum by regression, and find witnesses. ``share`` is 0."""
    fitted = fit(posterior, batch_size=batch_size)
    density, unknown = fitted.density, torch.zeros_like(fitted.elbo)
    witnesses = find_witnesses(posterior, density, batch_size)
    evaluations = fitted.evaluations + GRADIENT_COST * cost_of_witnesses()
    rest = unknown, unknown.clone(), evaluations, fitted.failed
    parts = density, Split.none(density), Modes.none(density), Increments.none(density)
    return Refinement(*parts, witnesses, *rest)


def add_modes(
    posterior: Posterior,
    found: Refinement,
    members: tuple[Member, ...] = MEMBERS,
    *,
    score_guide: bool = True,
    batch_size: int | None = None,
) -> None:
    """Add, in place, normal densities near witnesses whose weight is much larger than the mean weight.

    A datum with a new density gets new witnesses, because the mixture now covers the old ones by construction.
    """
    options: Any = {"members": members, "score_guide": score_guide}
    left = (~found.failed).nonzero()[:, 0]
    for _ in range(NUM_MODES if len(left) else 0):
        missed, points = _missed(_part(posterior, left), found.select(left), **options)
        found.evaluations[left] += len(found.witnesses.u)
        left = left[missed]
        if not len(left):
            return
        part, some = posterior.subset(left), found.select(left)
        mean = mean_near(part, some.density, points[None, missed], batch_size)[0]
        some.modes.add(replace(some.density, mean=mean))
        some = replace(some, witnesses=find_witnesses(part, some.density, batch_size))
        _test(some, part, **options)
        some.evaluations.add_(GRADIENT_COST * (1 + cost_of_witnesses()) + PILOT)
        found.put(left, some)


def _missed(posterior: Posterior, found: Refinement, **options: Any) -> tuple[Tensor, Tensor]:
    """Return a mask of the data whose mixture misses a witness and can take another mode, and the heaviest witnesses.

    The mask has shape ``(N,)`` and the witnesses have shape ``(N, D)``.
    """
    log_weights = found.mixture(posterior, **options).score(found.witnesses.u).nan_to_num(nan=-math.inf)
    heaviest, index = log_weights.max(0)
    points = found.witnesses.u[index, torch.arange(posterior.size, device=index.device)]
    return (heaviest > found.level + HEAVY) & ~found.modes.chosen.all(-1), points


def _part(posterior: Posterior, indices: Tensor) -> Posterior:
    return posterior if len(indices) == posterior.size else posterior.subset(indices)


def _test(found: Refinement, posterior: Posterior, members: tuple[Member, ...], *, score_guide: bool) -> None:
    """Set ``share`` and ``level``, in place, from new pilot draws."""
    log_weights = found.mixture(posterior, members, score_guide=score_guide).draw(PILOT).log_weights
    found.share.copy_(_effective_share(log_weights).masked_fill(found.failed, 0.0))
    found.level.copy_(log_weights.nan_to_num(nan=-math.inf).logsumexp(0) - math.log(PILOT))


def refine_by_chains(
    posterior: Posterior,
    found: Refinement,
    members: tuple[Member, ...] = MEMBERS,
    *,
    runs: int = 2,
    score_guide: bool = True,
    batch_size: int | None = None,
) -> Refinement:
    """Fit new densities to draws and gradients of Hamiltonian chains.

    The chains start at draws from the mixture of the guide with the densities in ``found``. Each datum gets a new
    normal density. It also gets two further densities, one fitted to each half of the draws, and loses its increments.
    A datum keeps its densities in ``found`` if a new density is not finite, or if its relative effective sample size,
    ``Refinement.share``, would fall to half or less.

    Args:
        posterior: Posteriors of N data, with the guide.
        found: Densities to improve.
        members: Weight and width of each widened copy of the normal density in the mixture.
        runs: Number of runs of the chains. Each run adds draws, so the fit is less noisy.
        score_guide: If true, the guide's density is computed at all draws; see :class:`Mixture`.
        batch_size: Largest number of gradients, over draws and data, that are computed together; by default all.
    """
    everything = torch.arange(posterior.size, device=found.share.device)
    parts = everything.split(MOST_DATA if posterior.cuttable else posterior.size)
    options: Any = {"runs": runs, "score_guide": score_guide, "batch_size": batch_size}
    found = found.select(everything)  # a copy
    for part in parts:
        found.put(part, _by_chains(_part(posterior, part), found.select(part), members, **options))
    return found


def _by_chains(
    posterior: Posterior,
    found: Refinement,
    members: tuple[Member, ...],
    *,
    runs: int,
    score_guide: bool,
    batch_size: int | None,
) -> Refinement:
    """Return the result of :func:`refine_by_chains`, computed for all data together; ``found`` may change."""
    count = num_chains(posterior.dim)
    start = starting_points(found.mixture(posterior, members, score_guide=score_guide).draw(count))
    visited = visit(posterior, found.density, start, runs, batch_size)
    density = fit_to_chains(visited)
    halves = split(visited.seen_from(density))
    parts = [part for normal in (density, *halves) for part in (normal.log_det, normal.mean.sum(-1))]
    finite = torch.stack(parts).isfinite().all(0)
    found.evaluations.add_(cost_of_chains(posterior.dim, runs))
    trial = replace(
        found,
        density=density.where(finite, found.density),
        split=Split(tuple(half.where(finite, found.density) for half in halves), finite),
        increments=Increments.none(density),
        share=found.share.clone(),
        level=found.level.clone(),
    )
    _test(trial, posterior, members, score_guide=score_guide)
    better = finite & (trial.share > found.share / 2)  # a pilot overrates heavy tails, in particular old densities'
    kept = better.nonzero()[:, 0]
    found.put(kept, trial.select(kept))
    return found


def starting_points(drawn: Draws) -> Tensor:
    """Return starting points of chains, shape ``(S, N, D)``.

    The starting points are the given draws. A draw with a negligible weight is replaced by another draw of the same
    datum, because a short chain from such a draw would not reach the posterior.
    """
    log_weights = drawn.log_weights.nan_to_num(nan=-math.inf)
    level = log_weights.logsumexp(0) - math.log(len(log_weights))
    far = log_weights < level - _FAR
    order = log_weights.argsort(0, descending=True)
    rank = torch.arange(len(order), device=order.device)[:, None] % (~far).sum(0).clamp_min(1)
    return torch.where(far[..., None], drawn.u.gather(0, order.gather(0, rank)[..., None].expand_as(drawn.u)), drawn.u)


def cost_of_chains(dim: int, runs: int) -> int:
    """Return the number of evaluations of log p(x, u) per datum in :func:`refine_by_chains`."""
    return runs * GRADIENT_COST * gradients_of_chains(dim) + num_chains(dim) + PILOT


def _effective_share(log_weights: Tensor) -> Tensor:
    """Return the effective sample size divided by the number of draws, shape ``(N,)``; 0 if all weights are zero."""
    weights = log_weights.softmax(0)
    return (1 / (len(weights) * weights.square().sum(0))).nan_to_num(nan=0.0)
