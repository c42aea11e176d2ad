r"""A program's prior, posterior and predictions as an ArviZ object, for its tables and figures and for a file.

The posterior's draws are those of the guide, either resampled with the probabilities of their Pareto-smoothed weights,
or as they are with the normalized weights beside,

.. math:: \mathrm{E}[f(z) \mid x_n] \approx \frac{1}{S} \sum_s f(z_n^{(s)}) \quad \text{or} \quad
    \sum_k \bar w_n^{(k)} f(z_n^{(k)}).
"""

import time
from collections.abc import Hashable, Mapping, Sequence
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyrovae._waist.draws import Given
from pyrovae._waist.sites import Program, Site, score
from pyrovae.arguments import Data
from pyrovae.evaluation.posterior.predictive import Chunk, Posterior, arranged
from pyrovae.evaluation.simulation import Redrawn, check_generative, is_data
from pyrovae.isolation import fresh_seed, isolated


def to_inference_data(
    model: Program,
    guide: Program,
    x: Data,
    num_samples: int = 1000,
    *,
    num_draws: int = 500,
    num_prior_draws: int | None = None,
    weights: Literal["resampled", "raw"] = "resampled",
    coords: Mapping[str, Sequence[Hashable]] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    seed: int | None = None,
    plate: str | None = None,
    binarization: str = "not stated",
    vectorize: bool = True,
    memory: int | None = None,
) -> Any:
    """Draws from prior, posterior and predictive distributions of each datum, as ArviZ takes them.

    Resampled draws repeat where weights are uneven: look at ``ess`` and ``pareto_k`` before trusting them, since ArviZ
    takes the draws for a chain and cannot know. Enumerated sites are drawn, not summed out. Predictions are given the
    program's other arguments, and given an observed argument where a later site reads it in place of the site's value.

    Args:
        model: Pyro program of p(x, z), called as ``model(x)``, or ``model(*x)`` if ``x`` is a tuple.
        guide: Pyro program of q(z | x), called likewise.
        x: Data, shape ``(N, *event)``, or a tuple of tensors that share the first dimension.
        num_samples: Draws of the guide per datum, K.
        num_draws: Resampled draws from the posterior per datum, S; with raw weights all K draws are kept.
        num_prior_draws: Draws from the prior; by default ``num_draws``. With 0 there are no groups of the prior.
        weights: ``"resampled"`` or ``"raw"``.
        coords: Coordinates of dimensions by name, such as ``{"datum": names}``.
        dims: Names of a site's dimensions after chain, draw and datum, by site, such as ``{"z": ["latent"]}``; by
            default the names of its plates, then ``z_dim_0``, ``z_dim_1``, ... for its event.
        seed: Seed of the draws; by default a new one from the operating system.
        plate: Name of the data plate; by default the outermost plate that all latent sites share.
        binarization: How the data were binarized, kept as an attribute.
        vectorize: Whether many draws are made in one run; see :func:`log_weights`.
        memory: Bytes that the tensors of one run may take; see :func:`log_weights`. The result itself holds
            ``num_draws`` replicates of all data.

    Returns:
        An ``arviz.InferenceData`` with ArviZ 0.23, an ``xarray.DataTree`` with ArviZ 1.x, of one chain:

        * ``prior``, ``posterior``: latent sites, dimensions ``(chain, draw, datum, ...)``;
        * ``prior_predictive``, ``posterior_predictive``: draws at the observed sites, likewise;
        * ``log_likelihood``: log p(x_n | z) of each observed site, dimensions ``(chain, draw, datum)``, nats;
        * ``sample_stats``: ``log_weights``, the draws' log p(x, z) - log q(z | x), likewise, nats; with raw weights
          ``weights`` too, Pareto-smoothed, which sum to one over the draws; ``pareto_k`` and ``ess``, over ``datum``;
        * ``observed_data``: what was observed, dimensions ``(datum, ...)``.

    Raises:
        TypeError: As :func:`log_weights`.
        ValueError: As :func:`log_weights`; if ``weights`` is neither of the two, or ``dims`` do not fit a site; if
            draws from the prior are wanted of a model with a ``pyro.factor``.
        FloatingPointError: If a log-weight is NaN or infinite: the model has diverged.

    Source:
        *ArviZ a unified library for exploratory analysis of Bayesian models in Python* (Kumar, Carroll, Hartikainen and
        Martin, 2019); *Using the SIR algorithm to simulate posterior distributions* (Rubin, 1988).

    Example:
        >>> import torch, pyrovae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Normal(pv.networks.mlp(2, 4)),
        ...     pv.posteriors.DiagonalNormal(pv.networks.mlp(4, 2 * 2)),
        ... )
        >>> data = pv.evaluation.to_inference_data(
        ...     vae.model, vae.guide, torch.zeros(10, 4), num_draws=50, dims={"z": ["latent"]}, seed=0
        ... )
        >>> data["posterior"]["z"].dims, data["posterior"]["z"].shape
        (('chain', 'draw', 'datum', 'latent'), (1, 50, 10, 2))
    """
    if weights not in ("resampled", "raw"):
        raise ValueError(f"weights must be 'resampled' or 'raw', got {weights!r}")
    num_prior_draws = num_draws if num_prior_draws is None else num_prior_draws
    if num_prior_draws < 0:
        raise ValueError(f"num_prior_draws must be at least 0, got {num_prior_draws}")
    start, seed = time.perf_counter(), fresh_seed() if seed is None else seed
    kept = num_samples if weights == "raw" else num_draws
    with isolated(model, guide, seed=seed):
        posterior = Posterior(model, guide, x, num_samples, kept, plate=plate, vectorize=vectorize, memory=memory)
        groups = _Groups(posterior)
        for chunk in posterior:
            groups.add(chunk, weights == "raw", num_prior_draws)
    attrs = posterior.attributes(seed=seed, start=start, binarization=binarization, weights=weights)
    return _assemble(groups.datasets(coords or {}, dims or {}, attrs))


