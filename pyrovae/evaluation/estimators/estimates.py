"""Current estimates of log p(x) for a batch; each stage of the estimator ``log_likelihood`` may replace them."""

import math

import numpy as np
import torch
from torch import Tensor

from pyrovae.evaluation import bounds
from pyrovae.evaluation.diagnostics.psis import psis

# largest k-hat of draws and of chains before the next stage; the errors of k-hat are 0.1 and 0.3
LIGHT_K, CHAINS_K = 0.58, 0.5
DISAGREEMENT = 5.0  # number of errors by which another estimate may exceed the reported estimate


class Estimates:
    """Current estimates of log p(x) for the data of a batch, with errors, diagnostics and costs.

    Args:
        size: Number of data in the batch.

    Attributes:
        pilot: Estimate from the pilot draws of the guide, shape ``(n,)``, nats.
        pilot_mcse: Monte Carlo standard error of the pilot estimate, shape ``(n,)``, nats.
        missed: True if a witness shows that the draws of the current estimate may miss a mode, shape ``(n,)``.
        rounded: True if rounding has moved draws that matter to the edge of a support, shape ``(n,)``.
    """

    def __init__(self, size: int) -> None:
        def empty() -> Tensor:
            return torch.full((size,), math.nan, dtype=torch.float64)

        self.log_likelihood, self.mcse, self.pareto_k, self.ess = empty(), empty(), empty(), empty()
        self.pilot, self.pilot_mcse, self.highest, self.highest_mcse = empty(), empty(), empty(), empty()
        self.missed, self.rounded = torch.zeros(2, size, dtype=torch.bool)
        self.stage, self.draws = torch.full((size,), -1), torch.zeros(size, dtype=torch.long)
        self.evaluations = torch.zeros(size, dtype=torch.float64)

    def put(self, indices: Tensor, found: dict[str, Tensor], *, stage: int, draws: int, evaluations: float) -> None:
        """Store new estimates of the data at ``indices``.

        A finite estimate always replaces the current estimate of its datum. An estimate that is NaN or infinite does so
        only if the current estimate is NaN.
        """
        indices = indices.cpu()
        values = {name: column.detach().double().cpu() for name, column in found.items()}
        better = values["log_likelihood"].isfinite() | self.log_likelihood[indices].isnan()
        kept = indices[better]
        self._remember(kept)
        for name in ("log_likelihood", "mcse", "pareto_k", "ess"):
            getattr(self, name)[kept] = values[name][better]
        if "missed" in values:
            self.missed[kept] = values["missed"][better].bool()
        self.stage[kept], self.draws[kept] = stage, draws
        self.evaluations[indices] += evaluations

    def passes(self, indices: Tensor, precision: float) -> Tensor:
        """Return a mask of the data at ``indices``, true if an estimate is good enough to need no further stage."""
        limit = torch.where(self.stage[indices] == 2, CHAINS_K, LIGHT_K)
        return (self.pareto_k[indices] <= limit) & (self.mcse[indices] <= precision) & ~self.disagrees()[indices]

    def disagrees(self) -> Tensor:
        """Return for each datum whether other draws contradict its current estimate.

        The estimate is several standard errors below an earlier estimate, or its draws may miss a mode.
        """
        found = torch.zeros(len(self.stage), dtype=torch.bool)
        others = ((self.highest, self.highest_mcse), (self.pilot, self.pilot_mcse))
        for value, error in others:
            excess = value - self.log_likelihood
            found |= excess > DISAGREEMENT * torch.hypot(error.nan_to_num(nan=math.inf), self.mcse) + 1e-9
        return found | self.missed

    def columns(self) -> dict[str, Tensor | np.ndarray]:
        """Return the columns of a result by name: estimates, diagnostics and costs, with one value per datum."""
        return {
            "log_likelihood": self.log_likelihood,
            "mcse": self.mcse,
            "pareto_k": self.pareto_k,
            "ess": self.ess,
            "stage": self.stage,
            "draws": self.draws,
            "evaluations": self.evaluations,
            "disagrees": self.disagrees() | self.rounded,
        }

    def _remember(self, indices: Tensor) -> None:
        """Store the current estimate and error of each datum at ``indices`` if the estimate is the highest so far."""
        before, error = self.log_likelihood[indices], self.mcse[indices]
        higher = before.isfinite() & ~(before <= self.highest[indices])
        self.highest[indices[higher]], self.highest_mcse[indices[higher]] = before[higher], error[higher]


def summary(log_weights: Tensor) -> dict[str, Tensor]:
    """Return estimates of log p(x), errors and diagnostics by name, from log-weights of shape ``(num_draws, n)``."""
    exact = log_weights.double()
    estimate, mcse = bounds.log_likelihood(exact)
    return {
        "log_likelihood": estimate,
        "mcse": torch.hypot(mcse, bounds.rounding_error(log_weights)),
        "ess": bounds.effective_sample_size(exact),
        "pareto_k": psis(log_weights)[1],
    }
