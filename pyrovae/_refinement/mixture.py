r"""Mixtures of a guide with widened copies of a fitted normal density, one fixed mixture for each datum.

The mixture is fixed before the draws of the estimate are made, so :math:`p(x, u) / q(u)` is an unbiased estimate of
p(x). The guide must stay in the mixture. If all other components sit at one of two equal modes, their draws miss half
of p(x), and no diagnostic of these draws reveals the error.

**The draws** are stratified: the number of draws from each component differs from its expected value by less than one.

**Guides whose density is expensive.** An inverse autoregressive flow scores its own draws in one pass, but any other
value in D passes. For such guides, this module uses multiple importance sampling, which needs the guide's density only
at the guide's own draws. Let :math:`q_N = \sum_j \alpha_j N_j / (1 - \alpha_G)` be the density of the normal
components, and :math:`q_G` the density of the guide. Two functions with :math:`w_N(u) + w_G(u) = 1` divide the
integrand :math:`p(x, u)` between the normal components and the guide. Then

.. math::
    p(x) = \mathrm{E}_{q_N}\Big[w_N \frac{p(x, u)}{q_N(u)}\Big] + \mathrm{E}_{q_G}\Big[w_G \frac{p(x, u)}{q_G(u)}\Big]

holds for every such division. The balance heuristic uses :math:`w_G \propto \alpha_G q_G`. This module uses
:math:`w_G \propto \alpha_G t`, where t is a Student's t density that is fitted to draws from the guide. :math:`w_G` is
close to one where the density of the normal components is small, as in a mode that they miss.

Let k be N for a draw from a normal component, and G for a draw from the guide. A draw u with index k has the density
:math:`\alpha_k q_k(u)`, where :math:`\alpha_N = 1 - \alpha_G`, and its target is :math:`w_k(u)\, p(x, u)`. The module
moves the factor :math:`w_k` from the target to the proposal: :math:`\log q = \log(\alpha_k q_k(u)) - \log w_k(u)`. With
:math:`\log p = \log p(x, u)`, the draws can be used like the draws of any proposal: E[exp(log p - log q)] is p(x), and
E[log p - log q] is a lower bound on log p(x). The method has a drawback: if the t density is a poor fit to the guide,
some draws from the guide have larger weights than under the balance heuristic.

Source:
    *Optimally Combining Sampling Techniques for Monte Carlo Rendering* (Veach and Guibas, 1995), section 3.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from pyrovae._refinement.increments import Increments
from pyrovae._refinement.modes import Modes
from pyrovae._refinement.normal import Normal
from pyrovae._refinement.posterior import Posterior
from pyrovae._refinement.regression import fit_to_draws
from pyrovae._refinement.split import Split

_SURROGATE_DF = 5.0


class Member(NamedTuple):
    r"""A component of the mixture: a widened copy of the fitted normal density, with its weight and its width.

    A standard normal vector in D dimensions has a norm of about :math:`\sqrt D`. The standard deviation of this norm is
    about 0.7 for every D. The width of a copy is therefore given as an increase of this norm: the same increase covers
    tails equally well in few and in many dimensions.

    Attributes:
        weight: Weight of the copy in the mixture.
        reach: Increase r of the norm of a whitened draw; the standard deviations are multiplied by
            :math:`1 + r / \sqrt D`.
    """

    weight: float
    reach: float

    def width(self, dim: int) -> float:
        """Return the factor that multiplies the standard deviations of the fitted density, in ``dim`` dimensions."""
        return 1 + self.reach / math.sqrt(dim)


MEMBERS = (Member(0.3, 0.35), Member(0.4, 1.4), Member(0.15, 2.8), Member(0.05, 6.0))  # the guide has the other 0.1
SPLIT_REACH = 0.7  # reach of the two densities that split a posterior
MODE_WEIGHT = 1 / 6  # fraction of the weight of the copies that each density at a further mode gets
INCREMENT_WEIGHT, INCREMENT_REACH = 0.5, 0.35  # weight and reach of the densities near points with large weights
KEPT = 1 / 9  # fraction of their weight that the normal copies keep for data whose posterior is split


@dataclass(frozen=True)
class Draws:
    """Draws from a mixture, with log-densities in nats.

    Attributes:
        u: Draws, shape ``(S, N, D)``.
        log_joint: log p(x, u), shape ``(S, N)``.
        log_q: Log-density of the mixture, shape ``(S, N)``; see the docstring of the module for expensive guides.
        member: Index of the component of each draw, shape ``(S, N)``; the guide has the largest index.
    """

    u: Tensor
    log_joint: Tensor
    log_q: Tensor
    member: Tensor

    @classmethod
    def cat(cls, draws: Sequence[Self]) -> Self:
        """Concatenate draws from the same mixtures along the dimension of the draws."""
        parts = ((part.u, part.log_joint, part.log_q, part.member) for part in draws)
        return cls(*map(torch.cat, zip(*parts, strict=True)))

    def without_values(self) -> Self:
        """Return the draws without their values u, which take most of the memory; ``u`` has shape ``(S, N, 0)``."""
        return type(self)(self.u[..., :0], self.log_joint, self.log_q, self.member)

    def double(self) -> Self:
        """Return the draws, with log-densities converted to float64."""
        return type(self)(self.u, self.log_joint.double(), self.log_q.double(), self.member)

    @property
    def log_weights(self) -> Tensor:
        """Log-weights log p(x, u) - log q(u), shape ``(S, N)``, nats.

        The mean of the exponentials of the log-weights is an unbiased estimate of p(x).
        """
        return self.log_joint - self.log_q

    def log_likelihood(self) -> tuple[Tensor, Tensor]:
        """Estimate log p(x) of each datum.

        Returns:
            Two tensors of shape ``(N,)``, nats: the estimate, which is a lower bound in expectation, and its Monte
            Carlo standard error by the delta method. The error accounts for the stratification over components.
        """
        log_weights = self.log_weights
        log_mean = log_weights.logsumexp(0) - math.log(len(log_weights))
        weights = (log_weights - log_mean).exp()
        deviations = torch.zeros_like(log_mean)
        for j in range(int(self.member.max()) + 1):
            inside = self.member == j
            count = inside.sum(0)
            mean = torch.where(inside, weights, 0.0).sum(0) / count.clamp_min(1)
            # The spread of a component with a single draw is unknown, so the draw is compared with the overall mean, 1.
            center, freedom = torch.where(count > 1, mean, 1.0), torch.where(count > 1, count / (count - 1), 1.0)
            deviations += freedom * torch.where(inside, (weights - center).square(), 0.0).sum(0)
        return log_mean, deviations.sqrt() / len(log_weights)


class Sample(NamedTuple):
    """Draws from a mixture, without values of the posteriors.

    Attributes:
        u: Draws, shape ``(S, N, D)``.
        member: Index of the component of each draw, shape ``(S, N)``.
        log_guide: Log-density of the guide at draws from the guide, 0 at all other draws, shape ``(S, N)``, nats.
    """

    u: Tensor
    member: Tensor
    log_guide: Tensor


class Mixture:
    """Mixtures of the guide with widened copies of a fitted normal density, one mixture for each of N data.

    Args:
        posterior: Posteriors of N data, with the guide.
        density: Normal densities that were fitted to the posteriors.
        members: Weight and reach of each copy of the normal density (see :class:`Member`). The guide gets the
            remaining weight.
        split: Two further normal densities for some of the data. For these data, the two densities get most of the
            weight of the copies.
        increments: Normal densities near points with large weights. Together they get the fraction ``INCREMENT_WEIGHT``
            of the weight of all normal components.
        modes: Normal densities at further modes. Each gets the fraction ``MODE_WEIGHT`` of the weight of the copies;
            the weights of all other normal components are lowered by the same factor.
        failed: Mask, shape ``(N,)``. If it is true for a datum, the mixture of this datum is the guide alone.
        score_guide: If true, the guide's density is computed at all draws. If false, it is computed only at the guide's
            own draws, which suits guides whose density is expensive; see the docstring of the module.

    Raises:
        ValueError: If the weight of a copy is not positive, its reach is negative, or the weights of the copies sum to
            1 or more.
    """

    def __init__(
        self,
        posterior: Posterior,
        density: Normal,
        members: tuple[Member, ...] = MEMBERS,
        *,
        split: Split | None = None,
        modes: Modes | None = None,
        increments: Increments | None = None,
        failed: Tensor | None = None,
        score_guide: bool = True,
    ) -> None:
        _check(members)
        self.posterior, self.density = posterior, density
        self._normals = [(density, member.width(posterior.dim)) for member in members]
        weights = density.mean.new_tensor([member.weight for member in members]).repeat(posterior.size, 1)
        if split is not None and split.chosen.any():
            self._normals += [(half, Member(0.5, SPLIT_REACH).width(posterior.dim)) for half in split.densities]
            weights = _with_halves(weights, split.chosen)
        if modes is not None and modes.chosen.any():
            self._normals += [(each, Member(MODE_WEIGHT, SPLIT_REACH).width(posterior.dim)) for each in modes.densities]
            added = MODE_WEIGHT * weights.sum(-1, keepdim=True) * modes.chosen
            rest = 1 - added.sum(-1, keepdim=True) / weights.sum(-1, keepdim=True)
            weights = torch.cat([weights * rest, added.to(weights)], -1)
        self._increments = None if increments is None or not increments.count.any() else increments.narrowed()
        if self._increments is not None:
            weights = _with_increments(weights, self._increments)
        if failed is not None:
            weights = torch.where(failed[:, None], 0.0, weights)
        self._weights = weights
        self._surrogate = None if score_guide else fit_to_draws(posterior)

    @torch.no_grad()
    def draw(self, num_samples: int, noise: Tensor | None = None) -> Draws:
        """Draw from the mixtures, and evaluate the posteriors once per draw.

        Args:
            num_samples: Number of draws, S.
            noise: Standard normal vectors for the draws from the normal components, shape ``(S, N, D)``, such as
                vectors of a quasi-random sequence. By default, torch's generator draws the vectors. The draws from the
                guide do not use them.
        """
        return self._score(*self.sample(num_samples, noise))

    @torch.no_grad()
    def sample(self, num_samples: int, noise: Tensor | None = None) -> Sample:
        """Draw from the mixtures without an evaluation of the posteriors; the arguments are those of :meth:`draw`."""
        index = self._choose(num_samples)
        from_guide = self.is_guide(index)
        u, log_guide = self._place(index, noise), torch.zeros_like(index, dtype=self._weights.dtype)
        num_guide = int(from_guide.sum(0).max())  # the guide is the last component, so its draws are the last rows
        if num_guide:
            rows = slice(num_samples - num_guide, None)
            drawn, log_guide[rows] = self.posterior.draw(num_guide)
            u[rows] = torch.where(from_guide[rows, :, None], drawn, u[rows])
        return Sample(u, index, log_guide)

    @torch.no_grad()
    def score(self, u: Tensor) -> Tensor:
        """Return the log-weights log p(x, u) - log q(u) of given values u, shape ``(S, N)``, nats.

        Args:
            u: Values, shape ``(S, N, D)``. They count as draws from a normal component.
        """
        nothing = torch.zeros(u.shape[:2], dtype=torch.long, device=u.device)
        return self._score(u, nothing, nothing.to(u.dtype)).log_weights

    def log_density(self, u: Tensor, log_guide: Tensor) -> Tensor:
        """Return the log-density of the mixture at u, shape ``(S, N)``, nats.

        Args:
            u: Values, shape ``(S, N, D)``.
            log_guide: Log-density of the guide at u, shape ``(S, N)``, nats.
        """
        parts = self._normal_parts(u)
        # The density of a flow can overflow far from its draws, where the guide has no mass.
        safe = log_guide.nan_to_num(nan=-math.inf, neginf=-math.inf)
        parts.append((1 - self._weights.sum(-1)).log() + safe)
        return torch.stack(parts).logsumexp(0)

    def _normal_parts(self, u: Tensor) -> list[Tensor]:
        """Return a list with one tensor for each normal component: log(weight x density) at u, shape ``(S, N)``."""
        log_weights, parts = self._weights.log(), []
        whitened = self.density.whiten(u)
        distances: dict[int, Tensor] = {id(self.density): whitened.square().sum(-1)}
        for j, (density, width) in enumerate(self._normals):
            if id(density) not in distances:
                distances[id(density)] = density.squared_distance(u)
            parts.append(log_weights[:, j] + density.log_prob_at(distances[id(density)], width))
        if self._increments is not None:
            exact: Any = {"compute_mode": "donot_use_mm_for_euclid_dist"}
            near = torch.cdist(self._increments.means, whitened.movedim(0, 1), **exact).square().permute(1, 2, 0)
            log_density = self.density.log_prob_at(near, self._width_of_increments)
            parts.append((log_weights.T[len(self._normals) :, None] + log_density).logsumexp(0))
        return parts

    @property
    def _width_of_increments(self) -> float:
        return Member(INCREMENT_WEIGHT, INCREMENT_REACH).width(self.posterior.dim)

    def is_guide(self, index: Tensor) -> Tensor:
        """Return a mask that is true where the index of a component is that of the guide."""
        return index == self._weights.shape[-1]

    def _choose(self, num_samples: int) -> Tensor:
        """Choose a component for each draw by systematic sampling; return the components' indices, shape ``(S, N)``.

        The indices of each datum are sorted.
        """
        rows = torch.arange(num_samples, dtype=self._weights.dtype, device=self._weights.device)
        offset = torch.rand(self.posterior.size, 1, dtype=rows.dtype, device=rows.device)
        positions = ((rows + offset) / num_samples).contiguous()
        return torch.searchsorted(self._weights.cumsum(-1), positions, right=True).T

    def _place(self, index: Tensor, noise: Tensor | None) -> Tensor:
        """Return draws u from the normal components, shape ``(S, N, D)``.

        ``index`` holds the index of the component of each draw, shape ``(S, N)``. If this component is the guide, the
        returned vector is arbitrary, and :meth:`draw` replaces it.
        """
        mean = self.density.mean
        added = 0 if self._increments is None else self._increments.means.shape[1]
        every_width = [width for _, width in self._normals] + [self._width_of_increments] * added + [1.0]
        widths = mean.new_tensor(every_width)[index]
        if noise is None:
            noise = torch.randn(*index.shape, self.posterior.dim, dtype=mean.dtype, device=mean.device)
        standard = widths[..., None] * noise
        if self._increments is not None:
            place = index - len(self._normals)
            centre = self._increments.means[torch.arange(len(mean), device=mean.device), place.clamp(0, added - 1)]
            standard = torch.where(((place >= 0) & (place < added))[..., None], standard + centre, standard)
        u = self.density.place(standard)
        for j, (density, _) in enumerate(self._normals):
            if density is not self.density and (rows := (index == j).any(1).nonzero()[:, 0]).numel():
                some = slice(int(rows[0]), int(rows[-1]) + 1)  # components come in ascending order
                u[some] = torch.where((index[some] == j)[..., None], density.place(standard[some]), u[some])
        return u

    def _score(self, u: Tensor, index: Tensor, log_guide: Tensor) -> Draws:
        if self._surrogate is None:
            log_joint, log_scored = self.posterior.log_densities(u)
            return Draws(u, log_joint, self.log_density(u, log_scored), index)
        log_joint, log_surrogate = self.posterior.log_joint(u), self._surrogate.log_prob(u, df=_SURROGATE_DF)
        log_q = self.log_density(u, log_surrogate)
        log_q = torch.where(self.is_guide(index), log_q + log_guide - log_surrogate, log_q)
        return Draws(u, log_joint, log_q, index)


def _with_halves(weights: Tensor, chosen: Tensor) -> Tensor:
    """For each datum, append the weights of the two densities of :class:`Split` to those of the normal copies.

    Where ``chosen`` is true, the copies keep the fraction ``KEPT`` of their weight, and each of the two densities gets
    half of the rest. Elsewhere, the two densities have weight 0.
    """
    total = weights.sum(-1, keepdim=True)
    halves = torch.where(chosen[:, None], (total - total * KEPT) / 2, 0.0)
    return torch.cat([torch.where(chosen[:, None], KEPT * weights, weights), halves, halves], -1)


def _with_increments(weights: Tensor, increments: Increments) -> Tensor:
    """Append the weights of the increments to those of the other normal components, and lower the latter."""
    count, places = increments.count[:, None], torch.arange(increments.means.shape[1], device=weights.device)
    taken = INCREMENT_WEIGHT * (count > 0)
    each = taken * weights.sum(-1, keepdim=True) / count.clamp_min(1)
    return torch.cat([weights * (1 - taken), torch.where(places < count, each, 0.0)], -1)


def _check(members: tuple[Member, ...]) -> None:
    for member in members:
        if not (member.weight > 0 and member.reach >= 0):
            raise ValueError(f"a mixture component needs a positive weight and a nonnegative reach, got {member}")
    if (total := sum(member.weight for member in members)) >= 1:
        raise ValueError(
            f"the weights of the normal components sum to {total:g}, but must sum to less than 1, because the guide "
            f"gets the remaining weight. Lower the weights."
        )