class _Groups:
    """The groups' arrays, filled in chunk by chunk: kept apart, the chunks would fragment the heap."""

    def __init__(self, posterior: Posterior) -> None:
        self.posterior, self.plate, self.done = posterior, posterior.pieces.plate.name, 0
        self.arrays: dict[str, dict[str, np.ndarray]] = {}
        self.names: dict[str, list[str]] = {}  # of a site's dimensions after chain, draw and datum

    def add(self, chunk: Chunk, raw: bool, num_prior_draws: int) -> None:
        """Runs the model on a chunk's draws, and on draws from its prior, and writes down what comes."""
        kept, size = self.posterior.num_draws, chunk.log_weights.shape[1]
        everything = torch.arange(kept, device=chunk.log_weights.device).unsqueeze(1).expand(kept, size)
        chosen = everything if raw else chunk.resample(kept)
        values = chunk.take(chosen)
        for part, sites in self.posterior.runs(chunk, kept, Given, values):
            for site in sites:
                self._write_given(site, chunk, kept, part)
        for part, sites in self.posterior.runs(chunk, kept, Redrawn, values):
            for site in filter(_was_observed, sites):
                self._write_value("posterior_predictive", site, site["value"], chunk, kept, part)
        for part, sites in self.posterior.runs(chunk, num_prior_draws, Redrawn):
            check_generative(sites, "go without the groups of the prior, num_prior_draws=0")
            for site in (site for site in sites if not site["is_observed"]):
                group = "prior_predictive" if _was_observed(site) else "prior"
                self._write_value(group, site, site["value"], chunk, num_prior_draws, part)
        of_draws = {"log_weights": chunk.log_weights.take_along_dim(chosen, 0)}
        if raw:
            of_draws["weights"] = chunk.smoothed.exp()
        for name, column in of_draws.items():
            self._write("sample_stats", name, column, chunk, kept, slice(0, kept))
        for name, column in {"pareto_k": chunk.pareto_k, "ess": chunk.ess}.items():
            self._write("sample_stats", name, column, chunk)
        self.done += chunk.piece.kept

    def datasets(
        self, coords: Mapping[str, Sequence[Hashable]], dims: Mapping[str, Sequence[str]], attrs: dict[str, Any]
    ) -> dict[str, xr.Dataset]:
        """The groups with names, coordinates and attributes."""
        names = {**self.names, **{site: list(given) for site, given in dims.items()}}
        for site, given in dims.items():
            if len(given) != len(self.names.get(site, ())):
                raise ValueError(
                    f"dims names {list(given)} for {site!r}, but the sites have, after chain, draw and datum, the "
                    f"dimensions {self.names}; name as many"
                )
        datasets = {}
        for group, arrays in self.arrays.items():
            variables = {}
            for name, array in arrays.items():
                rest = names[name] if group not in ("sample_stats", "log_likelihood") else []
                draws = array.ndim > 1 + len(rest)
                variables[name] = xr.Variable(
                    (*(["chain", "draw"] if draws else []), "datum", *rest), array[np.newaxis] if draws else array
                )
            dataset = xr.Dataset(variables, attrs=attrs)
            sizes = dataset.sizes.items()
            datasets[group] = dataset.assign_coords({dim: coords.get(str(dim), np.arange(n)) for dim, n in sizes})
        return datasets

    def _write_given(self, site: Site, chunk: Chunk, num_draws: int, part: slice) -> None:
        """Writes down a latent's value, or an observed site's log-probability and, once, its value."""
        if not site["is_observed"]:
            self._write_value("posterior", site, site["value"], chunk, num_draws, part)
        elif not site["infer"].get("_deterministic"):
            log_prob = scale_and_mask(score(site), 1.0, site["mask"])
            terms = arranged(site, log_prob, self.plate, torch.Size())[0]
            per_datum = terms.reshape(*terms.shape[:2], -1).sum(-1)
            self._write("log_likelihood", site["name"], per_datum, chunk, num_draws, part)
            if is_data(site) and part.start == 0:
                observed, self.names[site["name"]] = arranged(site, site["value"], self.plate)
                self._write("observed_data", site["name"], observed[0], chunk)

    def _write_value(self, group: str, site: Site, value: Tensor, chunk: Chunk, num_draws: int, part: slice) -> None:
        values, self.names[site["name"]] = arranged(site, value, self.plate)
        self._write(group, site["name"], values, chunk, num_draws, part)

    def _write(
        self, group: str, name: str, values: Tensor, chunk: Chunk, num_draws: int = 0, part: slice | None = None
    ) -> None:
        """Writes values ``(draws, n, *rest)``, or ``(n, *rest)`` where there is no part of draws, to their place."""
        rest = values.shape[1 if part is None else 2 :]
        shape = (*([] if part is None else [num_draws]), self.posterior.pieces.size, *rest)
        arrays, dtype = self.arrays.setdefault(group, {}), values[:0].cpu().numpy().dtype
        if name not in arrays:
            arrays[name] = np.empty(shape, dtype)
        data = slice(self.done, self.done + chunk.piece.kept)
        if part is None:
            arrays[name][data] = values[: chunk.piece.kept].cpu().numpy()
        else:
            arrays[name][part, data] = values[:, : chunk.piece.kept].cpu().numpy()


def _was_observed(site: Site) -> bool:
    return bool(site["infer"].get("was_observed"))


def _assemble(groups: dict[str, xr.Dataset]) -> Any:
    """The groups as one object of the ArviZ that is there."""
    ordered = {name: groups[name] for name in _ORDER if name in groups}
    if int(version("arviz").split(".")[0]) >= 1:
        return xr.DataTree.from_dict(ordered)
    import arviz

    data: Any = arviz.InferenceData
    return data(**ordered)


_ORDER = (
    "posterior",
    "posterior_predictive",
    "log_likelihood",
    "sample_stats",
    "prior",
    "prior_predictive",
    "observed_data",
)
