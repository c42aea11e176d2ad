r"""Comparison of models on the same data, datum by datum.

For models A and B and N data, let :math:`d_n = \log \hat p_A(x_n) - \log \hat p_B(x_n)` be the difference for datum n.
The mean difference :math:`\bar d` has

.. math:: \text{standard error } \frac{\mathrm{sd}(d)}{\sqrt{N}}, \qquad
    \text{Monte Carlo error } \frac{1}{N} \sqrt{\sum_n \mathrm{mcse}_{A,n}^2 + \mathrm{mcse}_{B,n}^2}.

If a datum is hard for both models, both of its log-likelihoods are low, but this effect cancels in :math:`d_n`. The
standard error of :math:`\bar d` is therefore far below the standard error of either model's mean log-likelihood.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pyrovae._warnings import find_stack_level
from pyrovae.evaluation.diagnostics.comparison_table import ComparisonTable
from pyrovae.evaluation.diagnostics.verdicts import FEW_WEIGHTS, RELIABLE, diagnose

if TYPE_CHECKING:
    import xarray as xr

MOST_UNRELIABLE = 0.01  # fraction of unreliable data beyond which the Monte Carlo error is not reported
SAME = {  # attributes that must agree for log-likelihoods to be comparable, with the remedy
    "base_measure": "Compare only densities with densities, and probabilities with probabilities (bits_per_dimension)",
    "binarization": "Pass the same binarization= to both evaluations",
    "data_sha1": "Evaluate both on the same data (a subset chosen by .isel keeps the hash of the whole)",
}


def compare(
    results: "Mapping[str, xr.Dataset] | Sequence[xr.Dataset]", *, reference: str | None = None
) -> pd.DataFrame:
    """Compare the estimates of log p(x) of several models on the same data.

    A difference is significant if it is large compared with its standard error and with its Monte Carlo error, and if
    the estimates of nearly all data are reliable. If k-hat exceeds 0.7 for more than 1% of the data, the mean estimate
    is a lower bound with an unknown Monte Carlo error, and its ``mcse`` is NaN. ``mcse`` is also NaN if k-hat was
    computed from at most 100 weights per datum, because so few weights do not determine k-hat. In both cases, estimate
    log p(x) by :func:`log_likelihood`.

    The Monte Carlo errors of the models are assumed to be independent. The models may be evaluated by different
    estimators, but they must be evaluated on the same data. Densities of grey values cannot be compared with
    probabilities of binary values.

    Args:
        results: Mapping from the name of each model to its result of :func:`evaluate` or another estimator, or a list
            of results. The models of a list are named ``"model 0"``, ``"model 1"``, and so on.
        reference: Name of the model whose log-likelihoods are subtracted from those of every model; by default the
            first model.

    Returns:
        Table with one row per model, sorted by the mean log-likelihood, the highest first. The printed table shows each
        mean with its standard error over the data, followed by its Monte Carlo error in brackets; ``table.T`` prints
        all columns. The first seven columns are in nats per datum:

        * ``log_likelihood``, ``error``, ``mcse``: mean estimate of log p(x) over the data (higher is better), the
          standard error of this mean over the data, and its Monte Carlo standard error, NaN if it is not known;
        * ``difference``, ``difference_error``, ``difference_mcse``: mean paired difference from the reference, its
          standard error over the data, and its Monte Carlo standard error; all three are 0 for the reference itself;
        * ``bias``: estimated bias of ``log_likelihood``. The estimate of a datum has a bias of about minus half of its
          squared Monte Carlo error, and ``bias`` is the mean of these values over the data. It does not shrink as the
          number of data grows. ``bias`` is NaN if any k-hat exceeds 0.7, if there are at most 100 weights per datum, or
          if the estimator has no k-hat;
        * ``reliable``: fraction of the data whose estimate :func:`diagnose` calls reliable, NaN if the result does not
          hold the number of draws;
        * ``high_pareto_k``: fraction of the data with k-hat above 0.7, NaN if there is no ``pareto_k``;
        * ``num_samples``: draws or chains per datum, NaN if the result does not hold the number;
        * ``estimator``: name of the estimator.

    Raises:
        TypeError: If ``results`` is a single result instead of a mapping or list of results.
        ValueError: If there are no results, or no result has the name ``reference``; if two results differ in data,
            binarization or base measure; if a result lacks ``log_likelihood`` or an attribute that describes its data,
            binarization or base measure; or if a ``log_likelihood`` has dimensions other than ``datum``.

    Warns:
        UserWarning: If two models observe sites of different names.

    Source:
        *Practical Bayesian Model Evaluation Using Leave-One-Out Cross-Validation and WAIC* (Vehtari, Gelman and Gabry,
        2017), section 5.2, on paired differences.

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyrovae as pv
        >>> def programs(scale):
        ...     def model(x):  # p(x) = N(0, 1 + scale^2)
        ...         with pyro.plate("data", len(x)):
        ...             z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...             pyro.sample("x", dist.Normal(z, scale), obs=x)
        ...     def guide(x):
        ...         with pyro.plate("data", len(x)):
        ...             pyro.sample("z", dist.Normal(x / 2, 1.0))
        ...     return model, guide
        >>> x = 5 * torch.linspace(-1, 1, 20)
        >>> table = pv.evaluation.compare({
        ...     "narrow": pv.evaluation.evaluate(*programs(1.0), x, num_samples=1000, seed=0),
        ...     "wide": pv.evaluation.evaluate(*programs(3.0), x, num_samples=1000, seed=0),
        ... })
        >>> list(table.index)
        ['wide', 'narrow']
        >>> bool(table.difference["wide"] > 2 * table.difference_error["wide"])
        True
    """
    import xarray as xr

    given: object = results
    if isinstance(given, xr.Dataset):  # an xarray.Dataset is a mapping too
        raise TypeError(
            "compare needs the results of several models, got a single result. Pass a mapping from names to results, "
            "such as compare({'VAE': results})."
        )
    if not isinstance(results, Mapping):
        results = {f"model {i}": result for i, result in enumerate(results)}
    if not results:
        raise ValueError("there are no results to compare. Pass at least one result, under the name of its model.")
    reference = next(iter(results)) if reference is None else reference
    if reference not in results:
        raise ValueError(f"reference={reference!r} is not the name of a result. Choose from {list(results)}")
    for name, result in results.items():
        _check_result(name, result)
    for name, result in results.items():
        _check_pair((reference, name), results[reference], result)
    rows = {name: _row(result, results[reference]) for name, result in results.items()}
    table = pd.DataFrame.from_dict(rows, orient="index")
    return ComparisonTable(table.sort_values("log_likelihood", ascending=False, kind="stable"))


def _row(result: "xr.Dataset", reference: "xr.Dataset") -> dict[str, float | str]:
    values, variances = result.log_likelihood.values, result.mcse.values**2
    difference = values - reference.log_likelihood.values
    both = 0 * variances if result is reference else variances + reference.mcse.values**2
    if not _has_error(result):
        variances = np.full_like(variances, np.nan)
    if result is not reference and not (_has_error(result) and _has_error(reference)):
        both = np.full_like(variances, np.nan)
    weighted = "pareto_k" in result
    known = _has_k_hat(result) and bool((result.pareto_k <= 0.7).all())
    return {
        **_mean("log_likelihood", "", values, variances),
        **_mean("difference", "difference_", difference, both),
        "bias": -float((result.mcse.values**2).mean()) / 2 if known else np.nan,
        "reliable": _reliable(result),
        "high_pareto_k": float((result.pareto_k > 0.7).mean()) if weighted else np.nan,
        "num_samples": result.attrs.get("num_samples", result.attrs.get("num_chains", np.nan)),
        "estimator": result.attrs.get("estimator", ""),
    }


def _has_error(result: "xr.Dataset") -> bool:
    """Return whether the Monte Carlo error of a result's mean log-likelihood is known."""
    if "pareto_k" not in result:
        return True
    return _has_k_hat(result) and float((result.pareto_k > 0.7).mean()) <= MOST_UNRELIABLE


