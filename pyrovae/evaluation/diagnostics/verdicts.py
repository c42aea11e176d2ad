r"""Verdicts on an evaluation by importance sampling: whose estimate to believe, and what would mend the others.

If the largest weights of a datum have a generalized Pareto tail of shape :math:`k < 1`, then by the generalized central
limit theorem the error of the mean of K weights falls like :math:`K^{-(1 - \max(k, 1/2))}`. So from an error
:math:`\mathrm{mcse}` with K draws follow the draws for an error :math:`\epsilon`:

.. math:: K_\epsilon = \max\Big\{ K \Big(\frac{\mathrm{mcse}}{\epsilon}\Big)^{1 / (1 - \max(k, 1/2))},\;
    10^{1 / (1 - \max(k, 0))} \Big\},

the second being what Pareto-smoothed importance sampling needs at least; none suffice where :math:`k \ge 1`. For a
normal posterior and a normal proposal of c < 1 times its scale, :math:`k = 1 - c^2`, in any number of dimensions.
"""

import numpy as np
import pandas as pd
import xarray as xr

RELIABLE, MORE_DRAWS, TOO_NARROW = "reliable", "more draws", "proposal too narrow"
REMEDIES = {
    RELIABLE: "none",
    MORE_DRAWS: "evaluate with num_samples=draws_needed",
    TOO_NARROW: "pyrovae.evaluation.ais, or a better guide",
}
THRESHOLD = 0.7  # of k-hat; beyond it the bias exceeds the error, and the draws needed are too many


def draws_needed(results: xr.Dataset, precision: float = 0.1) -> xr.DataArray:
    r"""Predicts how many draws give each datum's estimate of log p(x) a Monte Carlo standard error of ``precision``.

    It is the ``mcse`` of :func:`evaluate` that would shrink to the precision. For k-hat below 0.5 this is the true
    error to within a fifth; between 0.5 and 0.7 the variance of the weights is infinite, and the middle 68 % of the
    errors go 1.3 to 1.4 times as far.
    The estimate is then still too low by about ``precision ** 2 / 2``, less than the precision if that is below 2 nats,
    but the same for all data, so averaging over data does not remove it. k-hat is an estimate from the largest weights,
    with a standard deviation of about 0.15 at 1000 draws, and the prediction is the rougher the larger it is.

    Args:
        results: Of :func:`evaluate`, with more than 20 draws.
        precision: The standard error to reach, nats.

    Returns:
        Draws per datum, whole numbers as floats; infinite where k-hat is 1 or more.

    Raises:
        ValueError: If the precision is not positive and finite, there is no ``pareto_k`` as other estimators' results
            have none, or there are too few draws to estimate one.

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
    num_samples = _num_samples(results)
    if not 0 < precision < np.inf:
        raise ValueError(
            f"precision, the standard error to reach in nats, must be positive and finite, got {precision}"
        )
    pareto_k = results.pareto_k.where(results.pareto_k < 1)
    by_error = num_samples * (results.mcse / precision) ** (1 / (1 - pareto_k.clip(min=0.5)))
    at_least = 10 ** (1 / (1 - pareto_k.clip(min=0)))
    return np.ceil(np.maximum(by_error, at_least)).fillna(np.inf).rename("draws_needed")


def diagnose(results: xr.Dataset, *, precision: float = 0.1) -> xr.Dataset:
    """Says of each datum whether its estimate of log p(x) is reliable, and if not, why.

    * ``"proposal too narrow"``: k-hat is above 0.7, the weights' tail is too heavy. There is posterior mass where the
      guide has next to none, which its draws rarely show, so estimates are too low on average, and a single one may be
      off either way by more than ``mcse``.
      A proposal in the wrong place counts as such, and one so wide that hardly a draw meets the posterior looks alike.
    * ``"more draws"``: the draws are fewer than :func:`draws_needed`, as ``mcse`` exceeds the precision, or k-hat
      exceeds 1 - 1 / log10(K).
    * ``"reliable"``: neither.

    A verdict is itself estimated, and data pass whose draws met none of the missing mass: of a normal proposal of 0.4
    times the true scales in two dimensions (k = 0.84), one datum in six is called reliable after 1000 draws, one in
    eight after 5000. Where the summary of :func:`verdicts` shows many data at fault, mistrust the rest of them too.

    Args:
        results: Of :func:`evaluate`, with more than 20 draws.
        precision: The Monte Carlo standard error that an estimate may have, nats.

    Returns:
        Dataset of ``verdict``, one of the three strings, and ``draws_needed``, both per datum, with the attributes of
        the results and the precision. ``results.where(diagnosis.verdict == "reliable", drop=True)`` chooses data; a
        mean over only these is no estimate of the mean over all.

    Raises:
        ValueError: As :func:`draws_needed`.

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
    needed = draws_needed(results, precision)
    too_few = xr.where(needed > _num_samples(results), MORE_DRAWS, RELIABLE)
    verdict = xr.where(results.pareto_k > THRESHOLD, TOO_NARROW, too_few)
    return xr.Dataset(
        {"verdict": verdict, "draws_needed": needed}, attrs={**results.attrs, "precision": float(precision)}
    )


def verdicts(results: xr.Dataset, *, precision: float = 0.1, worst: int = 10) -> pd.DataFrame:
    """Sums up the verdicts of :func:`diagnose`: how many data have which, the worst of them, and what to do.

    Args:
        results: Of :func:`evaluate`, with more than 20 draws.
        precision: The Monte Carlo standard error that an estimate may have, nats.
        worst: How many data to list of each verdict.

    Returns:
        One row a verdict, with columns

        * ``data``, ``share``: how many data, and what share of all;
        * ``draws_needed``: the most that any of them needs, NaN if there is none;
        * ``worst``: their labels along ``datum``, those first that need the most draws, then by k-hat;
        * ``what_to_do``: the remedy.

    Raises:
        ValueError: As :func:`draws_needed`; if the results have dimensions other than ``datum``.

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
    order = np.lexsort((results.pareto_k, diagnosis.draws_needed))[::-1]
    ordered = diagnosis.isel(datum=order)
    rows = {}
    for verdict, remedy in REMEDIES.items():
        own = ordered.isel(datum=(ordered.verdict == verdict).values)
        rows[verdict] = {
            "data": own.sizes["datum"],
            "share": own.sizes["datum"] / len(order),
            "draws_needed": max(own.draws_needed.values.tolist(), default=np.nan),
            "worst": own.datum.values[:worst].tolist(),
            "what_to_do": remedy,
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _num_samples(results: xr.Dataset) -> int:
    """Draws per datum of results that can be judged by their k-hat."""
    if "pareto_k" not in results:
        raise ValueError(
            f"there is no 'pareto_k' in these results of {results.attrs.get('estimator', 'unknown origin')}; verdicts "
            f"are for those of pv.evaluation.evaluate, others are to be judged by their mcse"
        )
    if "num_samples" not in results.attrs:
        raise ValueError("these results have lost their attribute 'num_samples'; give it back by .assign_attrs")
    num_samples = int(results.attrs["num_samples"])
    if num_samples <= 20:
        raise ValueError(
            f"k-hat needs more than 20 draws, these results have num_samples={num_samples}; evaluate with more"
        )
    return num_samples
