r"""Out-of-distribution scores, which compare the log-likelihood of a datum with the log-likelihoods of held-out data.

Let :math:`\ell_1, \dots, \ell_M` be the log-likelihoods of held-out data of the training distribution, and :math:`\ell`
the log-likelihood of a new datum. If the new datum comes from another distribution, :math:`\ell` may be unusually low
or, in high dimensions, unusually high. The test is therefore two-sided:

.. math:: \text{score} = \Big| \ell - \frac{1}{M} \sum_m \ell_m \Big|, \qquad
    p = \min\Big(1,\; 2\, \frac{1 + \min(\#\{\ell_m \le \ell\}, \#\{\ell_m \ge \ell\})}{M + 1}\Big).

If the new datum comes from the training distribution, :math:`\Pr(p \le \alpha) \le \alpha` for any model.
"""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

_SAME = ("base_measure", "binarization", "estimator")


def typicality(results: "xr.Dataset", reference: "xr.Dataset") -> "xr.Dataset":
    """Compare the log-likelihood of each datum with the log-likelihoods of held-out data.

    Args:
        results: Result of :func:`log_likelihood` or another estimator for the data to be tested.
        reference: Result of the same estimator for held-out data of the training distribution, such as validation data.
            Do not use training data, because a model that overfits gives them a higher log-likelihood.

    Returns:
        Dataset with dimension ``datum`` and three variables: ``log_likelihood``, nats; ``score``, the absolute
        difference between ``log_likelihood`` and its mean over the held-out data, nats; and ``p_value``, the two-sided
        p-value, NaN if ``log_likelihood`` is NaN. With M held-out data, the smallest possible p-value is
        ``2 / (M + 1)``.

    Raises:
        TypeError: If an argument is not a result.
        ValueError: If a result holds no ``log_likelihood`` with dimension ``datum``, if the two results differ in base
            measure, binarization or estimator, or if the reference holds only NaN.

    Source:
        *Detecting Out-of-Distribution Inputs to Deep Generative Models Using Typicality* (Nalisnick, Matsukawa, Teh and
        Lakshminarayanan, 2019), for the score, with batches of one datum; *Conformal Anomaly Detection* (Laxhammar,
        2014), for the p-value.

    Example:
        >>> import numpy as np, pyrovae as pv, xarray as xr
        >>> held_out = xr.Dataset({"log_likelihood": ("datum", np.linspace(-110, -90, 99))})
        >>> new = xr.Dataset({"log_likelihood": ("datum", [-100.0, -250.0, -20.0])})
        >>> pv.evaluation.typicality(new, held_out).p_value.values.tolist()
        [1.0, 0.02, 0.02]
    """
    import xarray as xr

    for name, result in (("results", results), ("reference", reference)):
        if not isinstance(result, xr.Dataset):
            raise TypeError(
                f"{name} must be the result of an estimator, got a {type(result).__name__}. Pass "
                f"pyrovae.evaluation.log_likelihood(vae, x)."
            )
        if "log_likelihood" not in result or result.log_likelihood.dims != ("datum",):
            raise ValueError(
                f"{name}, with dimensions {dict(result.sizes)}, has no log_likelihood over 'datum'. Pass an "
                f"estimator's result."
            )
    for attribute in _SAME:
        one, other = results.attrs.get(attribute), reference.attrs.get(attribute)
        if one != other:
            raise ValueError(
                f"{attribute} is {one!r} for results and {other!r} for the reference. Evaluate both in the same way."
            )
    values, known = results.log_likelihood.values, np.sort(reference.log_likelihood.dropna("datum").values)
    if not len(known):
        raise ValueError("the log_likelihood of the reference is NaN for all data. Evaluate held-out data.")
    at_most = np.searchsorted(known, values, side="right")
    at_least = len(known) - np.searchsorted(known, values, side="left")
    p_value = np.minimum(1.0, 2 * (1 + np.minimum(at_most, at_least)) / (len(known) + 1))
    columns = {
        "log_likelihood": values,
        "score": np.abs(values - known.mean()),
        "p_value": np.where(np.isnan(values), np.nan, p_value),
    }
    found = {name: ("datum", column) for name, column in columns.items()}
    return xr.Dataset(found, coords={"datum": results.datum}, attrs={**results.attrs, "num_reference": len(known)})
