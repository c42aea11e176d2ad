r"""Verdicts on an estimate of log p(x): which data's estimates are reliable, and what would mend the others.

If the largest weights of a datum have a generalized Pareto tail of shape :math:`k < 1`, then by the generalized central
limit theorem the error of the mean of K weights falls like :math:`K^{-(1 - \max(k, 1/2))}`. So from an error
:math:`\mathrm{mcse}` with K draws follow the draws for an error :math:`\epsilon`:

.. math:: K_\epsilon = \max\Big\{ K \Big(\frac{\mathrm{mcse}}{\epsilon}\Big)^{1 / (1 - \max(k, 1/2))},\;
    10^{1 / (1 - \max(k, 0))} \Big\},

where the second term is the least that Pareto-smoothed importance sampling needs; no number suffices if
:math:`k \ge 1`. For a normal posterior and a normal proposal of c < 1 times its scale, :math:`k = 1 - c^2`, in any
number of dimensions.

k-hat is itself an estimate. From the M largest weights its standard error is about :math:`(1 + k) / \sqrt M`, 0.19 for
1,000 draws, and ArviZ moves it towards 1/2, which is undone here: :math:`\tilde k = (\hat k (M + 10) - 5) / M`. The
data share a guide, so their k are alike. With mean :math:`\mu` and variance :math:`\tau^2` of k over the data, and
:math:`s` the standard error, the posterior of a datum's k is normal with

.. math:: \text{mean } \frac{\tilde k / s^2 + \mu / \tau^2}{1 / s^2 + 1 / \tau^2}, \qquad
    \text{variance } \frac{1}{1 / s^2 + 1 / \tau^2}.

An estimate is called reliable if the mean plus half a standard deviation is at most 0.65, and at most
:math:`1 - 1 / \log_{10} K`. Normal proposals that pass have 95% intervals that cover 80% to 95%; at 0.7 they would
cover 70%, as k-hat approaches k from below. For fewer than 20 data the mean of k over the data is not known, and
:math:`\tilde k` and :math:`s` stand for the posterior.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    import xarray as xr

RELIABLE, MORE_DRAWS, TOO_NARROW = "reliable", "more draws", "proposal too narrow"
ROUNDED, FAILED = "rounding", "no estimate"
REMEDIES = {
    RELIABLE: "none",
    MORE_DRAWS: "pyrovae.evaluation.log_likelihood, or the same estimator with draws_needed draws or chains",
    TOO_NARROW: "pyrovae.evaluation.log_likelihood, or a better guide; of ais, more temperatures",
    ROUNDED: "evaluate in float64: module.double(), x.double(), and tensors of that type in the programs",
    FAILED: "look at these data: their log-weights are NaN, or they raised an error",
}
THRESHOLD = 0.65  # of k with its error; see above
FEW_DATA = 20  # below that, k-hat is not shrunk towards its mean over the data
FEW_WEIGHTS = 100  # with as many or fewer, k-hat says next to nothing, and no error has a warrant
COARSE = 0.5  # share of the precision that rounding may take if mcse exceeds the precision
LEAST_ACCEPTANCE = 0.3  # of annealed chains, below which they hardly move
R_HAT = 1.05  # above that, the chains of a sampler have not mixed


def draws_needed(results: "xr.Dataset", precision: float = 0.1) -> "xr.DataArray":
    r"""Predict how many draws give each datum's estimate of log p(x) a Monte Carlo standard error of ``precision``.

    It is the ``mcse`` of :func:`evaluate` that would shrink to the precision. For k-hat below 0.5 this is the true
    error to within a fifth; between 0.5 and 0.7 the variance of the weights is infinite, and the middle 68 % of the
    errors go 1.3 to 1.4 times as far.
    The estimate is then still too low by about ``precision ** 2 / 2``, less than the precision if that is below 2 nats,
    but the same for all data, so averaging over data does not remove it. k-hat is an estimate from the largest weights,
    with a standard deviation of about 0.15 at 1000 draws, and the prediction is the rougher the larger it is.

    Args:
        results: Of :func:`evaluate` or another estimator by importance weights, with more than 20 draws.
        precision: The standard error to reach, nats.

    Returns:
        Draws or chains per datum, whole numbers as floats; infinite where k-hat is 1 or more, and where the rounding of
        log-weights exceeds the precision, which more draws do not change.

    Raises:
        ValueError: If the precision is not positive and finite, there is no ``pareto_k``, or there are too few draws to
            estimate one.

    Source:
        *Pareto Smoothed Importance Sampling* (Vehtari, Simpson, Gelman, Yao and Gabry, 2024), section 3;
        *The Sample Size Required in Importance Sampling* (Chatterjee and Diaconis, 2018) on why none may suffice.

    Example:
        >>> import torch, pyrovae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Normal(pv.networks.mlp(2, 4)),
        ...     pv.posteriors.DiagonalNormal(pv.networks.mlp(4, 2 * 2)),
        ... )
        >>> results = pv.evaluation.evaluate(vae.model, vae.guide, torch.zeros(10, 4), num_samples=200, seed=0)
        >>> rough, fine = (pv.evaluation.draws_needed(results, precision) for precision in (0.1, 0.01))
        >>> rough.dims, bool((rough <= fine).all())
        (('datum',), True)
    """
    import xarray as xr

    check_wanted_precision(precision)
    num_samples = _num_samples(results)
    pareto_k = results.pareto_k.where(results.pareto_k < 1)
    by_error = num_samples * _excess(results, precision) ** (1 / (1 - pareto_k.clip(min=0.5)))
    at_least = 10 ** (1 / (1 - pareto_k.clip(min=0)))
    needed: xr.DataArray = np.ceil(np.maximum(by_error, at_least)).fillna(np.inf).rename("draws_needed")
    return needed


def tail_shape(pareto_k: Any, num_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the posterior mean and standard deviation of the tail shape k of each datum, given k-hat of all data.

    Args:
        pareto_k: k-hat of the data, of any shape; ``-inf`` for equal weights and ``inf`` for too few draws are kept.
        num_samples: Draws per datum.
    """
    k_hat = np.asarray(pareto_k, dtype=float)
    tail = np.ceil(min(num_samples / 5, 3 * np.sqrt(num_samples)))
    k = np.where(np.isfinite(k_hat), (k_hat * (tail + 10) - 5) / tail, k_hat)
    finite = np.isfinite(k)
    error = np.where(finite, (1 + np.maximum(np.where(finite, k, 0.0), 0.0)) / np.sqrt(tail), 0.0)
    if finite.sum() < FEW_DATA:
        return k, error
    variance = error[finite].mean() ** 2
    between = max(k[finite].var(ddof=1) - variance, 0.0)
    share = between / (between + error**2)
    mean = k[finite].mean()
    return np.where(finite, mean + share * (np.where(finite, k, 0.0) - mean), k), np.sqrt(share) * error


