r"""Conversion of prior draws, posterior draws and predictions of a program to the data format of ArviZ.

The posterior draws are draws of the guide with Pareto-smoothed importance weights. By default, S draws are
resampled from the K draws of the guide, with the weights as probabilities. With raw weights, all K draws are kept, and
their weights are normalized:

.. math:: \mathrm{E}[f(z) \mid x_n] \approx \frac{1}{S} \sum_s f(z_n^{(s)}) \quad \text{or} \quad
    \sum_k \bar w_n^{(k)} f(z_n^{(k)}).
"""

from collections.abc import Hashable, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal, Unpack

import numpy as np
import torch
from torch import Tensor

from pyrovae._waist.draws import Given
from pyrovae._waist.scoring import masked_score
from pyrovae._waist.sites import Program, Site, is_computed_latent, is_deterministic
from pyrovae._waist.summation import sum_per_datum
from pyrovae.evaluation.batches import Batch
from pyrovae.evaluation.observed import arranged
from pyrovae.evaluation.options import Options
from pyrovae.evaluation.pairs import takes_vae
from pyrovae.evaluation.posterior.draws import Posterior, PosteriorDraws
from pyrovae.evaluation.report import report
from pyrovae.evaluation.simulation import Redrawn, check_generative, is_data

if TYPE_CHECKING:
    import xarray as xr


@takes_vae
def to_inference_data(
    model: Program,
    guide: Program,
    x: Any,
    num_samples: int = 1000,
    *,
    num_draws: int = 500,
    num_prior_draws: int | None = None,
    weights: Literal["resampled", "raw"] = "resampled",
    coords: Mapping[str, Sequence[Hashable]] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    log_likelihood: bool = False,
    **options: Unpack[Options],
) -> Any:
    """Return draws from the prior, posterior and predictive distributions of each datum, in the format of ArviZ.

    If the weights are uneven, resampling repeats a few draws many times. ArviZ does not see this, because it treats the
    draws as a chain and does not know the weights. Check ``ess`` and ``pareto_k`` before you trust resampled draws.

    Sites that the guide enumerates are sampled instead of summed out. Sites that only the model enumerates are summed
    out of the weights, and then sampled given the data and the other latents. Sites that ``poutine.reparam`` computes
    from other latents are in the groups of the latents.

    Predictions are conditional on every argument that the model does not observe. If the model computes the
    distribution of another site from an observed argument ``y``, predictions are conditional on ``y`` too. To avoid
    this, compute the distribution from the value that ``pyro.sample("y", ..., obs=y)`` returns.

    Args:
        model: Pyro program of p(x, z), called as ``model(x)``, or ``model(*x)`` if ``x`` is a tuple.
        guide: Pyro program of q(z | x), called with the same arguments.
        x: Data, shape ``(N, *event)``, or a tuple of tensors that share the first dimension.
        num_samples: Draws of the guide per datum, K.
        num_draws: Resampled draws from the posterior per datum, S. With raw weights, all K draws are kept instead.
        num_prior_draws: Draws from the prior; by default ``num_draws``. With 0, the groups ``prior`` and
            ``prior_predictive`` are omitted.
        weights: ``"resampled"`` for S resampled draws of equal weight, or ``"raw"`` for all K draws with their weights.
        coords: Coordinates of dimensions by name, such as ``{"datum": names}``.
        dims: Mapping from the name of a site to names of its dimensions after chain, draw and datum, such as
            ``{"z": ["latent"]}``. By default, dimensions of plates have the names of the plates, and the dimensions of
            the event of ``z`` are named ``z_dim_0``, ``z_dim_1``, and so on.
        log_likelihood: If true, the group ``log_likelihood`` holds log p(x_n | z) at the draws, nats. Do not pass this
            group to ``arviz.loo`` or ``arviz.compare``: each datum has its own latents, which were drawn given the
            datum, so these functions rank models incorrectly. Compare models by :func:`compare`.
        **options: Keyword arguments of :class:`Options`. The result holds a replicate of every datum for each
            of its posterior draws, and the option ``memory`` does not limit the size of the result.

    Returns:
        An ``arviz.InferenceData`` (ArviZ 0.23) or an ``xarray.DataTree`` (ArviZ 1.x) with one chain and the groups

        * ``prior``, ``posterior``: latent sites, dimensions ``(chain, draw, datum, ...)``;
        * ``prior_predictive``, ``posterior_predictive``: draws at the observed sites, with the same dimensions;
        * ``log_likelihood``, on request: log p(x_n | z) of each observed site, dimensions ``(chain, draw, datum)``;
        * ``sample_stats``: ``log_weights``, log p(x, z) - log q(z | x) of the draws, nats, dimensions
          ``(chain, draw, datum)``; ``pareto_k`` and ``ess``, dimension ``datum``; and, with raw weights, ``weights``,
          which are Pareto-smoothed and sum to one over the draws;
        * ``observed_data``: observed values, dimensions ``(datum, ...)``.

    Raises:
        TypeError: For the reasons listed at :func:`log_weights`.
        ValueError: For the reasons listed at :func:`log_weights`; if ``weights`` is neither ``"resampled"`` nor
            ``"raw"``; if a number of draws is too small; if ``dims`` has the wrong number of names for a site; or if
            draws from the prior are requested for a model with a ``pyro.factor``.
        FloatingPointError: If the log-weights of all data are NaN or infinite, for example because the model has
            diverged.

    Source:
        *ArviZ a unified library for exploratory analysis of Bayesian models in Python* (Kumar, Carroll, Hartikainen and
        Martin, 2019); *Using the SIR algorithm to simulate posterior distributions* (Rubin, 1988).

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyrovae as pv
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
        >>> def guide(x):  # the exact posterior
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5).to_event(1))
        >>> x = torch.linspace(-2.0, 2.0, 20).reshape(10, 2)
        >>> data = pv.evaluation.to_inference_data(model, guide, x, num_draws=400, dims={"z": ["latent"]}, seed=0)
        >>> z = data["posterior"]["z"]
        >>> z.dims, z.shape
        (('chain', 'draw', 'datum', 'latent'), (1, 400, 10, 2))
        >>> bool((abs(z.mean(("chain", "draw")) - x.numpy() / 2) < 0.2).all())
        True
    """
    if weights not in ("resampled", "raw"):
        raise ValueError(f"weights must be 'resampled' or 'raw', got {weights!r}")
    num_prior_draws = num_draws if num_prior_draws is None else num_prior_draws
    if num_prior_draws < 0:
        raise ValueError(f"num_prior_draws must be at least 0, got {num_prior_draws}")
    kept = num_samples if weights == "raw" else num_draws
    posterior = Posterior(model, guide, x, num_samples, kept, options)
    groups = _Groups(posterior, raw=weights == "raw", num_prior_draws=num_prior_draws, log_likelihood=log_likelihood)
    table = report(
        posterior.problem,
        groups.columns,
        estimator="posterior draws",
        width=posterior.width,
        dims=groups.dims,
        units="nats",
        num_samples=num_samples,
        num_draws=kept,
        weights=weights,
        settings={"num_prior_draws": num_prior_draws, "log_likelihood": log_likelihood},
    )
    return _assemble(groups.datasets(table, coords or {}, dims or {}))


