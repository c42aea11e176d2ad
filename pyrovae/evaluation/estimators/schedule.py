"""The order of the stages *refined* and *annealed*, and the number of draws in each.

Each datum gets the cheapest sequence of stages that may make its estimate reliable within the budget.
"""

import torch
from torch import Tensor

from pyrovae._refinement.increments import NUM_STEPS
from pyrovae._refinement.refine import cost_of_chains
from pyrovae.evaluation.diagnostics.verdicts import FEW_WEIGHTS
from pyrovae.evaluation.estimators.estimates import Estimates
from pyrovae.evaluation.estimators.stages import Stages, cost
from pyrovae.evaluation.problem import Problem
from pyrovae.evaluation.unconstrained.target import Target

SHARES = (0.5, 1.0, 2.0, 4.0)  # numbers of draws from a mixture, as multiples of num_samples
SHORT_CHAINS, LONG_CHAINS = 2, 6  # runs of the chains that improve a mixture for the first and for the second time
EXPECTED = 0.7  # expected error of the draws, as a fraction of the precision
FIRST_TEMPERATURES = 22


class Schedule:
    """The stages *refined* and *annealed*, in the order that is cheapest for each datum.

    Args:
        problem: A model, a guide and data.
        precision: Largest acceptable Monte Carlo standard error, nats.
        num_samples: Draws per datum, of which the stage *refined* makes multiples.
        budget: Number of evaluations of log p(x, z) per datum above which no further expensive stage starts.
    """

    def __init__(self, problem: Problem, precision: float, num_samples: int, budget: int) -> None:
        self.problem, self.precision, self.num_samples, self.budget = problem, precision, num_samples, budget

    def run(self, estimates: Estimates, pending: Tensor, target: Target, *, is_hopeless: bool = False) -> None:
        """Estimate log p(x) of the data at the indices ``pending``.

        If the mixture of a datum misses a region that standardized coordinates reveal, both stages run in these
        coordinates instead.

        Args:
            estimates: Current estimates of the data of the batch.
            pending: Indices of the data, shape ``(n,)``.
            target: Posteriors of these data.
            is_hopeless: True if no estimate from a mixture can be reliable for this program.
        """
        stages = Stages(self.problem, estimates, self.precision, pending, target, is_hopeless=is_hopeless)
        stages.hidden &= self._repeats(stages)
        self._in_coordinates_of(stages, pending[~stages.hidden])
        repeats = self._repeats(stages)
        if repeats.any():
            part = stages.standardized(repeats.nonzero().flatten())
            again = Stages(self.problem, estimates, self.precision, pending[repeats], part)
            self._in_coordinates_of(again, pending[repeats])

    def _repeats(self, stages: Stages) -> Tensor:
        """Return a mask of data that need standardized coordinates. The budget must allow twice their present cost."""
        return stages.hidden & (2 * stages.estimates.evaluations[stages.pending] <= self.budget)

    def _in_coordinates_of(self, stages: Stages, pending: Tensor) -> None:
        """Run the stage *refined* on the data at the indices ``pending``, then the stage *annealed*.

        The stage *annealed* gets the data whose estimate is not reliable after the stage *refined*. It does not get
        data for which the regression failed. It does not get data with a missed mode either, because its chains start
        from draws of a similar mixture, and may miss the mode too.
        """
        left = self._refined(stages, pending)
        left = left[~stages.estimates.missed[left]]
        temperatures = FIRST_TEMPERATURES
        while len(left := left[stages.estimates.evaluations[left] + cost(temperatures) <= self.budget]):
            left = stages.annealed(left, temperatures)
            temperatures *= 2

    def _refined(self, stages: Stages, pending: Tensor) -> Tensor:
        """Run the stage *refined*; return the indices of the data that need the stage *annealed*.

        If the draws from a mixture give no reliable estimate, densities near the points with the largest weights are
        added to it. If this does not help, chains improve the mixture, and the same steps follow.
        """
        inside = torch.isin(stages.pending, pending)
        share, failed = (part.cpu()[inside] for part in (stages.fitted.share, stages.fitted.failed))
        draws = self._draws(share)
        draws = torch.where(failed | stages.is_hopeless, draws, draws.clamp_max(self._most // 2))
        left = stages.refined(pending, draws)
        left = left[~torch.isin(left, pending[failed])]  # chains cannot move without a gradient
        left = self._by_increments(stages, left)
        for runs in (SHORT_CHAINS, LONG_CHAINS):
            some = left[self._affords_chains(stages, left, runs)]
            draws = self._draws(stages.improve(some, runs)).clamp_max(self._most // 2)
            self._by_increments(stages, stages.refined(some, draws))
            left = stages.unreliable(left)
        return left

    def _by_increments(self, stages: Stages, left: Tensor) -> Tensor:
        """Add densities near the points with the largest weights to the mixtures, and draw again, a few times.

        Returns:
            Indices, among the given ones, of the data whose estimate is not yet reliable.
        """
        estimates = stages.estimates
        for _ in range(NUM_STEPS):
            draws = self._draws(2 * estimates.ess[left] / estimates.draws[left])
            affords = estimates.evaluations[left] + draws <= self.budget
            draws = draws.masked_fill(~(affords & stages.can_increment(left)), 0)
            if not draws.any():
                break
            stages.add_increments(left[draws > 0])
            left = stages.refined(left, draws)
        return left

    def _affords_chains(self, stages: Stages, indices: Tensor, runs: int) -> Tensor:
        """Return a mask of the data whose budget allows chains, and draws after them."""
        cost_of_both = cost_of_chains(stages.target.dim, runs) + self._most // 2
        return stages.estimates.evaluations[indices] + cost_of_both <= self.budget

    @property
    def _most(self) -> int:
        """Largest number of draws from a mixture."""
        return int(SHARES[-1] * self.num_samples)

    def _draws(self, share: Tensor) -> Tensor:
        """Return the number of draws that each datum is expected to need for the wanted precision, with a margin."""
        needed = (1 / share.clamp_min(1e-6) - 1) / (EXPECTED * self.precision) ** 2
        choices = torch.tensor([max(int(part * self.num_samples), FEW_WEIGHTS + 1) for part in SHARES])
        return choices[torch.bucketize(needed.double(), choices.double()).clamp_max(len(choices) - 1)]
