"""The stage *guide* of the estimation of log p(x): draws from the guide, for data whose guide is a good proposal."""

import warnings

import torch
from torch import Tensor

from pyrovae._warnings import find_stack_level
from pyrovae.evaluation import bounds
from pyrovae.evaluation.batches import Batch
from pyrovae.evaluation.estimators.estimates import Estimates, summary
from pyrovae.evaluation.problem import Problem
from pyrovae.evaluation.unconstrained.edges import ADVICE, cost_of_rounded_sites, rounded_sites
from pyrovae.evaluation.unconstrained.flat import target_of
from pyrovae.evaluation.unconstrained.prior import Reach, reach_of_prior, reach_of_prior_values
from pyrovae.evaluation.unconstrained.space import Space
from pyrovae.isolation import seeded

PILOT = 256  # draws of the guide that decide whether the guide is a good proposal
GOOD_K, GOOD_ESS = 0.2, 0.4  # k-hat and effective fraction of the pilot draws; strict, because refining is cheap
MISSED = (
    "draws from the prior find a part of the posterior that the guide misses, for {count} data of a batch. Their "
    "estimates of log p(x) are too low and not reliable. Train the guide further or make it wider, or enumerate "
    "discrete latent sites in the model."
)


class GuideStage:
    """The stage *guide*, for one batch of data at a time.

    Args:
        problem: A model, a guide and data.
        space: Unconstrained coordinates of the latents; ``None`` if no densities can be fitted to the posteriors.
        precision: Largest acceptable Monte Carlo standard error, nats.
        num_samples: Draws per datum.
    """

    def __init__(self, problem: Problem, space: Space | None, precision: float, num_samples: int) -> None:
        self.problem, self.space, self.precision, self.num_samples = problem, space, precision, num_samples

    def pilot(self, batch: Batch, estimates: Estimates) -> Tensor:
        """Store an estimate from pilot draws of the guide; return a mask, true if the guide is a good proposal."""
        pilot = self._weights(batch, PILOT)
        found = bounds.of_valid(pilot, summary)
        estimates.evaluations += PILOT
        estimates.pilot, estimates.pilot_mcse = found["log_likelihood"], found["mcse"]
        good = (found["pareto_k"] < GOOD_K) & (found["ess"] > GOOD_ESS * PILOT)
        return good if self.space is not None else torch.ones_like(good)

    def reach_of_prior(self, batch: Batch, estimates: Estimates) -> Reach:
        """Find data whose prior is near the posterior, and data for which the guide misses a part of the posterior."""
        space = self.space
        if space is not None and not (space.scores_guide and space.has_prior):
            return Reach.unknown(batch.size)
        try:
            with seeded(torch.initial_seed() + 2**62):  # other random numbers do not depend on this test
                if space is None:
                    found = reach_of_prior_values(self.problem, batch, estimates.pilot)
                else:
                    found = reach_of_prior(target_of(space, batch, is_checked=True), estimates.pilot)
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:  # a program may raise any error at values that the guide never draws
            warnings.warn(
                f"log_likelihood makes no draws from the prior for data {batch.start} to "
                f"{batch.start + batch.kept - 1}, because the model raises an error at such draws. Modes that the "
                f"guide misses may stay hidden. Let the model accept all values that its prior can take: "
                f"{' '.join(str(error).split())[:200]}",
                stacklevel=find_stack_level(),
            )
            return Reach.unknown(batch.size)
        estimates.evaluations += found.evaluations
        if space is None and (missed := int(found.missed[: batch.kept].sum())):
            warnings.warn(MISSED.format(count=missed), stacklevel=find_stack_level())
        return found

    def rounded(self, batch: Batch, estimates: Estimates, *, with_prior: bool) -> Tensor:
        """Return a mask of the data for which rounded draws matter, and warn of them.

        The module :mod:`pyrovae.evaluation.unconstrained.edges` describes the test. It uses draws from the prior too
        if ``with_prior`` is true.
        """
        found = torch.zeros(batch.size, dtype=torch.bool)
        if self.space is None or not self.space.has_edges:
            return found
        with seeded(torch.initial_seed() + 2**62):  # other random numbers do not depend on this test
            target = target_of(self.space, batch, is_checked=True)
            by_site = rounded_sites(target, estimates.pilot, with_prior=with_prior)
        estimates.evaluations += cost_of_rounded_sites(with_prior=with_prior)
        for name, mask in by_site.items():
            if mask[: batch.kept].any():
                warnings.warn(ADVICE.format(site=name), stacklevel=find_stack_level())
            found |= mask
        return found

    def estimate(self, batch: Batch, estimates: Estimates, good: Tensor) -> Tensor:
        """Estimate log p(x) of the selected data from new draws from the guide.

        Args:
            batch: A batch of data.
            estimates: Current estimates of the data of the batch.
            good: Mask of the selected data. If no densities can be fitted to the posteriors, all data are selected.

        Returns:
            Indices of the data that need another estimator: data that were not selected, and selected data whose
            estimate is not good enough. The tensor is empty if no densities can be fitted to the posteriors.
        """
        indices = good.nonzero().flatten()
        if len(indices):
            part = batch if len(indices) == batch.size else self._part(batch, indices)
            log_weights = self._weights(part, self.num_samples)
            own = log_weights if part.size == len(indices) else log_weights[:, indices]
            counts = {"draws": self.num_samples, "evaluations": self.num_samples}
            estimates.put(indices, bounds.of_valid(own, summary), stage=0, **counts)
            passed = estimates.passes(indices, self.precision)
            good[indices[~passed]] = self.space is None
        return (~good).nonzero().flatten()

    def _weights(self, batch: Batch, num_draws: int) -> Tensor:
        """Return log-weights of draws from the guide, computed in chunks that fit into memory."""
        problem, chunk = self.problem, max(1, self.problem.affordable // batch.size)
        if problem.probe.enumerates:
            counts = [min(chunk, num_draws - done) for done in range(0, num_draws, chunk)]
            return torch.cat([problem.run(batch, count).log_weights for count in counts])
        parts = []
        for done in range(0, num_draws, chunk):
            count = min(chunk, num_draws - done)
            drawn = problem.draw(batch, count, amortized=True)
            parts.append(problem.log_joint(batch, drawn.values, count, drawn.masks) - drawn.log_q)
        return torch.cat(parts)

    def _part(self, batch: Batch, indices: Tensor) -> Batch:
        return self.problem.select(batch, indices) if self.problem.probe.cuttable else batch