class _Groups:
    """One table of all groups of an ``InferenceData`` object. Its columns have names such as ``posterior/z``."""

    def __init__(self, posterior: Posterior, *, raw: bool, num_prior_draws: int, log_likelihood: bool) -> None:
        self.posterior, self.raw, self.num_prior_draws = posterior, raw, num_prior_draws
        self.log_likelihood = log_likelihood
        self.dims: dict[str, tuple[str, ...]] = {}

    def columns(self, batch: Batch) -> dict[str, Tensor]:
        """Run the model at posterior and prior draws of a batch; return the columns of all groups by ``group/name``."""
        drawn, kept = self.posterior.draw(batch), self.posterior.num_draws
        size = drawn.log_weights.shape[1]
        everything = torch.arange(kept, device=drawn.log_weights.device).unsqueeze(1).expand(kept, size)
        chosen = everything if self.raw else drawn.resample(kept)
        values = self.posterior.complete(batch, kept, drawn.take(chosen))
        parts: dict[str, list[Tensor]] = {}
        for part, sites in self.posterior.runs(batch, kept, Given, values):
            for site in sites:
                self._add_given(parts, site, first=part.start == 0)
        for _, sites in self.posterior.runs(batch, kept, Redrawn, values):
            for site in filter(_was_observed, sites):
                self._add_value(parts, "posterior_predictive", site, site["value"])
        for _, sites in self.posterior.runs(batch, self.num_prior_draws, Redrawn):
            check_generative(sites, "Pass num_prior_draws=0 to omit the groups of the prior")
            for site in (site for site in sites if not site["is_observed"] or is_computed_latent(site)):
                self._add_value(parts, "prior_predictive" if _was_observed(site) else "prior", site, site["value"])
        found = {name: torch.cat(each) for name, each in parts.items()}
        found |= self._statistics(drawn, chosen)
        axes = {name: self.dims[name].index("datum") for name in found}
        return {name: values.narrow(axes[name], 0, batch.kept) for name, values in found.items()}

    def _statistics(self, drawn: PosteriorDraws, chosen: Tensor) -> dict[str, Tensor]:
        """Return the columns of the group ``sample_stats``: weights of the chosen draws, k-hat and ESS."""
        found = {"log_weights": drawn.log_weights.take_along_dim(chosen, 0)}
        if self.raw:
            found["weights"] = drawn.smoothed.exp()
        found |= {"pareto_k": drawn.pareto_k, "ess": drawn.ess}
        for name, values in found.items():
            self.dims[f"sample_stats/{name}"] = ("draw", "datum") if values.ndim == 2 else ("datum",)
        return {f"sample_stats/{name}": values for name, values in found.items()}

    def _add_given(self, parts: dict[str, list[Tensor]], site: Site, *, first: bool) -> None:
        """Add the columns of a site to ``parts``. The site comes from a run of the model at posterior draws.

        For a latent site, its values are added. For an observed site, its log-probabilities are added if they were
        requested, and its observed values are added if ``first`` is true.
        """
        if not site["is_observed"] or is_computed_latent(site):
            self._add_value(parts, "posterior", site, site["value"])
        elif not is_deterministic(site):
            if self.log_likelihood:
                problem = self.posterior.problem
                draws_dim = -problem.nesting - 1 if problem.vectorize else None
                per_datum = sum_per_datum([(site, masked_score(site))], draws_dim, problem.plate.dim or -1)
                self.dims[f"log_likelihood/{site['name']}"] = ("draw", "datum")
                parts.setdefault(f"log_likelihood/{site['name']}", []).append(per_datum)
            if is_data(site) and first:
                observed, names = arranged(site, site["value"], self.posterior.problem.plate.name)
                self.dims[f"observed_data/{site['name']}"] = ("datum", *_own_dims(site, names))
                parts[f"observed_data/{site['name']}"] = [observed[0]]

    def _add_value(self, parts: dict[str, list[Tensor]], group: str, site: Site, value: Tensor) -> None:
        values, names = arranged(site, value, self.posterior.problem.plate.name)
        draw = "prior_draw" if group.startswith("prior") else "draw"
        self.dims[f"{group}/{site['name']}"] = (draw, "datum", *_own_dims(site, names))
        parts.setdefault(f"{group}/{site['name']}", []).append(values)

    def datasets(
        self, table: "xr.Dataset", coords: Mapping[str, Sequence[Hashable]], dims: Mapping[str, Sequence[str]]
    ) -> "dict[str, xr.Dataset]":
        """Divide ``table`` into one dataset for each group of InferenceData, and return the datasets by group.

        The dimensions of each dataset get names and coordinates. Each dataset gets the attributes of the table.
        """
        import xarray as xr

        of_sites = _names_of_dims(table)
        names = {**of_sites, **{site: list(given) for site, given in dims.items()}}
        for site, given in dims.items():
            if len(given) != len(of_sites.get(site, ())):
                raise ValueError(
                    f"dims holds the names {list(given)} for site {site!r}, but the sites have these dimensions in "
                    f"addition to chain, draw and datum: {of_sites}. Give one name for each dimension of the site."
                )
        variables: dict[str, dict[str, Any]] = {}
        for key, column in table.items():
            group, name = str(key).split("/", 1)
            rest = [] if group in _WITHOUT_EVENTS else names[name]
            draws = column.dims[0] != "datum"
            named = (*(["chain", "draw"] if draws else []), "datum", *rest)
            values = column.values[np.newaxis] if draws else column.values
            variables.setdefault(group, {})[name] = xr.Variable(named, values)
        datasets = {}
        for group, of_group in variables.items():
            dataset = xr.Dataset(of_group, attrs=table.attrs)
            sizes = dataset.sizes.items()
            datasets[group] = dataset.assign_coords({dim: coords.get(str(dim), np.arange(n)) for dim, n in sizes})
        return datasets