def _has_k_hat(result: "xr.Dataset") -> bool:
    """Return whether a result holds k-hat that was estimated from more than 100 weights per datum."""
    weights = result.attrs.get("num_samples", result.attrs.get("num_chains", np.inf))
    return "pareto_k" in result and weights > FEW_WEIGHTS


def _reliable(result: "xr.Dataset") -> float:
    """Return the fraction of the data with a reliable estimate, or NaN if the number of draws is not known."""
    if not {"num_samples", "num_chains"} & set(result.attrs):
        return np.nan
    precision = result.attrs.get("wanted_precision", 0.1)  # only results of log_likelihood have the attribute
    return float((diagnose(result, precision=precision).verdict == RELIABLE).mean())


def _mean(name: str, prefix: str, values: np.ndarray, variances: np.ndarray) -> dict[str, float]:
    """Return the mean of values over the data, its standard error (NaN for one datum) and its Monte Carlo error."""
    return {
        name: float(values.mean()),
        f"{prefix}error": float(pd.Series(values).sem()),
        f"{prefix}mcse": float(variances.sum()) ** 0.5 / len(values),
    }


def _check_result(name: str, result: "xr.Dataset") -> None:
    """Raise ValueError if a result has no ``log_likelihood`` over ``datum``, or lacks an attribute in ``SAME``."""
    if "log_likelihood" not in result:
        raise ValueError(
            f"the results of {name!r} hold {list(result)} but no 'log_likelihood'. Pass the result of an estimator of "
            f"log p(x)."
        )
    if result.log_likelihood.dims != ("datum",):
        raise ValueError(
            f"the log_likelihood of {name!r} has dimensions {result.log_likelihood.dims}, but compare needs "
            f"('datum',). Select one entry of the other dimensions by .isel."
        )
    if lost := [attribute for attribute in SAME if attribute not in result.attrs]:
        raise ValueError(
            f"the results of {name!r} have no attribute {lost[0]!r}. Restore the attribute by .assign_attrs."
        )


def _check_pair(names: tuple[str, str], first: "xr.Dataset", second: "xr.Dataset") -> None:
    """Raise ValueError if two results differ in data, binarization or base measure."""
    pairs = {"number of data": (first.sizes["datum"], second.sizes["datum"])}
    pairs |= {attribute: (first.attrs[attribute], second.attrs[attribute]) for attribute in SAME}
    for what, (one, other) in pairs.items():
        if one != other:
            raise ValueError(
                f"{names[0]!r} and {names[1]!r} are not comparable: their {what} is {one!r} and {other!r}. "
                f"{SAME.get(what, 'Evaluate both on the same data')}"
            )
    observed = [each.attrs.get("observed_sites") for each in (first, second)]
    if None not in observed and observed[0] != observed[1]:
        warnings.warn(
            f"{names[0]!r} observes the sites {observed[0]!r} and {names[1]!r} observes {observed[1]!r}. Their "
            f"log-likelihoods are comparable only if both score the same data; a conditional log p(x | y) and a joint "
            f"log p(x, y) are not comparable.",
            stacklevel=find_stack_level(),
        )
    if (first.datum.values != second.datum.values).any():
        raise ValueError(
            f"{names[0]!r} and {names[1]!r} hold different data along 'datum'. Select the same data from both results."
        )
