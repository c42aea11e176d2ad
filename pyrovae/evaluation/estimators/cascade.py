r"""Estimation of log p(x) by a cascade, which finds the cheapest reliable estimator for each datum.

A datum passes through up to three stages:

1. *guide*: importance sampling with draws from the guide, if pilot draws show that the guide is a good proposal, and
   draws from the prior find no region that it misses (:mod:`pyrovae.evaluation.unconstrained.prior`);
2. *refined*: importance sampling with draws from the mixture of :class:`pyrovae.guides.Refined`. The mixture contains
   the prior if the prior is near the posterior. Pilot draws determine the number of draws. If the estimate is not
   reliable, chains look for regions that the mixture misses (:mod:`pyrovae._refinement.walks`), densities near the
   points with the largest weights join the mixture (:mod:`pyrovae._refinement.increments`), and new draws follow. If
   the new estimates are not reliable and the budget allows it, short chains improve the mixture, and then longer
   chains. For posteriors with the shape of a funnel, the stage is repeated in other coordinates
   (:mod:`pyrovae.evaluation.unconstrained.standardized`);
3. *annealed*: annealed importance sampling from the fitted densities and the guide. The number of temperatures is
   doubled until the estimate is reliable or the budget is spent.

Each stage makes new draws from a proposal that is fixed before these draws. A stage keeps its estimate if the k-hat
and the Monte Carlo error of its own draws are small enough. Draws that happen to miss the largest weights pass this
rule more often, and tend to give too low an estimate. The rule therefore lowers the mean of the estimates that are
kept. In the first stage this effect is small, because separate pilot draws select the data for which the guide is a
good proposal, and few estimates of these data are rejected. In the second stage, the mean is lowered by a fraction of
the reported errors.

An estimate is reliable if seven conditions hold. Its Monte Carlo error is at most the wanted precision. The k-hat of
its weights, with an allowance for the error of k-hat, is small enough for :func:`pyrovae.evaluation.diagnose`. No
earlier estimate of the same datum is higher by several standard errors of the difference. All estimates are lower
bounds in expectation, so a larger estimate from another proposal indicates a missed mode. No witness, a point of high
posterior density that short chains have found, has a weight so large that the draws may miss its region
(:mod:`pyrovae._refinement.modes`). If the posterior is far from normal, or an earlier estimate was not reliable, chains
from remarkable draws find no such point either (:mod:`pyrovae._refinement.walks`). Latents cannot fit the datum exactly
and make its noise small, or the estimate is that of the stage *guide*
(:mod:`pyrovae.evaluation.unconstrained.exact_fits`). Rounding does not move draws that matter to the edge of a support
(:mod:`pyrovae.evaluation.unconstrained.edges`).
"""

import warnings
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from torch import Tensor

from pyrovae._compilation.precision import Precision
from pyrovae._waist.sites import Program
from pyrovae._warnings import find_stack_level
from pyrovae.arguments import check_whole
from pyrovae.evaluation.batches import Batch
from pyrovae.evaluation.diagnostics.tails import is_tail_light
from pyrovae.evaluation.diagnostics.verdicts import FEW_WEIGHTS, check_wanted_precision
from pyrovae.evaluation.estimators.estimates import Estimates
from pyrovae.evaluation.estimators.guide_stage import GuideStage
from pyrovae.evaluation.estimators.schedule import Schedule
from pyrovae.evaluation.options import Options, SharedOptions
from pyrovae.evaluation.pairs import takes_vae
from pyrovae.evaluation.problem import Problem
from pyrovae.evaluation.report import report
from pyrovae.evaluation.unconstrained.exact_fits import can_fit_exactly
from pyrovae.evaluation.unconstrained.flat import target_of
from pyrovae.evaluation.unconstrained.prior import WithPrior
from pyrovae.evaluation.unconstrained.space import Space
from pyrovae.evaluation.unconstrained.target import Target
from pyrovae.isolation import seeded

if TYPE_CHECKING:
    import xarray as xr