def _own_dims(site: Site, names: Sequence[str]) -> list[str]:
    """Return ``names`` with the site's name and a slash in front, so that no two sites share a dimension."""
    return [f"{site['name']}/{name}" for name in names]


def _names_of_dims(table: "xr.Dataset") -> dict[str, list[str]]:
    """Return for each site the names of its dimensions, except for those of draws and data."""
    found = {}
    for key, column in table.items():
        group, site = str(key).split("/", 1)
        if group not in _WITHOUT_EVENTS:
            dims = [str(dim) for dim in column.dims if dim not in ("draw", "prior_draw", "datum")]
            found[site] = [dim.removeprefix(f"{site}/") for dim in dims]
    return found


def _was_observed(site: Site) -> bool:
    return bool(site["infer"].get("was_observed"))


def _assemble(groups: "dict[str, xr.Dataset]") -> Any:
    """Join the groups in an ``arviz.InferenceData`` (ArviZ 0.23) or an ``xarray.DataTree`` (ArviZ 1.x)."""
    ordered = {name: groups[name] for name in _ORDER if name in groups}
    if int(version("arviz").split(".")[0]) >= 1:
        import xarray as xr

        return xr.DataTree.from_dict(ordered)
    import arviz

    data: Any = arviz.InferenceData
    return data(**ordered)


_WITHOUT_EVENTS = (
    "sample_stats",
    "log_likelihood",
)  # the columns of these groups have only the dimensions draw and datum
_ORDER = (
    "posterior",
    "posterior_predictive",
    "log_likelihood",
    "sample_stats",
    "prior",
    "prior_predictive",
    "observed_data",
)
