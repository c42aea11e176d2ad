r"""The estimate of log p(x) to quote: for each datum, the cheapest estimator that is reliable.

The stages of a datum are

1. *guide*: importance sampling with draws from the guide, if a pilot of them says that it is a good proposal;
2. *refined*: importance sampling with draws from the mixture of :class:`pyrovae.guides.Refined`. A pilot chooses their
   number. If the estimate does not pass, short chains improve the mixture, and fresh draws follow;
3. *annealed*: annealed importance sampling from the fitted densities and the guide, with twice as many temperatures
   until the estimate passes or the budget is spent.

Each stage makes fresh draws, from a proposal that is fixed before. A pilot decides about the first stage, so that an
estimate by the guide is rarely selected by its own draws. An estimate by a mixture is kept if k-hat and the Monte Carlo
error of its own draws pass. This selects, among data with the same true k, those whose draws met no large weight, and
lowers their mean by a fraction of the error that they report.

An estimate is reliable if its Monte Carlo error is at most the precision, and the tail shape of its weights, with the
error of k-hat, passes as :func:`pyrovae.evaluation.diagnose` says; and if no other estimate of the same datum exceeds
it by more than their errors allow. All estimates are lower bounds in expectation, so a larger one, from another
proposal, is the sign of a missed mode.
"""

from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch
from torch import Tensor

from pyrovae._compilation.precision import Precision
from pyrovae._refinement.refine import refine
from pyrovae._waist.sites import Program
from pyrovae.arguments import check_whole
from pyrovae.evaluation import bounds
from pyrovae.evaluation.batches import Batch
from pyrovae.evaluation.diagnostics.verdicts import FEW_WEIGHTS, check_wanted_precision, is_tail_light
from pyrovae.evaluation.estimators.estimates import Estimates, summary
from pyrovae.evaluation.estimators.stages import Stages, cost, scores_guide
from pyrovae.evaluation.options import Options, SharedOptions
from pyrovae.evaluation.pairs import takes_vae
from pyrovae.evaluation.problem import Problem
from pyrovae.evaluation.report import report
from pyrovae.evaluation.unconstrained.space import Space
from pyrovae.evaluation.unconstrained.target import Target

if TYPE_CHECKING:
    import xarray as xr

STAGES = ("guide", "refined", "annealed")
PILOT = 256  # draws of the guide that decide whether it is a good proposal
GOOD_K, GOOD_ESS = 0.2, 0.4  # k-hat of the pilot, and its effective sample size as a share; refining costs little
SHARES = (0.5, 1.0, 2.0, 4.0)  # of num_samples, from which the draws of a mixture are chosen
EXPECTED = 0.7  # error that the draws are expected to leave, as a share of the precision
FIRST_TEMPERATURES = 22


@takes_vae
def log_likelihood(
    model: Program,
    guide: Program,
    x: Any,
    *,
    precision: float = 0.1,
    num_samples: int = 2000,
    budget: int = 40_000,
    product_precision: Precision | None = None,
    **options: Unpack[SharedOptions],
) -> "xr.Dataset":
    r"""Estimate log p(x) of each datum by the cheapest estimator that is reliable for it.

    Use it for numbers to quote. Draws from an amortized guide, the protocol of the literature, are unreliable for most
    data of a well-trained VAE, and overstate its negative log-likelihood. The page on evaluation has the derivation.

    Args:
        model: Pyro program of p(x, z). Continuous latent sites can be refined; discrete sites must be enumerated in the
            model to be refined. Any other program is evaluated with draws from its guide.
        guide: Pyro program of q(z | x).
        x: Data, shape ``(N, *event)``, or a tuple of arguments whose tensors share the first dimension.
        precision: Monte Carlo standard error that an estimate may have, nats.
        num_samples: Draws per datum of the stage *guide*; the stage *refined* makes half to four times as many, by the
            effective sample size of a pilot.
        budget: Evaluations of log p(x, z) per datum, beyond which annealing stops; a gradient counts 3.
        product_precision: Precision of the products in linear and convolutional layers, which other estimators call
            ``precision``.
        **options: See :class:`Options`.

    Returns:
        Dataset with dimension ``datum``: ``log_likelihood``, nats; ``mcse``, its Monte Carlo standard error;
        ``pareto_k``, k-hat of the weights; ``ess``, their effective number; ``estimator``, ``"guide"``, ``"refined"``
        or ``"annealed"``; ``draws``, the number of weights; ``evaluations`` of log p(x, z) spent, where a gradient
        counts 3; and ``reliable``. Attributes as those of :func:`evaluate`, with the share of reliable data.

    Raises:
        TypeError: As :func:`evaluate`.
        TypeError: If ``precision`` is the name of a dtype, which belongs in ``product_precision``.
        ValueError: As :func:`evaluate`; if ``precision`` or ``budget`` is not positive.
        FloatingPointError: If the log-weights of all data are NaN or infinite.

    Source:
        *Fixed-Form Variational Posterior Approximation through Stochastic Linear Regression* (Salimans and Knowles,
        2013); *Annealed Importance Sampling* (Neal, 2001).

    Example:
        >>> import torch, pyrovae as pv
        >>> generator = torch.manual_seed(0)
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Normal(pv.networks.mlp(2, 4), scale=0.5),
        ...     pv.posteriors.DiagonalNormal(pv.networks.mlp(4, 2 * 2)),
        ... )
        >>> results = pv.evaluation.log_likelihood(vae.model, vae.guide, torch.randn(5, 4), seed=0)
        >>> bool(results.reliable.all()), bool((results.mcse < 0.1).all())
        (True, True)
    """
    check_whole(num_samples=num_samples, budget=budget)
    check_wanted_precision(precision)
    if budget < 1:
        raise ValueError(f"budget must be positive, got {budget}")
    if num_samples <= FEW_WEIGHTS:
        raise ValueError(f"a verdict needs more than {FEW_WEIGHTS} draws, got num_samples={num_samples}")
    settings: Options = {**options, "precision": product_precision}
    problem = Problem(model, guide, x, **settings)
    cascade = Cascade(problem, precision, num_samples, budget)
    result = report(
        problem,
        cascade.columns,
        estimator="cascade",
        width=cascade.open,
        num_samples=num_samples,
        wanted_precision=precision,
        budget=budget,
    )
    return _judged(result, precision)


