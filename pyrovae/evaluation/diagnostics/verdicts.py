r"""Verdicts on estimates of log p(x): for each datum, whether its estimate is reliable, and what would improve it.

Let the largest weights of a datum have a generalized Pareto tail of shape :math:`k < 1`. By the generalized central
limit theorem, the error of the mean of K weights then falls like :math:`K^{-(1 - \max(k, 1/2))}`. The error
:math:`\mathrm{mcse}` of K draws thus predicts the number of draws for an error of :math:`\epsilon`:

.. math:: K_\epsilon = \max\Big\{ K \Big(\frac{\mathrm{mcse}}{\epsilon}\Big)^{1 / (1 - \max(k, 1/2))},\;
    10^{1 / (1 - \max(k, 0))} \Big\},

where the second term is the smallest number of draws that Pareto-smoothed importance sampling needs. If
:math:`k \ge 1`, every number of draws is too small. If posterior and proposal are normal, and the standard deviation of
the proposal is c < 1 times that of the posterior, then :math:`k = 1 - c^2` in any number of dimensions.

An estimate is called reliable only if its Monte Carlo error is at most the wanted precision, and the tail of its
weights is light. The module :mod:`pyrovae.evaluation.diagnostics.tails` derives the rule for tails.
"""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pyrovae.evaluation.diagnostics.tails import is_tail_light

if TYPE_CHECKING:
    import xarray as xr

RELIABLE, MORE_DRAWS, TOO_NARROW = "reliable", "more draws", "proposal too narrow"
ROUNDED, FAILED = "rounding", "no estimate"
REMEDIES = {
    RELIABLE: "none",
    MORE_DRAWS: "pyrovae.evaluation.log_likelihood (with a larger budget, if it gave these results), or the same "
    "estimator with draws_needed draws or chains",
    TOO_NARROW: "pyrovae.evaluation.log_likelihood (with a larger budget, if it gave these results), or a better "
    "guide; for ais, more temperatures",
    ROUNDED: "evaluate in float64: module.double(), x.double(), and float64 tensors in the programs",
    FAILED: "inspect these data: their log-weights are NaN, or the programs raised an error",
}
FEW_WEIGHTS = 100  # with this number of weights or fewer, k-hat and thus the Monte Carlo error are unknown
COARSE = 0.5  # fraction of the precision; a larger rounding error explains an mcse above the precision
LEAST_ACCEPTANCE = 0.3  # annealed chains with a lower acceptance hardly move
R_HAT = 1.05  # chains of a sampler with a larger R-hat have not mixed


def draws_needed(results: "xr.Dataset", precision: float = 0.1) -> "xr.DataArray":
    r"""Predict how many draws give each datum's estimate of log p(x) a Monte Carlo standard error of ``precision``.

    The prediction is for the ``mcse`` that :func:`evaluate` reports. For k-hat below 0.5, ``mcse`` agrees with the true
    error to within 20%. For k-hat between 0.5 and 0.7, the variance of the weights is infinite, and ``mcse`` is too
    small: 68% of the absolute errors are smaller than 1.3 to 1.4 times ``mcse``, instead of ``mcse`` itself.

    With the predicted number of draws, the estimate is still too low by about ``precision ** 2 / 2`` nats on average.
    Averaging over data does not remove this bias, because the bias has the same sign for all data.

    k-hat is estimated from the largest weights, with a standard deviation of about 0.15 at 1000 draws. The larger k-hat
    is, the less accurate is the prediction.

    For results of :func:`log_likelihood`, the prediction is for draws from the proposal that gave the estimate of the
    datum.

    Args:
        results: Result of :func:`evaluate` or another estimator that returns k-hat, with more than 20 draws per datum.
        precision: Target Monte Carlo standard error, nats.

    Returns:
        Number of draws (or chains) that each datum needs, stored as a float. The number is infinite if k-hat is 1 or
        more, or if the rounding error of the log-weights exceeds the precision, because more draws do not help in these
        cases.

    Raises:
        ValueError: If the precision is not positive and finite, if the results hold no ``pareto_k``, or if there are
            20 draws per datum or fewer.

    Source:
        *Pareto Smoothed Importance Sampling* (Vehtari, Simpson, Gelman, Yao and Gabry, 2024), section 3; *The Sample
        Size Required in Importance Sampling* (Chatterjee and Diaconis, 2018), for estimates that no practical number of
        draws makes reliable.

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyrovae as pv
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 1.0))
        >>> results = pv.evaluation.evaluate(model, guide, torch.tensor([0.0, 1.0]), num_samples=200, seed=0)
        >>> rough, fine = (pv.evaluation.draws_needed(results, precision) for precision in (0.1, 0.01))
        >>> bool((fine > 10 * rough).all())
        True
    """
    import xarray as xr

    check_wanted_precision(precision)
    num_samples = _count_for_k_hat(results)
    pareto_k = results.pareto_k.where(results.pareto_k < 1)
    by_error = num_samples * _excess(results, precision) ** (1 / (1 - pareto_k.clip(min=0.5)))
    at_least = 10 ** (1 / (1 - pareto_k.clip(min=0)))
    needed: xr.DataArray = np.ceil(np.maximum(by_error, at_least)).fillna(np.inf).rename("draws_needed")
    return needed