STAGES = ("guide", "refined", "annealed")
EXACT_FIT = (
    "the scale of observed entries depends on a latent and can become small, and the other latents can fit these "
    "entries exactly. The posterior then has a narrow region at the exact fit, which draws may miss, so only estimates "
    "by draws from the guide can be reliable. Give the scale a lower bound near its typical value, or let the model "
    "integrate out these latents."
)


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
    r"""Estimate log p(x) of each datum by the cheapest estimator that is reliable for this datum.

    Use this function for values that you report. The usual protocol in the literature is importance sampling from the
    amortized guide. Such estimates are unreliable for most data of a well-trained VAE, and overstate its negative
    log-likelihood. The documentation page on evaluation derives the method.

    Args:
        model: Pyro program of p(x, z). The stages *refined* and *annealed* need continuous latent sites; discrete sites
            must be enumerated in the model. All other programs are evaluated with draws from the guide.
        guide: Pyro program of q(z | x).
        x: Data, shape ``(N, *event)``, or a tuple of arguments whose tensors share the first dimension.
        precision: Largest acceptable Monte Carlo standard error, nats.
        num_samples: Draws per datum in the stage *guide*. The stage *refined* makes half to four times as many,
            depending on the effective sample size of pilot draws.
        budget: Number of evaluations of log p(x, z) per datum above which neither further densities, nor chains, nor
            annealing, nor a second fit in other coordinates start. The search for further modes can exceed it by 3,000
            evaluations. A gradient counts as 3 evaluations.
        product_precision: Precision of the matrix products in linear and convolutional layers. Other estimators call
            this option ``precision``.
        **options: Keyword arguments of :class:`Options`.

    Returns:
        Dataset with dimension ``datum``, the attributes of :func:`evaluate`, an attribute ``reliable_share`` (the
        fraction of data with reliable estimates), and these variables:

        * ``log_likelihood``, ``mcse``: estimate of log p(x) and its Monte Carlo standard error, nats;
        * ``pareto_k``, ``ess``: k-hat of the weights, and their effective sample size;
        * ``estimator``: stage that gave the estimate, ``"guide"``, ``"refined"`` or ``"annealed"``; ``"none"`` if the
          programs raise an error for the datum;
        * ``draws``: number of draws or chains of this stage;
        * ``evaluations``: evaluations of log p(x, z) that were spent, where a gradient counts as 3;
        * ``reliable``: true if the estimate is reliable. If latents can fit entries of the datum exactly while another
          latent makes their noise small, only estimates of the stage ``"guide"`` can be reliable, and a warning says
          so.

    Raises:
        TypeError: For the reasons listed at :func:`evaluate`, or if ``precision`` is the name of a dtype, which must be
            passed as ``product_precision``.
        ValueError: For the reasons listed at :func:`evaluate`; if ``precision`` or ``budget`` is not positive; or if
            ``num_samples`` is too small for a verdict.
        FloatingPointError: If the log-weights of all data are NaN or infinite.

    Warns:
        UserWarning: If latents can fit data exactly while another latent makes their noise small; or if the model
            raises an error at draws from its prior, so that modes may stay hidden; if rounding moves many draws to
            the edge of a support; or if only draws from the guide are possible, and draws from the prior find a part of
            the posterior that the guide misses.

    Source:
        *Fixed-Form Variational Posterior Approximation through Stochastic Linear Regression* (Salimans and Knowles,
        2013); *Annealed Importance Sampling* (Neal, 2001).

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyrovae as pv
        >>> def model(x):  # p(x) = N(0, 2)
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):  # far from the posterior of large x
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
        >>> x = torch.tensor([0.0, 6.0])
        >>> results = pv.evaluation.log_likelihood(model, guide, x, seed=0)
        >>> exact = dist.Normal(0.0, 2**0.5).log_prob(x).numpy()
        >>> bool((abs(results.log_likelihood - exact) < 4 * results.mcse).all()), bool((results.mcse < 0.1).all())
        (True, True)
        >>> results.estimator.values.tolist(), results.reliable.values.tolist()
        (['guide', 'refined'], [True, True])
    """
    check_whole(num_samples=num_samples, budget=budget)
    check_wanted_precision(precision)
    if budget < 1:
        raise ValueError(f"budget must be positive, got {budget}")
    if num_samples <= FEW_WEIGHTS:
        raise ValueError(
            f"num_samples must exceed {FEW_WEIGHTS} for a verdict on the estimate, got num_samples={num_samples}"
        )
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
    """The three stages of :func:`log_likelihood`, *guide*, *refined* and *annealed*, for one batch of data at a time.

    Args:
        problem: A model, a guide and data.
        precision: Largest acceptable Monte Carlo standard error, nats.
        num_samples: Draws per datum from the guide.
        budget: Number of evaluations of log p(x, z) per datum above which no further expensive stage starts.
    """

    def __init__(self, problem: Problem, precision: float, num_samples: int, budget: int) -> None:
        self.problem, self.precision, self.num_samples = problem, precision, num_samples
        self.schedule = Schedule(problem, precision, num_samples, budget)
        self.space: Space | None = None
        self._fits_exactly: bool | None = None

    def open(self) -> int:
        """Check the support of the guide, and return the number of data in a batch.

        The attribute ``space`` stays ``None`` if no densities can be fitted to the posteriors.
        """
        self.problem.check_reach()
        try:
            self.space = Space(self.problem)
        except ValueError:  # discrete or periodic latents, point estimates, and random guides cannot be refined
            return max(1, self.problem.affordable // self.num_samples)
        return self.space.width

    def columns(self, batch: Batch) -> dict[str, Tensor | np.ndarray]:
        """Return a dictionary of columns for the data of a batch: estimates, diagnostics and costs."""
        estimates = Estimates(batch.size)
        by_guide = GuideStage(self.problem, self.space, self.precision, self.num_samples)
        good = by_guide.pilot(batch, estimates)
        prior = by_guide.reach_of_prior(batch, estimates)
        rounded = by_guide.rounded(batch, estimates, with_prior=bool(prior.evaluations.any()))
        estimates.rounded = rounded
        if self.space is None:  # no other stage can replace the estimate
            by_guide.estimate(batch, estimates, good)
            estimates.missed = prior.missed
            return self._kept(batch, estimates)
        pending = by_guide.estimate(batch, estimates, (good & ~prior.missed) | rounded)
        pending = pending[~rounded[pending]]  # a mixture in other coordinates does not mend the densities of the model
        for widens in (False, True):
            if len(indices := pending[prior.near[pending] == widens]):
                target = self._target(batch, indices, widens=widens)
                self.schedule.run(estimates, indices, target, is_hopeless=self._can_fit_exactly())
        return self._kept(batch, estimates)

    def _kept(self, batch: Batch, estimates: Estimates) -> dict[str, Tensor | np.ndarray]:
        return {name: column[: batch.kept] for name, column in estimates.columns().items()}

    def _target(self, batch: Batch, indices: Tensor, *, widens: bool) -> Target:
        """Return the posteriors of the data at the indices.

        If ``widens`` is true, the mixture of the guide with the prior takes the place of the guide.
        """
        assert self.space is not None
        whole = target_of(self.space, batch)
        target = whole if len(indices) == batch.size else whole.subset(indices)
        return WithPrior(target) if widens else target

    def _can_fit_exactly(self) -> bool:
        """Return whether latents can fit the data exactly and remove the noise. The first call warns if they can."""
        assert self.space is not None
        if self._fits_exactly is None:
            with seeded(self.problem.seed):  # the draws of a batch must not depend on whether it is the first
                self._fits_exactly = can_fit_exactly(self.space)
            if self._fits_exactly:
                warnings.warn(EXACT_FIT, stacklevel=find_stack_level())
        return self._fits_exactly


def _judged(result: "xr.Dataset", precision: float) -> "xr.Dataset":
    """Return a result with the new variables ``estimator`` and ``reliable`` and the new attribute ``reliable_share``.

    The variables ``disagrees`` and ``stage`` are removed. :func:`is_tail_light` judges the k-hat values.
    """
    computed = ~np.isnan(result.stage.values.astype(float))  # rows of data that raised an error are NaN
    reliable = computed & (result.mcse <= precision).values & ~(result.disagrees.values == 1)
    reliable &= is_tail_light(result.pareto_k.values, result.draws.values)
    estimator = np.array([*STAGES, "none"])[np.where(computed, result.stage.values, -1).astype(int)]
    found = result.drop_vars(["disagrees", "stage"]).assign(
        estimator=("datum", estimator), reliable=("datum", reliable)
    )
    return found.assign_attrs(reliable_share=float(reliable.mean()))
