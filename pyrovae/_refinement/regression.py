r"""Stochastic linear regression, which fits a full-covariance normal density to each posterior from gradients at draws.

**The idea.** Let :math:`q = N(m, A A^\top)`. By the identities of Bonnet and Price, the derivatives of
:math:`\mathrm{E}_q[\log p(x, u)]` with respect to mean and covariance are the mean gradient and half of the mean
Hessian. The ELBO is therefore stationary if

.. math:: \mathrm{E}_q[g(u)] = 0, \qquad (A A^\top)^{-1} = -\mathrm{E}_q[H(u)],

where :math:`g = \nabla_u \log p(x, u)` and H is the Jacobian of g. Integration by parts turns the mean Hessian into a
covariance of gradients and draws, :math:`\mathrm{E}_q[H] = \mathrm{E}_q[g (u - m)^\top] (A A^\top)^{-1}`. The
right-hand side is the coefficient of the linear regression of g on u. No second derivative is needed.

**In whitened coordinates.** Write :math:`u = m + A \epsilon` and :math:`h = A^\top g`. A round evaluates g at S draws
and computes

.. math:: \bar h = \frac1S \sum_s h_s, \qquad B = -\frac1S \sum_s h_s \epsilon_s^\top .

The fit is stationary if :math:`\bar h = 0` and :math:`B = I`. The draws are the orthogonal antithetic designs of
:mod:`pyrovae._refinement.design`, whose Gram matrix is exactly :math:`S I`. Therefore -B is exactly the least-squares
coefficient of h on :math:`\epsilon`, and S may be as small as 2 D. With independent draws, S must be about 4 D.

**The update.** Let :math:`(B + B^\top) / 2 = V \Lambda V^\top`. The eigenvalues in :math:`\Lambda` are replaced by
their absolute values and bounded. An update at the rate :math:`\rho \in (0, 1]` multiplies the whitened precision
along the columns of V by :math:`\Lambda^\rho`. The new density has mean
:math:`m + A V \Lambda^{-\rho} V^\top \bar h` and root :math:`A V \Lambda^{-\rho / 2}`. The step of the mean has a
bounded length. With decreasing rates, the fit averages over the regressions of successive rounds, as the running means
of Salimans and Knowles do.

**Start.** The first density has the mean and the covariance of draws from the guide, with slightly shrunk correlations.
Its mean then takes a few steps of gradient ascent on log p(x, u), preconditioned by that covariance.

**Safeguards.** A round draws from the updated density of each datum, and estimates the ELBO of this density from the
same draws as :math:`\bar h` and B. A datum returns to its previous density if the ELBO is lower than before by more
than noise can explain, or if a value or gradient is not finite. The next round then tries an update of the previous
density at a smaller rate. If an update is kept but raises the ELBO of a datum by less than a threshold, the datum is
settled: later rounds leave it out. A datum is reported as failed if no round had finite values and gradients.

Source:
    *Fixed-Form Variational Posterior Approximation through Stochastic Linear Regression* (Salimans and Knowles, 2013).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from pyrovae._refinement.design import orthogonal_design
from pyrovae._refinement.normal import Normal
from pyrovae._refinement.posterior import Posterior, value_and_gradient

RATES = (0.7, 0.6, 0.5, 0.4, 0.33, 0.25, 0.2)
_GRADIENT_COST = 3  # evaluations of log p(x, u) that take as long as a gradient
_NOISE = 0.5  # nats by which the estimated ELBO of an equally good density may fall
_EIGENVALUES = (0.01, 100.0)  # bounds on the change of precision in one round
_REACH = 1.5  # longest step of a mean, in standard deviations per dimension


@dataclass(frozen=True)
class Fit:
    """Normal densities fitted by stochastic linear regression, with their cost.

    Attributes:
        density: Densities of N data.
        elbo: Estimate of the ELBO of each density, shape ``(N,)``, nats; ``-inf`` if the fit failed.
        evaluations: Number of evaluations of log p(x, u) for each datum, shape ``(N,)``; a gradient counts as 3.
        rounds: Number of rounds of each datum, including the first, shape ``(N,)``.
        failed: True for data for which no round had finite values and gradients, shape ``(N,)``. Use the guide alone
            for these data.
    """

    density: Normal
    elbo: Tensor
    evaluations: Tensor
    rounds: Tensor
    failed: Tensor


def fit(
    posterior: Posterior,
    *,
    num_points: int | None = None,
    rates: Sequence[float] = RATES,
    num_ascent_steps: int = 5,
    settled_gain: float = 0.2,
    batch_size: int | None = None,
) -> Fit:
    r"""Fit a full-covariance normal density to the posterior of each datum, by stochastic linear regression.

    Random numbers come from torch's global generator.

    Args:
        posterior: Posteriors of N data.
        num_points: Number of gradients per datum and round, S, rounded up to a multiple of twice the number of latent
            dimensions. By default the smallest such multiple that is at least 64.
        rates: Rates of the updates, in order. There are at most ``len(rates)`` updates.
        num_ascent_steps: Number of steps of gradient ascent before the first round.
        settled_gain: The fit of a datum ends after an accepted round that raises the ELBO by less than this, nats.
        batch_size: Largest number of gradients, over draws and data, that are computed together; by default all.

    Returns:
        A ``Fit`` with the densities, their ELBO, and the number of evaluations of log p(x, u).

    Raises:
        ValueError: If ``num_points`` is less than 1, ``num_ascent_steps`` is negative, or a rate is not in (0, 1].

    Source:
        *Fixed-Form Variational Posterior Approximation through Stochastic Linear Regression* (Salimans and Knowles,
        2013).
    """
    _check(num_points, rates, num_ascent_steps)
    block = 2 * posterior.dim
    num_points = block * math.ceil((64 if num_points is None else num_points) / block)
    density = ascend(posterior, fit_to_draws(posterior), num_ascent_steps)
    current = _run_round(posterior, density, num_points, batch_size)
    result, rounds = current.copy(), torch.ones_like(current.elbo, dtype=torch.long)
    active, damping = torch.arange(posterior.size, device=rounds.device), torch.ones_like(current.elbo)
    remaining = posterior
    for rate in rates:
        trial = _run_round(remaining, _improve(current, rate * damping), num_points, batch_size)
        gain = trial.elbo - current.elbo
        accepted = gain > -_NOISE
        current = trial.where(accepted, current)
        damping = torch.where(accepted, 1.0, 0.3 * damping)
        rounds[active] += 1
        result.put(active, current)
        unsettled = (~(accepted & (gain < settled_gain))).nonzero()[:, 0]
        if len(unsettled) == 0:
            break
        if len(unsettled) < len(active):
            active, current, damping = active[unsettled], current.select(unsettled), damping[unsettled]
            remaining = posterior.subset(active)
    evaluations = _GRADIENT_COST * (num_ascent_steps + num_points * rounds)
    return Fit(result.density, result.elbo, evaluations, rounds, ~result.elbo.isfinite())


def fit_to_draws(posterior: Posterior) -> Normal:
    """Return normal densities with the means and variances of draws from the guide.

    The correlations are those of the draws, multiplied by 0.9.
    """
    draws, _ = posterior.draw(max(256, 4 * posterior.dim))
    mean = draws.mean(0)
    spread = (draws - mean).movedim(0, 1)
    covariance = spread.mT @ spread / len(draws)
    diagonal = torch.diag_embed(covariance.diagonal(dim1=-2, dim2=-1))
    return Normal.from_covariance(mean, 0.9 * covariance + 0.1 * diagonal)


def ascend(posterior: Posterior, density: Normal, num_steps: int) -> Normal:
    """Return the densities after moving their means by gradient ascent on log p(x, u).

    The gradients are preconditioned by the covariances. The step size adapts to each datum separately.
    """
    if num_steps == 0:
        return density
    mean, rate = density.mean, torch.full_like(density.log_det, 0.5)
    best = mean
    highest = torch.full_like(rate, -math.inf)
    uphill = torch.zeros_like(mean)
    for _ in range(num_steps):
        value, gradient = (part[0] for part in value_and_gradient(posterior, mean[None]))
        better = (value >= highest) & gradient.isfinite().all(-1)
        best, highest = torch.where(better[:, None], mean, best), torch.where(better, value, highest)
        rate = torch.where(better, 1.3 * rate, 0.4 * rate)
        natural = (density.root @ density.pull(gradient[None]).mT)[..., 0]
        uphill = torch.where(better[:, None], natural, uphill)
        mean = best + rate[:, None] * uphill
    return replace(density, mean=best)


@dataclass(frozen=True)
class _Round:
    """Normal densities, with estimates of the ELBO, the gradient and the Hessian from one round of draws.

    Attributes:
        density: Densities of N data.
        elbo: Estimate of the ELBO, shape ``(N,)``, nats; ``-inf`` if a value or gradient is not finite.
        slope: Mean gradient of log p(x, u) in whitened coordinates, shape ``(N, D)``.
        curvature: Minus the mean Hessian of log p(x, u) in whitened coordinates, shape ``(N, D, D)``, symmetric.
    """

    density: Normal
    elbo: Tensor
    slope: Tensor
    curvature: Tensor

    def where(self, condition: Tensor, other: Self) -> Self:
        """Return the densities and estimates of ``self`` where ``condition`` is true, else those of ``other``."""
        return type(self)(
            self.density.where(condition, other.density),
            torch.where(condition, self.elbo, other.elbo),
            torch.where(condition[:, None], self.slope, other.slope),
            torch.where(condition[:, None, None], self.curvature, other.curvature),
        )

    def select(self, indices: Tensor) -> Self:
        """Return the densities and estimates of the data at ``indices``."""
        return type(self)(self.density.select(indices), *(part[indices] for part in self._tensors()))

    def put(self, indices: Tensor, other: Self) -> None:
        """Replace, in place, the densities and estimates of the data at ``indices`` by those of ``other``."""
        self.density.put(indices, other.density)
        for mine, theirs in zip(self._tensors(), other._tensors(), strict=True):
            mine[indices] = theirs

    def copy(self) -> Self:
        """Return a copy that shares no memory with the original."""
        return self.select(torch.arange(len(self.elbo), device=self.elbo.device))

    def _tensors(self) -> tuple[Tensor, ...]:
        return self.elbo, self.slope, self.curvature


def _run_round(posterior: Posterior, density: Normal, num_points: int, batch_size: int | None) -> _Round:
    """Evaluate gradients of log p(x, u) at draws from the densities, and regress the gradients on the draws.

    The result holds the estimates of the ELBO, of the mean gradient and of the mean Hessian for each datum.
    """
    points = orthogonal_design(num_points, posterior.dim, like=density.mean)
    value, gradient = value_and_gradient(posterior, density.place(points), batch_size)
    whitened = density.pull(gradient)
    curvature = -(whitened.mT @ points) / num_points
    finite = value.isfinite().all(0) & curvature.isfinite().all(-1).all(-1)
    # A round with such values gets no slope and a narrower density, because the centre may be finite.
    narrower = 4 * torch.eye(posterior.dim, dtype=value.dtype, device=value.device)
    return _Round(
        density,
        torch.where(finite, value.mean(0) + density.entropy(), -math.inf),
        torch.where(finite[:, None], whitened.mean(1), 0.0),
        torch.where(finite[:, None, None], (curvature + curvature.mT) / 2, narrower),
    )


def _improve(current: _Round, rate: Tensor) -> Normal:
    """Return the densities after an update; see the docstring of this module.

    Args:
        current: Densities of N data, with the estimates of their last round.
        rate: Rate of the update for each datum, shape ``(N,)``.
    """
    density, dim = current.density, current.slope.shape[-1]
    values, vectors = torch.linalg.eigh(current.curvature)
    values = values.abs().clamp(*_EIGENVALUES) ** rate[:, None]
    slope = (vectors.mT @ current.slope[..., None])[..., 0]
    step = slope / values
    length = (step * slope).sum(-1).sqrt()
    longest = rate.sqrt() * _REACH * math.sqrt(dim)
    step = step * (longest / length.clamp_min(1e-12)).clamp_max(1.0)[:, None]
    return density.transform(vectors, values.rsqrt(), step)


def _check(num_points: int | None, rates: Sequence[float], num_ascent_steps: int) -> None:
    if num_points is not None and num_points < 1:
        raise ValueError(f"num_points must be at least 1, got {num_points}")
    if num_ascent_steps < 0:
        raise ValueError(f"num_ascent_steps must not be negative, got {num_ascent_steps}")
    if not all(0 < rate <= 1 for rate in rates):
        raise ValueError(f"each rate must lie in (0, 1], got rates={tuple(rates)}")
