r"""Comparison of models on the same data, datum by datum.

With :math:`d_n = \log \hat p_A(x_n) - \log \hat p_B(x_n)` and N data, the mean difference :math:`\bar d` has

.. math:: \text{standard error } \frac{\mathrm{sd}(d)}{\sqrt{N}}, \qquad
    \text{Monte Carlo error } \frac{1}{N} \sqrt{\sum_n \mathrm{mcse}_{A,n}^2 + \mathrm{mcse}_{B,n}^2}.

What makes a datum hard for both models cancels in :math:`d_n`, so the standard error is far below that of either mean.
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

MOST_UNRELIABLE = 0.01  # share of the data beyond which no Monte Carlo error is given
SAME = {  # attributes without which log-likelihoods are not comparable, and what to do where they differ
    "base_measure": "no likelihood of the one kind can be compared with one of the other",
    "binarization": "pass binarization= to both",
    "data_sha1": "evaluate both on the very same data (a part that is chosen by .isel keeps the hash of the whole)",
}


def compare(
    results: "Mapping[str, xr.Dataset] | Sequence[xr.Dataset]", *, reference: str | None = None
) -> pd.DataFrame:
    """Compare the estimates of log p(x) of several models on the same data.

    A difference is significant if it is large against both of its errors, and nearly all data are reliable. If k-hat
    exceeds 0.7 for more than 1% of the data, the estimate is a lower bound whose Monte Carlo error is not known, and
    its ``mcse`` is empty: use :func:`log_likelihood`. So it is for 100 weights per datum or fewer, from which k-hat
    cannot be estimated. The Monte Carlo errors are taken as independent. Estimators may
    differ, but data may not: densities of grey values cannot be compared with probabilities of binary ones.

    Args:
        results: Of :func:`evaluate` or of another estimator, by the models' names. Those of a list are named
            ``"model 0"``, ``"model 1"``, and so on.
        reference: Name of the model to subtract; by default the first.

    Returns:
        One row a model, the best first, with columns in nats per datum, higher is better, unless said otherwise. The
        table prints means with their errors over the data, and Monte Carlo errors in brackets; ``.T`` prints all:

        * ``log_likelihood``, ``error``, ``mcse``: mean over the data, its standard error over the data, and its Monte
          Carlo standard error, NaN if it is not known;
        * ``difference``, ``difference_error``, ``difference_mcse``: the same of the paired difference from the
          reference, 0 of itself;
        * ``bias``: bias of the logarithm of an average of weights, about -mcse^2 / 2 per datum, which averaging over
          data does not remove; NaN if any k-hat exceeds 0.7, because it cannot be estimated in that case, for 100
          weights or fewer, and for estimators without k-hat;
        * ``reliable``: share of the data that :func:`diagnose` calls reliable;
        * ``high_pareto_k``: share of the data with k-hat above 0.7, NaN if there is no ``pareto_k``;
        * ``num_samples``: draws or chains per datum, NaN where the result does not say;
        * ``estimator``: its name.

    Raises:
        TypeError: If the results are not by name.
        ValueError: If there are no results, or none of the reference's name; if two are of different data,
            binarization or base measure, or one does not say; if one has dimensions other than ``datum``.

    Warns:
        UserWarning: If two are of models that observe sites of different names.

    Source:
        *Practical Bayesian Model Evaluation Using Leave-One-Out Cross-Validation and WAIC* (Vehtari, Gelman and Gabry,
        2017), section 5.2, on paired differences.

    Example:
        >>> import torch, pyrovae as pv
        >>> def vae(latent):
        ...     return pv.VAE(
        ...         pv.priors.StandardNormal(latent),
        ...         pv.likelihoods.Normal(pv.networks.mlp(latent, 4)),
        ...         pv.posteriors.DiagonalNormal(pv.networks.mlp(4, 2 * latent)),
        ...     )
        >>> x, small, large = torch.randn(10, 4), vae(1), vae(3)
        >>> table = pv.evaluation.compare({
        ...     "small": pv.evaluation.evaluate(small.model, small.guide, x, num_samples=200, seed=0),
        ...     "large": pv.evaluation.evaluate(large.model, large.guide, x, num_samples=200, seed=0),
        ... })
        >>> sorted(table.index), float(table.difference["small"])
        (['large', 'small'], 0.0)
    """
    import xarray as xr

    given: object = results
    if isinstance(given, xr.Dataset):  # which is a mapping too
        raise TypeError("compare takes results by the models' names, such as compare({'VAE': results})")
    if not isinstance(results, Mapping):
        results = {f"model {i}": result for i, result in enumerate(results)}
    if not results:
        raise ValueError("there are no results to compare; give at least one, by its model's name")
    reference = next(iter(results)) if reference is None else reference
    if reference not in results:
        raise ValueError(f"there is no reference {reference!r}; choose from {list(results)}")
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
    """Return whether the Monte Carlo error of the mean is known."""
    if "pareto_k" not in result:
        return True
    return _has_k_hat(result) and float((result.pareto_k > 0.7).mean()) <= MOST_UNRELIABLE


def _has_k_hat(result: "xr.Dataset") -> bool:
    """Return whether there are enough weights for a k-hat."""
    weights = result.attrs.get("num_samples", result.attrs.get("num_chains", np.inf))
    return "pareto_k" in result and weights > FEW_WEIGHTS


def _reliable(result: "xr.Dataset") -> float:
    """Return the share of reliable data, NaN if the result does not hold its number of draws."""
    if not {"num_samples", "num_chains"} & set(result.attrs):
        return np.nan
    return float((diagnose(result).verdict == RELIABLE).mean())


def _mean(name: str, prefix: str, values: np.ndarray, variances: np.ndarray) -> dict[str, float]:
    """Return the mean over the data, its standard error, NaN for one datum, and its Monte Carlo standard error."""
    return {
        name: float(values.mean()),
        f"{prefix}error": float(pd.Series(values).sem()),
        f"{prefix}mcse": float(variances.sum()) ** 0.5 / len(values),
    }


def _check_result(name: str, result: "xr.Dataset") -> None:
    """Refuse a result that cannot be compared with any."""
    if "log_likelihood" not in result:
        raise ValueError(f"the results of {name!r} hold no log_likelihood but {list(result)}; evaluate the model")
    if result.log_likelihood.dims != ("datum",):
        raise ValueError(
            f"results are compared over 'datum' alone, but those of {name!r} go over {result.log_likelihood.dims}; "
            f"choose one by .isel"
        )
    if lost := [attribute for attribute in SAME if attribute not in result.attrs]:
        raise ValueError(f"the results of {name!r} do not say their {lost[0]}; give it back by .assign_attrs")


def _check_pair(names: tuple[str, str], first: "xr.Dataset", second: "xr.Dataset") -> None:
    """Refuse two results whose log-likelihoods are of different things."""
    pairs = {"number of data": (first.sizes["datum"], second.sizes["datum"])}
    pairs |= {attribute: (first.attrs[attribute], second.attrs[attribute]) for attribute in SAME}
    for what, (one, other) in pairs.items():
        if one != other:
            raise ValueError(
                f"{names[0]!r} and {names[1]!r} are not comparable, their {what} is {one!r} and {other!r}; "
                f"{SAME.get(what, 'evaluate both on the very same data')}"
            )
    observed = [each.attrs.get("observed_sites") for each in (first, second)]
    if None not in observed and observed[0] != observed[1]:
        warnings.warn(
            f"{names[0]!r} observes the sites {observed[0]!r} and {names[1]!r} observes {observed[1]!r}; their "
            f"log-likelihoods are comparable only if both are of the same data, and not if one is conditional, "
            f"log p(x | y), and the other joint, log p(x, y)",
            stacklevel=find_stack_level(),
        )
    if (first.datum.values != second.datum.values).any():
        raise ValueError(f"{names[0]!r} and {names[1]!r} hold different data along 'datum'; choose the same of both")
