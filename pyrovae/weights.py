r"""Importance log-weights of a Pyro program: the waist through which every bound and every diagnostic passes.

For data :math:`x_n` and draws :math:`z_n^{(k)} \sim q(z \mid x_n)`,

.. math:: \log w_n^{(k)} = \log p(x_n, z_n^{(k)}) - \log q(z_n^{(k)} \mid x_n),

one number per draw and per datum. The draws are a plate outside all plates of the program; the log-probability of every
site is summed over all dimensions but the draws and the data. Masks are kept. A discrete site that model or guide
enumerate, :math:`y`, is summed out exactly, by Pyro's variable elimination,

.. math:: \log w_n^{(k)} = \log \sum_y p(x_n, y, z_{n, y}^{(k)}) / q(z_{n, y}^{(k)} \mid x_n, y),

whether its posterior is part of the guide or not: :math:`q(y \mid x)` has no influence on it. Scales are not multiplied
in: a plate's subsampling and :func:`pyro.poutine.scale` weigh a training loss, and are returned beside the weights.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyro
import torch
from opt_einsum import get_symbol
from pyro.distributions.util import scale_and_mask
from pyro.ops import packed
from pyro.ops.contract import contract_to_tensor
from pyro.ops.rings import LogRing
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyrovae.sites import (
    Program,
    Site,
    check_same_latents,
    is_enumerated,
    outermost_plate,
    score,
    shared_plates,
    site_plates,
    trace,
)


class Weights(NamedTuple):
    """Log-weights and what they came with.

    Attributes:
        log_weights: Shape ``(num_samples, N)``, nats.
        scale: What a datum's bound counts in a training loss: a number, or a tensor that broadcasts to ``(N,)``.
        plate: The data plate.
        nesting: Depth of the program's own plates.
        outside: Names of the observed sites outside the data plate; their log-probability is in no datum's weight.
        unreparameterized: Names of the guide's latent sites whose draws carry no gradient.
    """

    log_weights: Tensor
    scale: float | Tensor
    plate: CondIndepStackFrame
    nesting: int
    outside: tuple[str, ...]
    unreparameterized: tuple[str, ...]


def importance_weights(
    model: Program,
    guide: Program,
    args: Sequence[Any],
    num_samples: int = 1,
    *,
    kwargs: Mapping[str, Any] | None = None,
    nesting: int | None = None,
    plate: str | None = None,
    tempered: bool = False,
    subsample: Mapping[str, Tensor] | None = None,
) -> Weights:
    """Runs guide and model, and returns their log-weights, differentiable and open to Pyro's handlers.

    Args:
        model: Pyro program of p(x, z).
        guide: Pyro program of q(z | x).
        args: Arguments of both, the data among them.
        num_samples: Draws of z per datum.
        kwargs: Keyword arguments of both.
        nesting: Depth of the program's own plates. All draws are then made in one run, along the next dimension to the
            left. By default the program is run once for every draw.
        plate: Name of the data plate; by default the outermost plate that all latent sites share.
        tempered: Whether the scales of single sites (annealing) multiply their log-probabilities. The data plate's own
            factor, and a factor common to all sites, never do: they are the returned ``scale``.
        subsample: Indices of the data that subsampling plates are to take, by the plates' names. A plate that is not
            named chooses once, for all draws.

    Raises:
        ValueError: If there is no draw to make, model and guide disagree about their latent sites, there is no data
            plate, a latent site lies outside it, or a value lies outside the support of its distribution.
    """
    if num_samples < 1:
        raise ValueError(f"the number of draws per datum must be at least 1, got {num_samples}")
    same = _SameSubsample(subsample or {})
    model, guide = same(model), same(guide)
    if nesting is None:
        runs = [_run(model, guide, args, kwargs or {}, plate, tempered) for _ in range(num_samples)]
        return runs[0]._replace(log_weights=torch.cat([run.log_weights for run in runs]))
    draws = pyro.plate("_pyrovae_draws", num_samples, dim=-nesting - 1)
    weights = _run(draws(model), draws(guide), args, kwargs or {}, plate, tempered, draws_dim=-nesting - 1)
    return weights._replace(log_weights=weights.log_weights.expand(num_samples, -1), nesting=nesting)


class _SameSubsample(Messenger):
    """Makes subsampling plates take the same data in every run: those given, else those that the first run chose."""

    def __init__(self, indices: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.indices = dict(indices)

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) and msg["name"] in self.indices:
            msg["value"] = self.indices[msg["name"]]

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            self.indices[msg["name"]] = msg["value"]


def _run(
    model: Program,
    guide: Program,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    plate: str | None,
    tempered: bool,
    draws_dim: int | None = None,
) -> Weights:
    """Runs guide and model, and sums their sites' log-probabilities per datum."""
    model_sites, guide_sites = trace(model, guide, args, kwargs, depth=None if draws_dim is None else -draws_dim)
    if draws_dim is None and any(map(is_enumerated, model_sites + guide_sites)):
        depth = -min((frame.dim for site in model_sites + guide_sites for frame in site_plates(site)), default=0)
        model_sites, guide_sites = trace(model, guide, args, kwargs, depth=depth)
    check_same_latents(model_sites, guide_sites)
    sites = model_sites + guide_sites
    data = _data_plate(sites, plate)
    inside = [data in site["cond_indep_stack"] for site in sites]
    own_scales = [site["scale"] * data.size / data.full_size for site in sites]
    if not tempered:
        _check_complete(sites, data)
    common = _common([scale for scale, is_inside in zip(own_scales, inside, strict=True) if is_inside])
    terms = []
    for i, site in enumerate(sites):
        if inside[i] and not (i >= len(model_sites) and is_enumerated(site)):
            temper = own_scales[i] if tempered and common is None else 1.0
            term = scale_and_mask(score(site), temper, site["mask"])
            terms.append((site, term if i < len(model_sites) else -term))
    return Weights(
        _add_up(terms, draws_dim, data.dim).expand(-1, data.size),
        scale=data.full_size / data.size * (1.0 if common is None else _of_data(common, data.dim)),
        plate=data,
        nesting=-min(frame.dim for site in sites for frame in site_plates(site)),
        outside=tuple(site["name"] for site, is_inside in zip(sites, inside, strict=True) if not is_inside),
        unreparameterized=tuple(
            site["name"] for site in guide_sites if not (site["is_observed"] or site["fn"].has_rsample)
        ),
    )