def diagnose(results: "xr.Dataset", *, precision: float = 0.1) -> "xr.Dataset":
    """Judge whether the estimate of log p(x) of each datum is reliable, and name the reason if it is not.

    * ``"proposal too narrow"``: the tail of the weights is too heavy, because k + SE(k) / 2 exceeds 0.65 or
      ``1 - 1 / log10(K)``. Here, K is the number of draws. The tail shape k and its standard error SE(k) are estimated
      from k-hat. The posterior then has mass where the proposal has almost none. Estimates of log p(x) are too low on
      average, and a single estimate may be off by more than ``mcse``. This verdict also covers a proposal in the wrong
      place, chains that have not mixed (R-hat above 1.05), and chains that hardly move (acceptance below 0.3).
    * ``"more draws"``: ``mcse`` exceeds the precision, or there are fewer draws than :func:`draws_needed` returns.
      Results with k-hat also get this verdict if a datum has at most 100 weights, as with a few chains of :func:`ais`.
      So few weights do not show the tail, and their ``mcse`` is often far too small.
    * ``"rounding"``: ``mcse`` exceeds the precision, and the rounding error of the log-weights is more than half of the
      precision. This happens if log-weights are large for their dtype, usually float32. More draws do not help.
    * ``"no estimate"``: the estimate or its ``mcse`` is NaN, or the estimate is -inf because all weights are zero.
    * ``"reliable"``: all other estimates.

    Chains of :func:`ais` are judged by the k-hat of their weights and by their acceptance. Results without k-hat, such
    as results of :func:`nuts`, are judged by ``mcse`` and R-hat. An estimate of :func:`log_likelihood` is reliable if
    its variable ``reliable`` is true and its ``mcse`` is at most the precision.

    Args:
        results: Result of :func:`evaluate`, :func:`log_likelihood`, :func:`rqmc`, :func:`ais` or :func:`nuts`.
        precision: Largest acceptable Monte Carlo standard error, nats.

    Returns:
        Dataset with two variables per datum: ``verdict``, one of the strings above, and ``draws_needed``, the number of
        draws for a Monte Carlo standard error of ``precision``. The dataset has the attributes of the results, and the
        attribute ``precision``. ``results.where(diagnosis.verdict == "reliable", drop=True)`` selects the data with
        reliable estimates. The mean over these data is not an estimate of the mean over all data.

    Raises:
        ValueError: If the precision is not positive and finite, if the results hold no ``mcse``, or if they have
            neither the attribute ``num_samples`` nor ``num_chains``.

    Source:
        *Pareto Smoothed Importance Sampling* (Vehtari, Simpson, Gelman, Yao and Gabry, 2024), section 3.

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyrovae as pv
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):  # far from the posterior of large x
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
        >>> results = pv.evaluation.evaluate(model, guide, torch.tensor([0.0, 8.0]), num_samples=1000, seed=0)
        >>> pv.evaluation.diagnose(results).verdict.values.tolist()
        ['reliable', 'proposal too narrow']
    """
    import xarray as xr

    check_wanted_precision(precision)
    if "mcse" not in results:
        raise ValueError(
            f"these results hold {list(results)} but no 'mcse'. Pass the result of an estimator of log p(x)."
        )
    weights = _count(results)
    estimate = results.get("log_likelihood", results.mcse)
    verdict = xr.full_like(results.mcse, RELIABLE, dtype=object)
    needed = xr.full_like(results.mcse, np.nan, dtype=float)
    if "pareto_k" in results and not np.any(weights <= FEW_WEIGHTS):
        needed = draws_needed(results, precision)
        verdict = verdict.where(needed <= weights, MORE_DRAWS)
        verdict = verdict.where(is_tail_light(results.pareto_k.values, weights), TOO_NARROW)
    else:
        needed = xr.apply_ufunc(np.ceil, weights * (_excess(results, precision) ** 2).clip(min=1.0)).fillna(np.inf)
        if "pareto_k" in results:
            needed, verdict = np.maximum(needed, FEW_WEIGHTS + 1), verdict.where(False, MORE_DRAWS)
    if "r_hat" in results:
        verdict = verdict.where(results.r_hat <= R_HAT, TOO_NARROW)
    if "acceptance" in results:
        verdict = verdict.where(results.acceptance >= LEAST_ACCEPTANCE, TOO_NARROW)
    few = (results.mcse > precision) & (verdict == RELIABLE)
    verdict = verdict.where(~few, MORE_DRAWS)
    coarse = (results.mcse > precision) & (_rounding(results) > COARSE * precision)
    verdict = verdict.where(~coarse, ROUNDED)
    if "reliable" in results:
        reliable = results.reliable & (results.mcse <= precision)
        verdict = verdict.where(~reliable, RELIABLE)
        verdict = verdict.where(reliable | (verdict != RELIABLE), MORE_DRAWS)
    verdict = verdict.where(~(np.isnan(estimate) | np.isneginf(estimate) | np.isnan(results.mcse)), FAILED)
    columns = {"verdict": verdict.astype(str), "draws_needed": needed.rename("draws_needed")}
    return xr.Dataset(columns, attrs={**results.attrs, "precision": float(precision)})


