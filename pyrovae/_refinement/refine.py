"""Fit of a proposal to each datum's posterior: by regression, and again by Hamiltonian chains if the result is poor."""

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from pyrovae._refinement.chains import fit_to_chains, gradients_of_chains, num_chains, visit
from pyrovae._refinement.mixture import MEMBERS, Draws, Member, Mixture
from pyrovae._refinement.normal import Normal
from pyrovae._refinement.posterior import Posterior
from pyrovae._refinement.regression import fit
from pyrovae._refinement.split import Split, split

PILOT = 256  # number of draws that test a mixture
GOOD_SHARE = 0.1  # fraction of effective draws of the pilot below which chains improve the density
_GRADIENT_COST = 3


@dataclass(frozen=True)
class Refinement:
    """Normal densities fitted to the posteriors of N data.

    Attributes:
        density: A normal density for each datum.
        split: Two further normal densities for each datum whose posterior is far from normal. Each is fitted to one
            half of the draws from this posterior.
        share: Effective sample size of pilot draws, divided by their number, shape ``(N,)``. The pilot draws come from
            the mixture of the guide with the fitted densities.
        evaluations: Number of evaluations of log p(x, u) for each datum, shape ``(N,)``; a gradient counts as 3.
        failed: True if the regression that fits ``density`` failed for a datum, shape ``(N,)``.
    """

    density: Normal
    split: Split
    share: Tensor
    evaluations: Tensor
    failed: Tensor

    def select(self, indices: Tensor) -> Self:
        """Return the :class:`Refinement` of the data at ``indices``."""
        rest = self.share[indices], self.evaluations[indices], self.failed[indices]
        return type(self)(self.density.select(indices), self.split.select(indices), *rest)

    def where(self, condition: Tensor, other: Self) -> Self:
        """Return, for each datum, the densities of ``self`` if ``condition`` is true, else those of ``other``."""
        pairs = ((self.share, other.share), (self.evaluations, other.evaluations), (self.failed, other.failed))
        rest = (torch.where(condition, mine, theirs) for mine, theirs in pairs)
        density, halves = self.density.where(condition, other.density), self.split.where(condition, other.split)
        return type(self)(density, halves, *rest)

    def put(self, indices: Tensor, other: Self) -> None:
        """Replace, in place, the values of the data at ``indices`` by those of ``other``, except ``failed``."""
        self.density.put(indices, other.density)
        self.split.put(indices, other.split)
        self.share[indices], self.evaluations[indices] = other.share, other.evaluations

    def mixture(self, posterior: Posterior, members: tuple[Member, ...] = MEMBERS, *, score_guide: bool) -> Mixture:
        """Return the mixture of the guide with the fitted densities, for each datum."""
        options: Any = {"split": self.split, "failed": self.failed, "score_guide": score_guide}
        return Mixture(posterior, self.density, members, **options)


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
    fitted again.

    Args:
        posterior: Posteriors of N data, with the guide.
        members: Weight and width of each widened copy of the normal density in the mixture.
        score_guide: If true, the guide's density is computed at all draws; see :class:`Mixture`.
        batch_size: Largest number of gradients, over draws and data, that are computed together; by default all.
    """
    fitted = fit(posterior, batch_size=batch_size)
    pilot = Mixture(posterior, fitted.density, members, failed=fitted.failed, score_guide=score_guide).draw(PILOT)
    evaluations, share = fitted.evaluations + PILOT, _effective_share(pilot).masked_fill(fitted.failed, 0.0)
    found = Refinement(fitted.density, Split.none(fitted.density), share, evaluations, fitted.failed)
    hard = ((share < GOOD_SHARE) & ~fitted.failed).nonzero()[:, 0]
    if len(hard):
        part = posterior if len(hard) == posterior.size else posterior.subset(hard)
        options: Any = {"score_guide": score_guide, "batch_size": batch_size}
        found.put(hard, refine_by_chains(part, found.select(hard), members, **options))
    return found


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
    normal density. It also gets two further densities, one fitted to each half of the draws. A datum keeps its
    densities in ``found`` if a new density is not finite, or if its relative effective sample size,
    ``Refinement.share``, would fall to half or less.

    Args:
        posterior: Posteriors of N data, with the guide.
        found: Densities to improve.
        members: Weight and width of each widened copy of the normal density in the mixture.
        runs: Number of runs of the chains. Each run adds draws, so the fit is less noisy.
        score_guide: If true, the guide's density is computed at all draws; see :class:`Mixture`.
        batch_size: Largest number of gradients, over draws and data, that are computed together; by default all.
    """
    count = num_chains(posterior.dim)
    start = found.mixture(posterior, members, score_guide=score_guide).draw(count).u  # some draws are from the guide
    visited = visit(posterior, found.density, start, runs, batch_size)
    density = fit_to_chains(visited)
    halves = split(visited.seen_from(density))
    parts = [part for normal in (density, *halves) for part in (normal.log_det, normal.mean.sum(-1))]
    finite = torch.stack(parts).isfinite().all(0)
    evaluations = found.evaluations + cost_of_chains(posterior.dim, runs)
    rest = found.share, evaluations, found.failed
    trial = Refinement(
        density.where(finite, found.density),
        Split(tuple(half.where(finite, found.density) for half in halves), finite),
        *rest,
    )
    share = _effective_share(trial.mixture(posterior, members, score_guide=score_guide).draw(PILOT))
    better = finite & (share > found.share / 2)  # a pilot overrates heavy tails, in particular those of the old density
    return replace(trial, share=share).where(better, replace(found, evaluations=evaluations))


def cost_of_chains(dim: int, runs: int) -> int:
    """Return the number of evaluations of log p(x, u) per datum in :func:`refine_by_chains`."""
    return runs * _GRADIENT_COST * gradients_of_chains(dim) + num_chains(dim) + PILOT


def _effective_share(draws: Draws) -> Tensor:
    """Return the effective sample size divided by the number of draws, shape ``(N,)``; 0 if all weights are zero."""
    weights = draws.log_weights.softmax(0)
    return (1 / (len(weights) * weights.square().sum(0))).nan_to_num(nan=0.0)
