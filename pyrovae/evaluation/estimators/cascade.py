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

import math
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch
from torch import Tensor

from pyrovae._compilation.precision import Precision
from pyrovae._refinement.annealing import Annealing
from pyrovae._refinement.mixture import MEMBERS, Draws, Member, Mixture
from pyrovae._refinement.refine import Refinement, refine, refine_by_chains
from pyrovae._refinement.scoring import scores_slowly
from pyrovae._waist.sites import Program
from pyrovae.arguments import check_whole
from pyrovae.evaluation import bounds
from pyrovae.evaluation.batches import Batch
from pyrovae.evaluation.diagnostics.psis import psis
from pyrovae.evaluation.diagnostics.verdicts import FEW_WEIGHTS, is_tail_light
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
LIGHT_K, CHAINS_K = 0.58, 0.5  # k-hat of a stage's own draws, above which the next follows; its error is 0.1 and 0.3
SHARES = (0.5, 1.0, 2.0, 4.0)  # of num_samples, from which the draws of a mixture are chosen
EXPECTED = 0.7  # error that the draws are expected to leave, as a share of the precision
NUM_CHAINS, NUM_LEAPFROG, FIRST_TEMPERATURES = 128, 2, 22
LEAST_ACCEPTANCE = 0.3  # of transitions, below which chains stand still, and their weights say nothing
DISAGREEMENT = 5.0  # errors by which another estimate may exceed the reported one


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
    if not 0 < precision < math.inf or budget < 1:
        raise ValueError(f"precision and budget must be positive, got precision={precision} and budget={budget}")
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
        try:
            self.space = Space(self.problem)
        except ValueError:  # of discrete or periodic latents, points, and random guides
            return max(1, self.problem.affordable // self.num_samples)
        return self.space.width

    def columns(self, batch: Batch) -> dict[str, Tensor | np.ndarray]:
        """Return the columns of a batch."""
        rows = Rows(batch.size)
        pending = self._by_guide(batch, rows)
        if self.space is not None and len(pending):
            self._by_mixture(batch, rows, pending)
        return {name: column[: batch.kept] for name, column in rows.columns().items()}

    def _by_guide(self, batch: Batch, rows: "Rows") -> Tensor:
        """Estimate data whose pilot is good, and return the indices of the others."""
        pilot = self._weights(batch, PILOT)
        summary = bounds.of_valid(pilot, _summary)
        rows.evaluations += PILOT
        rows.pilot, rows.pilot_mcse = summary["log_likelihood"].cpu(), summary["mcse"].cpu()
        good = (summary["pareto_k"] < GOOD_K) & (summary["ess"] > GOOD_ESS * PILOT)
        if self.space is None:
            good = torch.ones_like(good)
        indices = good.nonzero().flatten()
        if len(indices):
            part = batch if len(indices) == batch.size else self._part(batch, indices)
            log_weights = self._weights(part, self.num_samples)
            found = log_weights if part.size == len(indices) else log_weights[:, indices]
            counts = {"draws": self.num_samples, "evaluations": self.num_samples}
            rows.put(indices, bounds.of_valid(found, _summary), stage=0, **counts)
            passed = self.passes(rows, indices)
            good[indices[~passed]] = self.space is None
        return (~good).nonzero().flatten()

    def _by_mixture(self, batch: Batch, rows: "Rows", pending: Tensor) -> None:
        """Estimate data by their refined mixtures, then by annealing."""
        assert self.space is not None
        whole = Target(self.space, batch, amortized=True)
        target = whole if len(pending) == batch.size else whole.subset(pending)
        fitted = refine(target, score_guide=scores_guide(target), batch_size=self.problem.affordable)
        rows.evaluations[pending] += fitted.evaluations.cpu()
        stages = _Stages(self, rows, pending, target, fitted)
        left = stages.refined(pending, self._draws(fitted.share.cpu()))
        stages.improve(left)
        share = fitted.share.cpu()[torch.isin(pending, left)]
        left = stages.refined(left, self._draws(share).clamp_min(int(SHARES[-2] * self.num_samples)))
        left = left[~torch.isin(left, pending[fitted.failed.cpu()])]  # no gradient, no chain that moves
        temperatures, hard = FIRST_TEMPERATURES, left
        while len(hard := hard[rows.evaluations[hard] + _cost(temperatures) <= self.budget]):
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
            parts.append(problem.log_joint(batch, drawn.values, count) - drawn.log_q)
        return torch.cat(parts)

    def _part(self, batch: Batch, indices: Tensor) -> Batch:
        return self.problem.select(batch, indices) if self.problem.probe.cuttable else batch

    def passes(self, rows: "Rows", indices: Tensor) -> Tensor:
        """Return whether the estimates of data need no further stage."""
        limit = torch.where(rows.stage[indices] == 2, CHAINS_K, LIGHT_K)
        return (rows.pareto_k[indices] <= limit) & (rows.mcse[indices] <= self.precision) & ~rows.disagrees()[indices]


class _Stages:
    """The stages that start from fitted densities, for the data of a batch that the guide leaves.

    Args:
        cascade: The cascade.
        rows: The estimates so far.
        pending: Indices in the batch of the data that were fitted, shape ``(n,)``.
        target: Their posteriors.
        fitted: Their densities.
    """

    def __init__(self, cascade: Cascade, rows: "Rows", pending: Tensor, target: Target, fitted: Refinement) -> None:
        self.cascade, self.rows, self.pending, self.target, self.fitted = cascade, rows, pending, target, fitted

    def refined(self, indices: Tensor, num_draws: Tensor) -> Tensor:
        """Estimate data by draws from their mixtures, and return the indices of those that do not pass.

        Args:
            indices: Indices in the batch, shape ``(n,)``.
            num_draws: Number of draws of each, shape ``(n,)``.
        """
        for count in num_draws.unique().tolist():
            self._refined(indices[num_draws == count], count)
        return indices[~self.cascade.passes(self.rows, indices)]

    def _refined(self, indices: Tensor, num_samples: int) -> None:
        target, mixture = self._mixture(indices, MEMBERS, score_guide=scores_guide(self.target))
        chunk = max(1, self.cascade.problem.affordable // target.size)
        counts = [min(chunk, num_samples - done) for done in range(0, num_samples, chunk)]
        drawn = Draws.cat([mixture.draw(count).without_values() for count in counts])
        found = bounds.of_valid(drawn.log_weights, _summary)
        found["log_likelihood"], found["mcse"] = _stratified(drawn, found)
        self.rows.put(indices, found, stage=1, draws=num_samples, evaluations=num_samples)

    def improve(self, indices: Tensor) -> None:
        """Fit the densities of data anew by chains that start from their mixtures."""
        inside = torch.isin(self.pending, indices).nonzero().flatten()
        if not len(inside):
            return
        target = self.target if len(inside) == self.target.size else self.target.subset(inside)
        options: Any = {"score_guide": scores_guide(target), "batch_size": self.cascade.problem.affordable}
        before, rows = self.fitted.select(inside), self.pending[inside]
        share = self.rows.ess[rows] / self.rows.draws[rows]
        before.share.copy_(torch.where(self.rows.stage[rows] == 1, share, 0.0).nan_to_num(nan=0.0))
        self.fitted.put(inside, refine_by_chains(target, before, **options))
        self.rows.evaluations[rows] += (self.fitted.evaluations[inside] - before.evaluations).cpu()

    def annealed(self, indices: Tensor, temperatures: int) -> Tensor:
        """Estimate data by chains from their mixtures, and return the indices of those that do not pass."""
        # Chains from members that reach far would have to come back; the fitted density itself is the better start.
        target, mixture = self._mixture(indices, (Member(0.9, 0.35),), score_guide=True)
        size = max(1, self.cascade.problem.affordable // 3)  # a gradient takes more memory
        annealing = Annealing(target, mixture, temperatures, NUM_LEAPFROG, batch_size=size)
        found = bounds.of_valid(annealing.log_weights(NUM_CHAINS), _summary)
        stuck = annealing.acceptance < LEAST_ACCEPTANCE
        found["log_likelihood"] = torch.where(stuck, math.nan, found["log_likelihood"])
        self.rows.put(indices, found, stage=2, draws=NUM_CHAINS, evaluations=annealing.evaluations)
        return indices[~self.cascade.passes(self.rows, indices)]

    def _mixture(self, indices: Tensor, members: tuple[Member, ...], *, score_guide: bool) -> tuple[Target, Mixture]:
        inside = torch.isin(self.pending, indices).nonzero().flatten()
        target = self.target if len(inside) == self.target.size else self.target.subset(inside)
        return target, self.fitted.select(inside).mixture(target, members, score_guide=score_guide)


def scores_guide(target: Target) -> bool:
    """Return whether the density of the guide at any value costs little."""
    return not any(scores_slowly(site["fn"]) for site in target.space.sites.values())


class Rows:
    """The estimates of the data of a batch so far.

    Args:
        size: Number of data.

    Attributes:
        pilot: Estimate by the pilot draws of the guide, shape ``(n,)``, nats.
        pilot_mcse: Its Monte Carlo standard error.
    """

    def __init__(self, size: int) -> None:
        def empty() -> Tensor:
            return torch.full((size,), math.nan, dtype=torch.float64)

        self.log_likelihood, self.mcse, self.pareto_k, self.ess = empty(), empty(), empty(), empty()
        self.pilot, self.pilot_mcse, self.highest, self.highest_mcse = empty(), empty(), empty(), empty()
        self.stage, self.draws = torch.full((size,), -1), torch.zeros(size, dtype=torch.long)
        self.evaluations = torch.zeros(size, dtype=torch.float64)

    def put(self, indices: Tensor, found: dict[str, Tensor], *, stage: int, draws: int, evaluations: float) -> None:
        """Replace the estimates of some data by those of a stage; a stage without a number replaces nothing."""
        indices = indices.cpu()
        values = {name: column.detach().double().cpu() for name, column in found.items()}
        better = values["log_likelihood"].isfinite() | self.log_likelihood[indices].isnan()
        kept = indices[better]
        self._remember(kept)
        for name in ("log_likelihood", "mcse", "pareto_k", "ess"):
            getattr(self, name)[kept] = values[name][better]
        self.stage[kept], self.draws[kept] = stage, draws
        self.evaluations[indices] += evaluations

    def disagrees(self) -> Tensor:
        """Return where an estimate from another proposal exceeds the present one by more than their errors allow."""
        found = torch.zeros(len(self.stage), dtype=torch.bool)
        others = ((self.highest, self.highest_mcse), (self.pilot, self.pilot_mcse))
        for value, error in others:
            excess = value - self.log_likelihood
            found |= excess > DISAGREEMENT * torch.hypot(error.nan_to_num(nan=math.inf), self.mcse) + 1e-9
        return found

    def columns(self) -> dict[str, Tensor | np.ndarray]:
        """Return the columns by name."""
        return {
            "log_likelihood": self.log_likelihood,
            "mcse": self.mcse,
            "pareto_k": self.pareto_k,
            "ess": self.ess,
            "stage": self.stage,
            "draws": self.draws,
            "evaluations": self.evaluations,
            "disagrees": self.disagrees(),
        }

    def _remember(self, indices: Tensor) -> None:
        """Keep the highest of the estimates that are replaced, with its error."""
        before, error = self.log_likelihood[indices], self.mcse[indices]
        higher = before.isfinite() & ~(before <= self.highest[indices])
        self.highest[indices[higher]], self.highest_mcse[indices[higher]] = before[higher], error[higher]


def _summary(log_weights: Tensor) -> dict[str, Tensor]:
    exact = log_weights.double()
    estimate, mcse = bounds.log_likelihood(exact)
    return {
        "log_likelihood": estimate,
        "mcse": torch.hypot(mcse, bounds.rounding_error(log_weights)),
        "ess": bounds.effective_sample_size(exact),
        "pareto_k": psis(log_weights)[1],
    }


def _stratified(drawn: Draws, found: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return estimates and the errors of stratified draws, where these are numbers."""
    estimate, mcse = drawn.double().log_likelihood()
    rounding = bounds.rounding_error(drawn.log_weights)
    known = found["log_likelihood"].isfinite()
    return torch.where(known, estimate, math.nan), torch.where(known, torch.hypot(mcse, rounding), math.nan)


def _cost(temperatures: int) -> int:
    """Return about how many evaluations the chains of a datum take at so many temperatures."""
    return 3 * NUM_CHAINS * temperatures * NUM_LEAPFROG


def _judged(result: "xr.Dataset", precision: float) -> "xr.Dataset":
    """Add the verdicts, for which the tail shapes of all data are judged together."""
    reliable = (result.mcse <= precision).values & ~result.disagrees.values
    for draws in np.unique(result.draws.values):
        chosen = result.draws.values == draws
        if draws:
            reliable[chosen] &= is_tail_light(result.pareto_k.values[chosen], int(draws))
    estimator = np.array([*STAGES, "none"])[result.stage.values.astype(int)]
    found = result.drop_vars(["disagrees", "stage"]).assign(
        estimator=("datum", estimator), reliable=("datum", reliable)
    )
    return found.assign_attrs(reliable_share=float(reliable.mean()))
