r"""What a program predicts: draws from its posterior, replicated data, and whether the data look like them.

Draws from :math:`p(z \mid x_n)` come from those of the guide by sampling importance resampling, each chosen with the
probability of its Pareto-smoothed weight. With replicates :math:`x_n' \sim p(x \mid z)`, a statistic T has the p-value

.. math:: p_n = \Pr\big(T(x_n') \ge T(x_n) \mid x_n\big).
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import torch
import xarray as xr
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyrovae._waist.draws import Given, draw_latents
from pyrovae._waist.sites import Program, Site
from pyrovae._waist.weights import importance_weights
from pyrovae.arguments import Data
from pyrovae.evaluation import bounds
from pyrovae.evaluation.diagnostics.psis import psis
from pyrovae.evaluation.problem import Piece, Pieces
from pyrovae.evaluation.provenance import attributes, check_finite
from pyrovae.evaluation.simulation import Redrawn, observed_argument
from pyrovae.isolation import fresh_seed, isolated


def posterior_predictive_check(
    model: Program,
    guide: Program,
    x: Data,
    statistic: Callable[..., Tensor],
    num_samples: int = 1000,
    *,
    num_draws: int = 500,
    seed: int | None = None,
    plate: str | None = None,
    vectorize: bool = True,
    memory: int | None = None,
) -> xr.Dataset:
    r"""Compares a statistic of each datum with that of data replicated from its posterior.

    A p-value near 0 or 1 says that the model does not make data with such a statistic. As the posterior has seen the
    datum, p-values of a true model are not uniform but lie nearer to 1/2. Replicates are drawn given the other
    arguments, and given an observed argument where a later site reads it in place of the site's value.

    Args:
        model: Pyro program of p(x, z), called as ``model(x)``, or ``model(*x)`` if ``x`` is a tuple.
        guide: Pyro program of q(z | x), called likewise.
        x: Data, shape ``(N, *event)``, or a tuple of tensors that share the first dimension.
        statistic: Called like the model, with data or with replicates in place of the observed arguments, any number
            of them at once: tensors ``(n, *event)`` to one number per datum, shape ``(n,)``.
        num_samples: Draws of the guide per datum, K.
        num_draws: Draws from the posterior per datum, S, each with one replicate.
        seed: Seed of the draws; by default a new one from the operating system.
        plate: Name of the data plate; by default the outermost plate that all latent sites share.
        vectorize: Whether many draws are made in one run; see :func:`log_weights`.
        memory: Bytes that the tensors of one run may take; see :func:`log_weights`.

    Returns:
        Dataset with ``observed``, over ``datum``, and ``replicated``, over ``draw`` and ``datum``: the statistic's
        values. ``p_value``, the share of replicates whose statistic is at least that of the datum, and ``pareto_k`` and
        ``ess`` of the weights, over ``datum``.

    Raises:
        TypeError: As :func:`log_weights`.
        ValueError: As :func:`log_weights`; if the statistic does not give a number per datum; if the program has
            several arguments and observes something that is none of them.

    Source:
        *Posterior Predictive Assessment of Model Fitness via Realized Discrepancies* (Gelman, Meng and Stern, 1996).

    Example:
        >>> import torch, pyrovae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Normal(pv.networks.mlp(2, 4)),
        ...     pv.posteriors.DiagonalNormal(pv.networks.mlp(4, 2 * 2)),
        ... )
        >>> check = pv.evaluation.posterior_predictive_check(
        ...     vae.model, vae.guide, torch.randn(10, 4), lambda x: x.amax(-1), num_draws=100, seed=0
        ... )
        >>> check.replicated.shape, bool((check.p_value <= 1).all())
        ((100, 10), True)
    """
    start, seed = time.perf_counter(), fresh_seed() if seed is None else seed
    parts: dict[str, list[np.ndarray]] = {"observed": [], "replicated": [], "pareto_k": [], "ess": []}
    with isolated(model, guide, seed=seed):
        posterior = Posterior(model, guide, x, num_samples, num_draws, plate=plate, vectorize=vectorize, memory=memory)
        for chunk in posterior:
            observed, replicated = _statistics(statistic, posterior, chunk)
            found = {"observed": observed, "replicated": replicated, "pareto_k": chunk.pareto_k, "ess": chunk.ess}
            for name, values in found.items():
                parts[name].append(values[..., : chunk.piece.kept].cpu().numpy())
    columns = {name: np.concatenate(arrays, axis=-1) for name, arrays in parts.items()}
    columns["p_value"] = (columns["replicated"] >= columns["observed"]).mean(0)
    return xr.Dataset(
        {name: (("draw", "datum")[-values.ndim :], values) for name, values in columns.items()},
        coords={"draw": np.arange(num_draws), "datum": np.arange(posterior.pieces.size)},
        attrs=posterior.attributes(seed=seed, start=start),
    )


@dataclass(frozen=True)
class Chunk:
    """Importance draws of some data.

    Attributes:
        piece: Which data.
        args: The program's arguments.
        values: Of the guide's latent sites, by name, with the K draws as first dimension.
        data_dims: Which dimension of the values are the data, counted from the right.
        log_weights: Shape ``(num_samples, n)``, nats.
        smoothed: Pareto-smoothed and normalized, likewise.
        pareto_k: Shape ``(n,)``.
    """

    piece: Piece
    args: list[Tensor]
    values: dict[str, Tensor]
    data_dims: dict[str, int]
    log_weights: Tensor
    smoothed: Tensor
    pareto_k: Tensor

    @property
    def ess(self) -> Tensor:
        """Kish's effective sample size, shape ``(n,)``."""
        return bounds.effective_sample_size(self.log_weights.double())

    def resample(self, num_draws: int) -> Tensor:
        """Chooses draws of each datum with the probabilities of their smoothed weights, shape ``(num_draws, n)``."""
        return torch.multinomial(self.smoothed.exp().T, num_draws, replacement=True).T.to(self.log_weights.device)

    def take(self, chosen: Tensor) -> dict[str, Tensor]:
        """The values of chosen draws, another choice for each datum."""
        taken = {}
        for name, value in self.values.items():
            shape = [1] * value.ndim
            shape[0], shape[self.data_dims[name]] = chosen.shape
            taken[name] = torch.take_along_dim(value, chosen.reshape(shape), dim=0)
        return taken