class Cascade:
    """The stages of the estimate for the batches of a problem.

    Args:
        problem: A model, a guide and data.
        precision: Wanted Monte Carlo standard error, nats.
        num_samples: Draws per datum of an importance sampler.
        budget: Evaluations of log p(x, z) per datum.
    """

    def __init__(self, problem: Problem, precision: float, num_samples: int, budget: int) -> None:
        self.problem, self.precision, self.num_samples, self.budget = problem, precision, num_samples, budget
        self.space: Space | None = None

    def open(self) -> int:
        """Find out whether the latent sites can be refined, and return the number of data for a batch."""
        self.problem.check_reach()
        try:
            self.space = Space(self.problem)
        except ValueError:  # of discrete or periodic latents, points, and random guides
            return max(1, self.problem.affordable // self.num_samples)
        return self.space.width

    def columns(self, batch: Batch) -> dict[str, Tensor | np.ndarray]:
        """Return the columns of a batch."""
        estimates = Estimates(batch.size)
        pending = self._by_guide(batch, estimates)
        if self.space is not None and len(pending):
            self._by_mixture(batch, estimates, pending)
        return {name: column[: batch.kept] for name, column in estimates.columns().items()}

    def _by_guide(self, batch: Batch, estimates: Estimates) -> Tensor:
        """Estimate data whose pilot is good, and return the indices of the others."""
        pilot = self._weights(batch, PILOT)
        found = bounds.of_valid(pilot, summary)
        estimates.evaluations += PILOT
        estimates.pilot, estimates.pilot_mcse = found["log_likelihood"].cpu(), found["mcse"].cpu()
        good = (found["pareto_k"] < GOOD_K) & (found["ess"] > GOOD_ESS * PILOT)
        if self.space is None:
            good = torch.ones_like(good)
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

    def _by_mixture(self, batch: Batch, estimates: Estimates, pending: Tensor) -> None:
        """Estimate data by their refined mixtures, then by annealing."""
        assert self.space is not None
        whole = Target(self.space, batch, amortized=True)
        target = whole if len(pending) == batch.size else whole.subset(pending)
        fitted = refine(target, score_guide=scores_guide(target), batch_size=self.problem.affordable)
        estimates.evaluations[pending] += fitted.evaluations.cpu()
        stages = Stages(self.problem, estimates, self.precision, pending, target, fitted)
        left = stages.refined(pending, self._draws(fitted.share.cpu()))
        stages.improve(left)
        share = fitted.share.cpu()[torch.isin(pending, left)]
        left = stages.refined(left, self._draws(share).clamp_min(int(SHARES[-2] * self.num_samples)))
        left = left[~torch.isin(left, pending[fitted.failed.cpu()])]  # no gradient, no chain that moves
        temperatures, hard = FIRST_TEMPERATURES, left
        while len(hard := hard[estimates.evaluations[hard] + cost(temperatures) <= self.budget]):
            hard = stages.annealed(hard, temperatures)
            temperatures *= 2

    def _draws(self, share: Tensor) -> Tensor:
        """Return the number of draws by which each datum is expected to have the wanted precision, with a margin."""
        needed = (1 / share.clamp_min(1e-6) - 1) / (EXPECTED * self.precision) ** 2
        choices = torch.tensor([max(int(part * self.num_samples), FEW_WEIGHTS + 1) for part in SHARES])
        return choices[torch.bucketize(needed.double(), choices.double()).clamp_max(len(choices) - 1)]

    def _weights(self, batch: Batch, num_draws: int) -> Tensor:
        """Return log-weights of draws from the guide, in chunks that fit the memory."""
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


def _judged(result: "xr.Dataset", precision: float) -> "xr.Dataset":
    """Add the verdicts, for which the tail shapes of all data are judged together."""
    computed = ~np.isnan(result.stage.values.astype(float))  # a datum that raised an error is a row of NaN
    reliable = computed & (result.mcse <= precision).values & ~(result.disagrees.values == 1)
    for draws in np.unique(result.draws.values[computed]):
        chosen = result.draws.values == draws
        if draws:
            reliable[chosen] &= is_tail_light(result.pareto_k.values[chosen], int(draws))
    estimator = np.array([*STAGES, "none"])[np.where(computed, result.stage.values, -1).astype(int)]
    found = result.drop_vars(["disagrees", "stage"]).assign(
        estimator=("datum", estimator), reliable=("datum", reliable)
    )
    return found.assign_attrs(reliable_share=float(reliable.mean()))