def _data_plate(sites: list[Site], name: str | None) -> Any:
    """The plate called so, or the outermost one that all latent sites share."""
    latents = [site for site in sites if not site["is_observed"]]
    if name is None:
        shared = shared_plates(latents or sites)
        data = shared[0] if shared else outermost_plate([site for site in sites if site["is_observed"]])
    else:
        plates = {frame.name: frame for site in sites for frame in site_plates(site)}
        if name not in plates:
            raise ValueError(f"there is no vectorized plate {name!r} in the program, which has {sorted(plates)}")
        data = plates[name]
    for site in latents:
        if data not in site["cond_indep_stack"]:
            raise ValueError(
                f"latent site {site['name']!r} lies outside the data plate {data.name!r}, so the data are not "
                f"independent and no datum has a weight of its own; average over draws of it "
                f"(pyrovae.evaluation.evaluate_globals), condition on it "
                f"(pyro.condition(model, data={{{site['name']!r}: value}}), and leave it out of the guide), "
                f"or name another plate with plate=; if it has a plate, give that the same name, size and dim in model "
                f"and guide"
            )
    return data


def _check_complete(sites: list[Site], data: CondIndepStackFrame) -> None:
    """Refuses plates inside the data plate that leave something out: then log p(x) is not known."""
    for site in (site for site in sites if data in site["cond_indep_stack"]):
        for frame in site_plates(site):
            if frame != data and frame.size != frame.full_size:
                raise ValueError(
                    f"plate {frame.name!r} of site {site['name']!r} takes {frame.size} of {frame.full_size} inside the "
                    f"data plate {data.name!r}, so a datum is scored in part; evaluate a program that takes all of it"
                )


def _common(scales: list[Any]) -> float | Tensor | None:
    """The factor that all sites share, or None where they differ."""
    first, *rest = scales
    if isinstance(first, Tensor):
        same = all(isinstance(scale, Tensor) and torch.equal(first, scale) for scale in rest)
    else:
        same = all(not isinstance(scale, Tensor) and scale == first for scale in rest)
    return first if same else None


def _of_data(scale: float | Tensor, data_dim: int) -> float | Tensor:
    """A scale as a number, or as a tensor of shape ``(N,)`` if it depends on the datum."""
    if not isinstance(scale, Tensor):
        return scale
    if scale.numel() == 1:
        return scale.reshape(())
    if scale.ndim < -data_dim or scale.numel() != scale.shape[data_dim]:
        raise ValueError(
            f"a scale of shape {tuple(scale.shape)}, common to all sites, varies over more than the data, which are at "
            f"dimension {data_dim}; scale by a number, or by one number per datum"
        )
    return scale.reshape(-1)


def _add_up(terms: list[tuple[Site, Tensor]], draws_dim: int | None, data_dim: int) -> Tensor:
    """Adds sites' terms per datum, enumerated sites summed out, to shape ``(num_samples or 1, N or 1)``."""
    if not any("_enumerate_dim" in site["infer"] for site, _ in terms):
        per_datum = [_per_datum(term, draws_dim, data_dim) for _, term in terms]
        return sum(per_datum[1:], start=per_datum[0])
    kept = [dim for dim in (draws_dim, data_dim) if dim is not None]
    plates = {frame.dim: frame for site, _ in terms for frame in site["cond_indep_stack"] if frame.vectorized}
    symbols: Any = {dim: get_symbol(i) for i, dim in enumerate(plates)}
    tree: Any = OrderedDict()
    sum_dims = set()
    for site, term in terms:
        ids = site["infer"]["_dim_to_id"]
        enumerated = {dim: get_symbol(len(plates) + ids[dim]) for dim in ids}
        sum_dims |= set(enumerated.values())
        ordinal = frozenset(symbols[frame.dim] for frame in site["cond_indep_stack"] if frame.vectorized)
        tree.setdefault(ordinal, []).append(packed.pack(term, symbols | enumerated))
    total: Any = contract_to_tensor(
        tree,
        sum_dims,
        target_ordinal=frozenset(symbols[dim] for dim in kept),
        ring=LogRing(dim_to_size={symbols[dim]: plates[dim].size for dim in kept}),
    )
    order = [total._pyro_dims.index(symbols[dim]) for dim in kept]
    return total.permute(order).reshape(-1, total.shape[order[-1]])


def _per_datum(log_prob: Tensor, draws_dim: int | None, data_dim: int) -> Tensor:
    """Sums over all dimensions but the draws and the data, to shape ``(num_samples or 1, N or 1)``."""
    kept = [data_dim] if draws_dim is None else [draws_dim, data_dim]
    padded = log_prob.reshape((1,) * (-min(kept) - log_prob.ndim) + log_prob.shape)
    summed = [dim for dim in range(-padded.ndim, 0) if dim not in kept]
    per_datum = padded.sum(summed) if summed else padded
    return per_datum.reshape(-1, per_datum.shape[-1])