class Posterior:
    """Importance draws of consecutive data, and runs of the model on them; to be made and iterated in isolation.

    Enumerated sites are drawn. ``num_draws`` is how many draws from the posterior there are to be.
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        x: Data,
        num_samples: int,
        num_draws: int,
        *,
        plate: str | None,
        vectorize: bool,
        memory: int | None,
    ) -> None:
        if num_samples < 1 or num_draws < 1:
            raise ValueError(
                f"num_samples, draws of the guide, and num_draws, draws from the posterior, must be at least 1, got "
                f"{num_samples} and {num_draws}"
            )
        self.pieces = Pieces(model, guide, x, plate=plate, vectorize=vectorize, memory=memory)
        self.model, self.guide = _Drawn()(model), _Drawn()(guide)
        self.num_samples, self.num_draws = num_samples, num_draws
        affordable = (
            self.pieces.affordable if self.pieces.cuttable else self.pieces.affordable // self.pieces.plate.size
        )
        most = max(num_samples, num_draws)
        self.draws = min(most, max(1, affordable)) if vectorize else 1
        self.width = (
            max(1, affordable // self.draws) if vectorize else max(1, min(affordable, self.pieces.memory // (8 * most)))
        )

    def attributes(self, **others: Any) -> dict[str, Any]:
        """What a result says of itself."""
        draws = {"num_samples": self.num_samples, "num_draws": self.num_draws}
        return attributes(self.pieces, **{"binarization": "not stated", **draws, **others})

    def __iter__(self) -> Iterator[Chunk]:
        with pyro.validation_enabled(False):
            for piece in self.pieces.cut(self.width):
                yield self._draw(piece)

    def runs(
        self, chunk: Chunk, num_draws: int, handler: type[Given], values: Mapping[str, Tensor] | None = None
    ) -> Iterator[tuple[slice, list[Site]]]:
        """Runs the model under a handler, on latents' values or draws of its own; yields the data plate's sites."""
        for start in range(0, num_draws, self.draws):
            part = slice(start, min(start + self.draws, num_draws))
            now = part if self.pieces.vectorize else start
            given = {name: value[now] for name, value in (values or {}).items()}
            program = handler({**given, **(chunk.piece.subsample or {})})(self.model)
            if self.pieces.vectorize:
                program = pyro.plate("_pyrovae_draws", part.stop - start, dim=-self.pieces.nesting - 1)(program)
            nodes: Any = poutine.trace(program).get_trace(*chunk.args).nodes.values()
            sites = [node for node in nodes if node["type"] == "sample" and not site_is_subsample(node)]
            yield part, [site for site in sites if self.pieces.plate.name in (p.name for p in site["cond_indep_stack"])]

    def _draw(self, piece: Piece) -> Chunk:
        args, subsample = self.pieces.arguments(piece), piece.subsample or {}
        nesting = self.pieces.nesting if self.pieces.vectorize else None
        runs, log_weights = [], []
        for start in range(0, self.num_samples, self.draws):
            count = min(self.draws, self.num_samples - start)
            sites = draw_latents(self.guide, args, count, nesting=nesting, values=subsample)
            values = {name: site["value"] for name, site in sites.items()}
            weights = importance_weights(
                self.model, self.guide, args, count, nesting=nesting, plate=self.pieces.plate_name, values=values
            )
            runs.append({name: site for name, site in sites.items() if not site_is_subsample(site)})
            log_weights.append(weights.log_weights)
        together = torch.cat(log_weights)
        check_finite(together)
        join = torch.cat if self.pieces.vectorize else torch.stack
        values = {name: join([_full(run[name]) for run in runs]) for name in runs[0]}
        assert self.pieces.plate.dim is not None
        data_dims = {name: self.pieces.plate.dim - len(site["fn"].event_shape) for name, site in runs[0].items()}
        return Chunk(piece, args, values, data_dims, together, *psis(together))


def arranged(site: Site, value: Tensor, plate: str, event_shape: torch.Size | None = None) -> tuple[Tensor, list[str]]:
    """A site's value, shape ``(draws, n, *rest)``, and the names of the remaining dimensions.

    A log-probability is one with an empty event shape. ``plate`` is the name of the data plate. The names are those of
    the plates inside the data plate, by name, and of the event, as ArviZ names them.
    """
    batch_shape, event_shape = (
        site["fn"].batch_shape,
        site["fn"].event_shape if event_shape is None else event_shape,
    )
    value = value.expand(*batch_shape, *event_shape)
    plates = {frame.dim: frame.name for frame in site["cond_indep_stack"] if frame.vectorized}
    names = [plates.get(dim) for dim in range(-len(batch_shape), 0)]
    if "_pyrovae_draws" not in names:
        value, names = value.unsqueeze(0), ["_pyrovae_draws", *names]
    front = [names.index("_pyrovae_draws"), names.index(plate)]
    value = value.movedim(front, [0, 1])
    inner = [name for i, name in enumerate(names) if i not in front]
    kept = [size for size, name in zip(value.shape[2:], inner, strict=False) if name]  # no plate, no dimension
    value = value.reshape(*value.shape[:2], *kept, *event_shape)
    return value, [name for name in inner if name] + [f"{site['name']}_dim_{i}" for i in range(len(event_shape))]


class _Drawn(Messenger):
    """Has enumerated sites drawn instead."""

    def _pyro_sample(self, msg: Any) -> None:
        msg["infer"] = {**msg["infer"], "enumerate": None}


def _full(site: Site) -> Tensor:
    """A latent site's value, one for each draw and datum."""
    return site["value"].expand(*site["fn"].batch_shape, *site["fn"].event_shape)