def verdicts(results: "xr.Dataset", *, precision: float = 0.1, worst: int = 10) -> pd.DataFrame:
    """Summarize the verdicts of :func:`diagnose`: the number of data with each verdict, the worst data, and remedies.

    Args:
        results: Result of an estimator that :func:`diagnose` accepts.
        precision: Largest acceptable Monte Carlo standard error, nats.
        worst: Largest number of data that are listed for each verdict.

    Returns:
        Table with one row for each verdict. The rows ``"rounding"`` and ``"no estimate"`` are omitted if no datum has
        the verdict. The columns are

        * ``data``, ``share``: number of data with the verdict, and their fraction of all data;
        * ``draws_needed``: the largest number of draws that a datum with the verdict needs, or NaN if no datum has the
          verdict;
        * ``worst``: labels along ``datum`` of the worst data. Data that need more draws come first. Data that need the
          same number of draws are sorted by k-hat, or by ``mcse`` if there is no k-hat, with the largest value first;
        * ``what_to_do``: the remedy.

    Raises:
        ValueError: For the reasons listed at :func:`diagnose`, or if the results have dimensions other than ``datum``.

    Source:
        *Pareto Smoothed Importance Sampling* (Vehtari, Simpson, Gelman, Yao and Gabry, 2024), section 3.

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyrovae as pv
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):  # far from the posterior of large x
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
        >>> results = pv.evaluation.evaluate(model, guide, torch.tensor([0.0, 0.0, 8.0]), num_samples=1000, seed=0)
        >>> table = pv.evaluation.verdicts(results)
        >>> table["data"].to_dict()
        {'reliable': 2, 'more draws': 0, 'proposal too narrow': 1}
        >>> table.loc["proposal too narrow", "worst"]
        [2]
    """
    diagnosis = diagnose(results, precision=precision)
    if diagnosis.verdict.dims != ("datum",):
        raise ValueError(
            f"the results have dimensions {diagnosis.verdict.dims}, but verdicts needs ('datum',). Select one entry of "
            f"the other dimensions by .isel."
        )
    shape = results.pareto_k if "pareto_k" in results else results.mcse
    order = np.lexsort((shape, diagnosis.draws_needed))[::-1]
    ordered = diagnosis.isel(datum=order)
    rows = {}
    for verdict, remedy in REMEDIES.items():
        if verdict in (ROUNDED, FAILED) and not (diagnosis.verdict == verdict).any():
            continue
        own = ordered.isel(datum=(ordered.verdict == verdict).values)
        rows[verdict] = {
            "data": own.sizes["datum"],
            "share": own.sizes["datum"] / len(order),
            "draws_needed": max(own.draws_needed.values.tolist(), default=np.nan),
            "worst": own.datum.values[:worst].tolist(),
            "what_to_do": remedy,
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _rounding(results: "xr.Dataset") -> "xr.DataArray":
    """Return the rounding error of each estimate, nats; 0 if the results do not hold the dtype of the log-weights."""
    dtype = results.attrs.get("dtype")
    size = abs(results.get("log_likelihood", results.mcse))
    return (0.0 if dtype is None else np.finfo(dtype).eps) * size.where(np.isfinite(size), 0.0)


def _excess(results: "xr.Dataset", precision: float) -> "xr.DataArray":
    """Return the ratio of ``mcse`` to the wanted precision.

    The square of the rounding error is first subtracted from the square of ``mcse`` and from the square of the
    precision. The ratio is NaN if the rounding error is not smaller than the precision.
    """
    rounding = _rounding(results)
    left = (precision**2 - rounding**2).where(rounding < precision)
    return np.sqrt((results.mcse**2 - rounding**2).clip(min=0.0) / left)


def check_wanted_precision(precision: float | str) -> None:
    """Check ``precision``, the Monte Carlo standard error in nats that estimates should reach.

    Raises:
        TypeError: If ``precision`` is a string, such as ``"tf32"``, which is a precision of matrix products.
        ValueError: If ``precision`` is not positive and finite.
    """
    if isinstance(precision, str):
        raise TypeError(
            f"precision must be the Monte Carlo standard error to reach, in nats, got {precision!r}. To set the "
            f"precision of matrix products, pass evaluate(..., precision={precision!r}) or "
            f"log_likelihood(..., product_precision={precision!r})."
        )
    if not 0 < precision < np.inf:
        raise ValueError(f"precision, the target standard error in nats, must be positive and finite, got {precision}")


def _count(results: "xr.Dataset") -> "xr.DataArray | int":
    """Return the number of weights of each datum: one for each draw or, in results of :func:`ais`, for each chain.

    The number is NaN for data without an estimate by :func:`log_likelihood`.
    """
    if "draws" in results:  # log_likelihood makes different numbers of draws for different data
        return results.draws.where(results.draws > 0)
    for name in ("num_samples", "num_chains"):
        if name in results.attrs:
            return int(results.attrs[name])
    raise ValueError(
        "these results have no attribute 'num_samples'. Restore the attribute by .assign_attrs(num_samples=...)."
    )


def _count_for_k_hat(results: "xr.Dataset") -> "xr.DataArray | int":
    """Return the number of weights per datum of a result.

    Raises:
        ValueError: If the result holds no k-hat, or has 20 weights per datum or fewer.
    """
    if "pareto_k" not in results:
        raise ValueError(
            f"these results of {results.attrs.get('estimator', 'unknown origin')} hold no 'pareto_k', so the number of "
            f"draws cannot be predicted. Use pyrovae.evaluation.diagnose, which judges such results by their mcse."
        )
    counts = _count(results)
    if np.any(counts <= 20):
        raise ValueError(
            f"k-hat needs more than 20 draws, but these results have {int(np.nanmin(counts))}. Evaluate with more "
            f"draws."
        )
    return counts