def is_tail_light(pareto_k: Any, num_samples: int) -> np.ndarray:
    """Return for each datum whether the tail shape of its weights, with the error of k-hat, allows an error bar.

    Args:
        pareto_k: k-hat of the data.
        num_samples: Draws per datum.
    """
    mean, deviation = tail_shape(pareto_k, num_samples)
    return mean + deviation / 2 <= min(THRESHOLD, 1 - 1 / np.log10(num_samples))


def diagnose(results: "xr.Dataset", *, precision: float = 0.1) -> "xr.Dataset":
    """Judge for each datum whether its estimate of log p(x) is reliable, and if not, why.

    * ``"proposal too narrow"``: the tail of the weights is too heavy, as k-hat with its error exceeds 0.65. There is
      posterior mass where the proposal has next to none, which its draws rarely show, so estimates are too low on
      average, and a single one may be off by more than ``mcse``. A proposal in the wrong place counts as such. So do
      chains of a sampler that have not mixed (R-hat above 1.05), or that hardly move (acceptance below 0.3).
    * ``"more draws"``: ``mcse`` exceeds the precision, or the draws are fewer than :func:`draws_needed`. Results that
      hold a k-hat of 100 weights or fewer, such as a few chains of :func:`ais`, count as such: so few weights show no
      tail, and their ``mcse`` is often far too small.
    * ``"rounding"``: ``mcse`` exceeds the precision, and the rounding of log-weights alone takes more than half of the
      precision, as the log-weights are large for their type, float32 for most programs. More draws do not help.
    * ``"no estimate"``: the estimate is NaN, or -inf since no draw had a weight.
    * ``"reliable"``: none of these.

    Every estimator is judged. Chains of :func:`ais` are judged by the k-hat of their weights and by their acceptance.
    Results without k-hat, those of :func:`nuts`, are judged by ``mcse`` and R-hat. Results of :func:`log_likelihood`
    hold their own verdicts.

    Args:
        results: Of :func:`evaluate`, :func:`log_likelihood`, :func:`rqmc`, :func:`ais` or :func:`nuts`.
        precision: The Monte Carlo standard error that an estimate may have, nats.

    Returns:
        Dataset of ``verdict``, one of the strings above, and ``draws_needed``, both per datum, with the attributes of
        the results and the precision. ``results.where(diagnosis.verdict == "reliable", drop=True)`` chooses data; a
        mean over only these is not an estimate of the mean over all.

    Raises:
        ValueError: If the precision is not positive and finite, or the results hold neither ``mcse`` nor an attribute
            ``num_samples`` or ``num_chains``.

    Source:
        *Pareto Smoothed Importance Sampling* (Vehtari, Simpson, Gelman, Yao and Gabry, 2024), section 3.

    Example:
        >>> import torch, pyrovae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Normal(pv.networks.mlp(2, 4)),
        ...     pv.posteriors.DiagonalNormal(pv.networks.mlp(4, 2 * 2)),
        ... )
        >>> results = pv.evaluation.evaluate(vae.model, vae.guide, torch.zeros(10, 4), num_samples=200, seed=0)
        >>> list(pv.evaluation.diagnose(results, precision=0.5))
        ['verdict', 'draws_needed']
    """
    import xarray as xr

    check_wanted_precision(precision)
    if "mcse" not in results:
        raise ValueError(f"these results hold no 'mcse' but {list(results)}; evaluate the model")
    weights = _count(results)
    estimate = results.get("log_likelihood", results.mcse)
    verdict = xr.full_like(results.mcse, RELIABLE, dtype=object)
    needed = xr.full_like(results.mcse, np.nan, dtype=float)
    if "pareto_k" in results and weights > FEW_WEIGHTS:
        needed = draws_needed(results, precision)
        verdict = verdict.where(needed <= weights, MORE_DRAWS)
        verdict = verdict.where(is_tail_light(results.pareto_k.values, weights), TOO_NARROW)
    else:
        needed = np.ceil(weights * np.maximum(_excess(results, precision) ** 2, 1.0)).fillna(np.inf)
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
        verdict = verdict.where(~results.reliable | (verdict == RELIABLE), RELIABLE)
        verdict = verdict.where(results.reliable | (verdict != RELIABLE), MORE_DRAWS)
    verdict = verdict.where(~(np.isnan(estimate) | np.isneginf(estimate) | np.isnan(results.mcse)), FAILED)
    columns = {"verdict": verdict.astype(str), "draws_needed": needed.rename("draws_needed")}
    return xr.Dataset(columns, attrs={**results.attrs, "precision": float(precision)})


