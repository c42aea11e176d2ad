r"""Posterior predictive checks, which compare a statistic of the data with the same statistic of replicated data.

Draws from :math:`p(z \mid x_n)` are made by sampling importance resampling: draws of the guide are chosen with their
Pareto-smoothed weights as probabilities. With replicates :math:`x_n' \sim p(x \mid z)`, a statistic T has the p-value

.. math:: p_n = \Pr\big(T(x_n') \ge T(x_n) \mid x_n\big).
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch
from torch import Tensor

from pyrovae._waist.errors import ProgramError
from pyrovae._waist.sites import Program, Site
from pyrovae.evaluation.batches import Batch
from pyrovae.evaluation.observed import (
    ObservedEntries,
    entries_of,
    own_rows,
    scored_values,
    unshared,
    values_per_datum,
)
from pyrovae.evaluation.options import Options
from pyrovae.evaluation.pairs import takes_vae
from pyrovae.evaluation.posterior.draws import Posterior, PosteriorDraws
from pyrovae.evaluation.report import report
from pyrovae.evaluation.simulation import Redrawn

if TYPE_CHECKING:
    import xarray as xr


@takes_vae
def posterior_predictive_check(
    model: Program,
    guide: Program,
    x: Any,
    statistic: Callable[..., Tensor],
    num_samples: int = 1000,
    *,
    num_draws: int = 500,
    **options: Unpack[Options],
) -> "xr.Dataset":
    r"""Compare a statistic of each datum with the statistic of replicates from its posterior predictive distribution.

    A p-value near 0 or 1 shows that the model rarely generates data with such a statistic. The posterior is conditional
    on the datum, so the p-values of a true model are not uniform but concentrated around 1/2.

    The statistic is called with the arguments of the model, and with replicates of the arguments. A replicate keeps all
    entries that the model does not observe, entries that a mask leaves out of the log-probability, and missing entries,
    which are NaN. This also holds if the model observes a filled copy, ``obs=x.nan_to_num()``: the statistic gets ``x``
    with its NaN, so use a statistic of the observed entries, such as ``x.nansum(-1)``.

    If the model observes an argument ``y``, compute the distributions of later sites from the value that
    ``pyro.sample("y", ..., obs=y)`` returns. If the distributions are computed from ``y`` itself, the replicates are
    conditional on the observed ``y``.

    The data and their replicates have the same dtype. If the dtype of an argument cannot hold the replicates exactly,
    such as an integer dtype for draws of a normal distribution, the statistic gets the argument and its replicates in
    the dtype of the draws, or in float64 if that dtype cannot hold the data. If the model observes a floating-point
    copy of an integer argument, ``obs=x.float()``, the statistic gets floating-point numbers.

    Args:
        model: Pyro program of p(x, z), called as ``model(x)``, or ``model(*x)`` if ``x`` is a tuple.
        guide: Pyro program of q(z | x), called with the same arguments.
        x: Data, shape ``(N, *event)``, or a tuple of arguments. In a tuple, the first dimension of every array has size
            N, and elements that are not arrays are passed to the programs and the statistic unchanged.
        statistic: Function that takes the arguments of the model and returns one number per datum, shape ``(n,)``, for
            tensors of shape ``(n, *event)`` with any n.
        num_samples: Draws of the guide per datum, K.
        num_draws: Draws from the posterior per datum, S, each with one replicate.
        **options: Keyword arguments of :class:`Options`.

    Returns:
        Dataset with

        * ``observed``: statistic of the data, dimension ``datum``;
        * ``replicated``: statistic of the replicates, dimensions ``draw`` and ``datum``;
        * ``p_value``: fraction of the replicates whose statistic is at least that of the datum, dimension ``datum``. It
          is NaN if the statistic of the datum or of one of its replicates is NaN;
        * ``pareto_k``, ``ess``: k-hat and effective sample size of the weights, dimension ``datum``.

    Raises:
        TypeError: For the reasons listed at :func:`log_weights`.
        ValueError: For the reasons listed at :func:`log_weights`; if the statistic does not return one number per
            datum; if the model observes no data; if a site observes a tensor that is neither a view of an argument,
            such as ``x``, ``x[:, t]`` or ``x.T``, nor a copy of an argument with the same scored entries; if such a
            copy fits several arguments, or an argument in several orders; or if two sites observe the same entry.
        FloatingPointError: If all draws of a datum have weight zero, for all data of a batch.

    Source:
        *Posterior Predictive Assessment of Model Fitness via Realized Discrepancies* (Gelman, Meng and Stern, 1996).

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyrovae as pv
        >>> def model(x):  # five entries with the same scale
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z.unsqueeze(-1), torch.ones(5)).to_event(1), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x.mean(-1), 1.0))
        >>> x = torch.tensor([[-1.0, -0.5, 0.0, 0.5, 1.0], [0.0, 0.0, 0.0, 0.0, 9.0]])  # the second has an outlier
        >>> check = pv.evaluation.posterior_predictive_check(
        ...     model, guide, x, lambda x: x.amax(-1), num_draws=100, seed=0
        ... )
        >>> bool(check.p_value[0] > 0.1), bool(check.p_value[1] < 0.05)
        (True, True)
    """
    posterior = Posterior(model, guide, x, num_samples, num_draws, options)

    def columns(batch: Batch) -> dict[str, Tensor]:
        drawn = posterior.draw(batch)
        observed, replicated = _statistics(statistic, posterior, drawn)
        found = {
            "observed": observed,
            "replicated": replicated,
            "p_value": _p_values(observed, replicated),
            "pareto_k": drawn.pareto_k,
            "ess": drawn.ess,
        }
        return {name: values[..., : batch.kept] for name, values in found.items()}

    return report(
        posterior.problem,
        columns,
        estimator="posterior predictive check",
        width=posterior.width,
        dims={"replicated": ("draw", "datum")},
        coords={"draw": np.arange(num_draws)},
        units="those of the statistic",
        num_samples=num_samples,
        num_draws=num_draws,
        settings={"statistic": statistic},
    )


def _statistics(statistic: Callable[..., Tensor], posterior: Posterior, drawn: PosteriorDraws) -> tuple[Tensor, Tensor]:
    """Return the statistic of a batch of data, shape ``(n,)``, and of their replicates, shape ``(num_draws, n)``."""
    batch, plate = unshared(drawn.batch), posterior.problem.plate.name
    values = posterior.complete(batch, posterior.num_draws, drawn.take(drawn.resample(posterior.num_draws)))
    replicates = _Replicates(own_rows(batch, plate), plate)
    observed: list[Tensor] = []
    replicated: list[Tensor] = []
    for part, sites in posterior.runs(batch, posterior.num_draws, Redrawn, values):
        data = [site for site in sites if site["infer"].get("was_observed")]
        if not data:
            raise ValueError(
                "the model observes no data that could be replicated. Observe the data by pyro.sample(..., obs=x)."
            )
        num_draws = part.stop - part.start
        made = replicates.make(data, num_draws)
        if not observed:
            observed.append(_call(statistic, _repeated(replicates.args, 1)))
        replicated.append(_call(statistic, made).reshape(num_draws, -1))
    return observed[0], torch.cat(replicated)


def _p_values(observed: Tensor, replicated: Tensor) -> Tensor:
    """Return the p-value of each datum, shape ``(n,)``, NaN where a statistic is NaN."""
    p_values = (replicated >= observed).double().mean(0)
    return p_values.masked_fill(observed.isnan() | replicated.isnan().any(0), torch.nan)


class _Replicates:
    """Replicates of the arguments of a model, for the data of a batch.

    Args:
        args: Arguments of the model, restricted to the data of the batch. They must not share memory.
        plate: Name of the data plate.

    Attributes:
        args: Arguments of the model. An argument is converted if its dtype cannot hold the replicates.
    """

    def __init__(self, args: list[Any], plate: str) -> None:
        self.args, self.plate = args, plate
        self.entries: dict[str, ObservedEntries] = {}

    def make(self, sites: Sequence[Site], num_draws: int) -> list[Any]:
        """Return the arguments with the draws of observed sites in the place of the scored entries.

        The first dimension of the returned arguments runs over draws and data, so its length is ``num_draws * n``.

        Raises:
            ValueError: If a site observes neither a view nor a copy of an argument, or an entry that an earlier site
                observes.
        """
        made = _repeated(self.args, num_draws)
        replaced: dict[int, Tensor] = {}
        for site in sites:
            observed = torch.as_tensor(site["infer"]["obs"])
            scored = scored_values(site, observed, self.plate).flatten(1)
            if not scored.any():
                continue
            draws = values_per_datum(site, site["value"], self.plate).flatten(1)
            if site["name"] not in self.entries:
                self.entries[site["name"]] = entries_of(site, observed, self.args, self.plate)
            place, indices = self.entries[site["name"]].argument, self.entries[site["name"]].indices.flatten()
            self._convert(place, observed, draws[scored])
            flat = made[place].to(self.args[place].dtype).reshape(num_draws, -1)
            taken = replaced.setdefault(place, torch.zeros_like(flat, dtype=torch.bool))
            if (taken[:, indices] & scored).any():
                raise ProgramError(
                    f"site {site['name']!r} observes entries of argument {place} that an earlier site also observes, "
                    f"so these entries have no single replicate. Observe each entry at one site."
                )
            taken[:, indices] |= scored
            flat[:, indices] = torch.where(scored, draws.to(flat), flat[:, indices])
            made[place] = flat.reshape(-1, *self.args[place].shape[1:])
        return made

    def _convert(self, place: int, observed: Tensor, draws: Tensor) -> None:
        """Convert an argument to a dtype that holds the argument and the draws of a site that observes it."""
        arg = self.args[place]
        own = observed.dtype if observed.is_floating_point() and not arg.is_floating_point() else arg.dtype
        dtypes = [dtype for dtype in (own, draws.dtype) if _holds(dtype, arg) and _holds(dtype, draws)]
        self.args[place] = arg.to(dtypes[0] if dtypes else torch.double)


def _holds(dtype: torch.dtype, values: Tensor) -> bool:
    """Return whether values are exact in a dtype."""
    if values.dtype == dtype:
        return True
    return bool(((values.to(dtype).to(values.dtype) == values) | values.isnan() & dtype.is_floating_point).all())


def _repeated(args: Sequence[Any], num_draws: int) -> list[Any]:
    """Return copies of the tensors in ``args``, repeated along the first dimension; other arguments are unchanged."""
    return [arg.repeat(num_draws, *(1,) * (arg.ndim - 1)) if isinstance(arg, Tensor) else arg for arg in args]


def _call(statistic: Callable[..., Tensor], args: Sequence[Any]) -> Tensor:
    found, data = statistic(*args), next(arg for arg in args if isinstance(arg, Tensor))
    if not isinstance(found, Tensor) or found.shape != data.shape[:1]:
        what = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise ValueError(
            f"the statistic must return one number per datum, a tensor of shape ({len(data)},) for data of shape "
            f"{tuple(data.shape)}, got {what}. Sum or average over all dimensions except the first."
        )
    return found
