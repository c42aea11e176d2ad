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

from pyrovae._waist.sites import Program, Site
from pyrovae.evaluation.batches import Batch
from pyrovae.evaluation.options import Options
from pyrovae.evaluation.pairs import takes_vae
from pyrovae.evaluation.posterior.draws import Posterior, PosteriorDraws, arranged
from pyrovae.evaluation.report import report
from pyrovae.evaluation.simulation import Redrawn, observed_argument, observed_entries, scored_entries

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

    A replicate keeps the entries of the data that a mask leaves out of the log-probability, and the arguments that the
    model does not observe. If the model observes an argument ``y``, compute the distributions of later sites from the
    value that ``pyro.sample("y", ..., obs=y)`` returns. If the distributions are computed from ``y`` itself, the
    replicates are conditional on the observed ``y``.

    Args:
        model: Pyro program of p(x, z), called as ``model(x)``, or ``model(*x)`` if ``x`` is a tuple.
        guide: Pyro program of q(z | x), called with the same arguments.
        x: Data, shape ``(N, *event)``, or a tuple of tensors that share the first dimension.
        statistic: Function that takes the arguments of the model and returns one number per datum, shape ``(n,)``, for
            tensors of shape ``(n, *event)`` with any n. It is called with the data, and with replicates in the place of
            the observed arguments.
        num_samples: Draws of the guide per datum, K.
        num_draws: Draws from the posterior per datum, S, each with one replicate.
        **options: Keyword arguments of :class:`Options`.

    Returns:
        Dataset with

        * ``observed``: statistic of the data, dimension ``datum``;
        * ``replicated``: statistic of the replicates, dimensions ``draw`` and ``datum``;
        * ``p_value``: fraction of the replicates whose statistic is at least that of the datum, dimension ``datum``;
        * ``pareto_k``, ``ess``: k-hat and effective sample size of the weights, dimension ``datum``.

    Raises:
        TypeError: For the reasons listed at :func:`log_weights`.
        ValueError: For the reasons listed at :func:`log_weights`; if the statistic does not return one number per
            datum; if the model observes no data; or if a program with several arguments observes a tensor that is
            neither an argument nor a view of an argument, such as ``x[:, t]``.
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
            "p_value": (replicated >= observed).double().mean(0),
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
    values, args = drawn.take(drawn.resample(posterior.num_draws)), list(drawn.batch.args)
    values = posterior.complete(drawn.batch, posterior.num_draws, values)
    plate = posterior.problem.plate.name
    observed: list[Tensor] = []
    replicated: list[Tensor] = []
    for _, sites in posterior.runs(drawn.batch, posterior.num_draws, Redrawn, values):
        data = [site for site in sites if site["infer"].get("was_observed")]
        if not data:
            raise ValueError(
                "the model observes no data that could be replicated. Observe the data by pyro.sample(..., obs=x)."
            )
        if not observed:
            shown = [arranged(site, site["infer"]["obs"], plate)[0][:1] for site in data]
            observed.append(_call(statistic, _replaced(args, data, shown, plate)))
        made = [arranged(site, _replicate(site), plate)[0] for site in data]
        replicated.append(_call(statistic, _replaced(args, data, made, plate)).reshape(len(made[0]), -1))
    return observed[0], torch.cat(replicated)


def _replicate(site: Site) -> Tensor:
    """Return the redrawn value of a site that was observed. Entries that the mask leaves out keep their data."""
    value: Tensor = site["value"]
    return torch.where(scored_entries(site), value, site["infer"]["obs"].to(value))


def _replaced(args: Sequence[Tensor], sites: Sequence[Site], values: Sequence[Tensor], plate: str) -> list[Tensor]:
    """Return the arguments of the model with given values in the place of observed data.

    There is one tensor of values for each site, shape ``(draws, n, *event)``. The first dimension of the returned
    arguments runs over draws and data, so its length is ``draws * n``.
    """
    if len(args) == len(sites) == 1:
        return [values[0].flatten(0, 1)]
    num_draws = len(values[0])
    replaced = [arg.expand(num_draws, *arg.shape).flatten(1).clone() for arg in args]
    for site, value in zip(sites, values, strict=True):
        observed = site["infer"]["obs"]
        views = {i: entries for i, arg in enumerate(args) if (entries := observed_entries(observed, arg)) is not None}
        if len(views) == 1:
            [(position, entries)] = views.items()
            replaced[position][:, arranged(site, entries, plate)[0][0].flatten()] = value.flatten(1).to(args[position])
        else:
            replaced[observed_argument(site["name"], observed, args)] = value.reshape(num_draws, -1)
    return [part.reshape(-1, *arg.shape[1:]) for part, arg in zip(replaced, args, strict=True)]


def _call(statistic: Callable[..., Tensor], args: Sequence[Tensor]) -> Tensor:
    found = statistic(*args)
    if not isinstance(found, Tensor) or found.shape != args[0].shape[:1]:
        what = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise ValueError(
            f"the statistic must return one number per datum, a tensor of shape ({len(args[0])},) for data of shape "
            f"{tuple(args[0].shape)}, got {what}. Sum or average over all dimensions except the first."
        )
    return found