def _statistics(statistic: Callable[..., Tensor], posterior: Posterior, chunk: Chunk) -> tuple[Tensor, Tensor]:
    """The statistic of some data, shape ``(n,)``, and of their replicates, shape ``(num_draws, n)``."""
    values = chunk.take(chunk.resample(posterior.num_draws))
    observed: list[Tensor] = []
    replicated: list[Tensor] = []
    for _, sites in posterior.runs(chunk, posterior.num_draws, Redrawn, values):
        data = [site for site in sites if site["infer"].get("was_observed")]
        if not data:
            raise ValueError(
                "the model observes no data that could be replicated; pass them with pyro.sample(..., obs=x)"
            )
        if not observed:
            shown = [arranged(site, site["infer"]["obs"], posterior.pieces.plate.name)[0][:1] for site in data]
            observed.append(_call(statistic, _replaced(chunk.args, data, shown)))
        drawn = [arranged(site, site["value"], posterior.pieces.plate.name)[0] for site in data]
        replicated.append(_call(statistic, _replaced(chunk.args, data, drawn)).reshape(len(drawn[0]), -1))
    return observed[0], torch.cat(replicated)


def _replaced(args: Sequence[Tensor], sites: Sequence[Site], values: Sequence[Tensor]) -> list[Tensor]:
    """The arguments, with sites' values ``(draws, n, *event)`` in place of what they observe; all draws in a row."""
    if len(args) == len(sites) == 1:
        return [values[0].flatten(0, 1)]
    replaced = [arg.expand(len(values[0]), *arg.shape).flatten(0, 1) for arg in args]
    for site, value in zip(sites, values, strict=True):
        position = observed_argument(site["name"], site["infer"]["obs"], args)
        replaced[position] = value.reshape(replaced[position].shape)
    return replaced


def _call(statistic: Callable[..., Tensor], args: Sequence[Tensor]) -> Tensor:
    found = statistic(*args)
    if not isinstance(found, Tensor) or found.shape != args[0].shape[:1]:
        what = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise ValueError(
            f"the statistic must give one number per datum, a tensor of shape ({len(args[0])},) for data of shape "
            f"{tuple(args[0].shape)}, got {what}; sum or average over all dimensions but the first"
        )
    return found