def verdicts(results: "xr.Dataset", *, precision: float = 0.1, worst: int = 10) -> pd.DataFrame:
    """Summarize the verdicts of :func:`diagnose`: how many data have which, the worst of them, and what to do.

    Args:
        results: As for :func:`diagnose`.
        precision: The Monte Carlo standard error that an estimate may have, nats.
        worst: How many data to list of each verdict.

    Returns:
        One row for each verdict, with columns

        * ``data``, ``share``: how many data, and what share of all;
        * ``draws_needed``: the most that any of them needs, NaN if there is none;
        * ``worst``: their labels along ``datum``, those first that need the most draws, then by k-hat;
        * ``what_to_do``: the remedy.

    Raises:
        ValueError: As :func:`diagnose`; if the results have dimensions other than ``datum``.

    Source:
        *Pareto Smoothed Importance Sampling* (Vehtari, Simpson, Gelman, Yao and Gabry, 2024), section 3.

    Example:
        >>> import torch, pyrovae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Normal(pv.networks.mlp(2, 4)),
        ...     pv.posteriors.DiagonalNormal(pv.networks.mlp(4, 2 * 2)),
        ... )
        >>> results = pv.evaluation.evaluate(vae.model, vae.guide, torch.zeros(10, 4), num_samples=200, seed=0)
        >>> table = pv.evaluation.verdicts(results)
        >>> list(table.index), int(table["data"].sum())
        (['reliable', 'more draws', 'proposal too narrow'], 10)
    """
    diagnosis = diagnose(results, precision=precision)
    if diagnosis.verdict.dims != ("datum",):
        raise ValueError(
            f"verdicts are summed up over 'datum' alone, but the results go over {diagnosis.verdict.dims}; "
            f"choose one by .isel"
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
    """Return the rounding error of each estimate, nats; 0 for results that do not say the type of their log-weights."""
    dtype = results.attrs.get("dtype")
    size = abs(results.get("log_likelihood", results.mcse))
    return (0.0 if dtype is None else np.finfo(dtype).eps) * size.where(np.isfinite(size), 0.0)


def _excess(results: "xr.Dataset", precision: float) -> "xr.DataArray":
    """Return the Monte Carlo part of ``mcse`` by what rounding leaves of the precision; NaN if it leaves nothing."""
    rounding = _rounding(results)
    left = (precision**2 - rounding**2).where(rounding < precision)
    return np.sqrt((results.mcse**2 - rounding**2).clip(min=0.0) / left)


def check_wanted_precision(precision: float | str) -> None:
    """Check a Monte Carlo standard error that estimates should reach.

    Raises:
        TypeError: If it is the name of a dtype, the ``precision`` of matrix products in :class:`Options`.
        ValueError: If it is not positive and finite.
    """
    if isinstance(precision, str):
        raise TypeError(
            f"precision is the Monte Carlo standard error to reach here, in nats, got {precision!r}. To set the "
            f"precision of matrix products, pass evaluate(..., precision={precision!r}) or "
            f"log_likelihood(..., product_precision={precision!r})"
        )
    if not 0 < precision < np.inf:
        raise ValueError(
            f"precision, the standard error to reach in nats, must be positive and finite, got {precision}"
        )


def _count(results: "xr.Dataset") -> int:
    """Return the number of weights per datum."""
    for name in ("num_samples", "num_chains"):
        if name in results.attrs:
            return int(results.attrs[name])
    raise ValueError("these results have lost their attribute 'num_samples'; give it back by .assign_attrs")


def _num_samples(results: "xr.Dataset") -> int:
    """Return the draws per datum of results that can be judged by their k-hat."""
    if "pareto_k" not in results:
        raise ValueError(
            f"there is no 'pareto_k' in these results of {results.attrs.get('estimator', 'unknown origin')}, from "
            f"which the draws could be predicted; diagnose judges them by their mcse"
        )
    num_samples = _count(results)
    if num_samples <= 20:
        raise ValueError(f"k-hat needs more than 20 draws, these results have {num_samples}; evaluate with more")
    return num_samples
