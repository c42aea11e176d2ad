r"""Data simulated from a model, together with their true latents.

.. math:: z \sim p(z), \qquad x' \sim p(x \mid z),

so z is an exact draw from the posterior :math:`p(z \mid x')`. Simulation-based calibration and the reversed chains of
annealed importance sampling start from such exact draws.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import permutations
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyrovae._waist.draws import Given
from pyrovae._waist.plates import site_plates
from pyrovae._waist.sites import Program, Site, is_deterministic, is_factor


def simulate(
    model: Program, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None
) -> tuple[dict[str, Tensor], tuple[Any, ...]]:
    """Draw latents and data from a model.

    The call must be inside the context of :func:`pyrovae.isolation.isolated`, which restores the state of modules and
    random generators.

    Each observed site inside a plate is sampled, and its draw replaces the entries of the argument that the site
    observes. A site observes an argument if its value is a view of this tensor, such as ``x`` or ``x[:, t]``, or has
    the same entries in the same order. The model runs again after each replacement, so later sites may depend on the
    new argument or on the value of the site. The simulation is conditional on the other arguments, on masked entries of
    the data, and on observed sites outside all plates, such as a global latent that :func:`pyro.condition` fixes.
    Inside a plate, a site that :func:`pyro.condition` fixes counts as an observed site.

    A simulated argument has the dtype of its template. If this is a dtype of integers or booleans that cannot hold the
    draws, the argument gets the dtype of the draws.

    Args:
        model: Pyro program of p(x, z), called as ``model(*args, **kwargs)``.
        args: Arguments of the program, including templates of the data.
        kwargs: Keyword arguments of the program, which are not replaced.

    Returns:
        A dictionary of the latents by name of their site, in the shapes that the program draws, and a tuple of the
        arguments, in which simulated data replace the observed data.

    Raises:
        ValueError: If the model observes nothing inside a plate, or has a ``pyro.factor``; if an observed value equals
            none of the arguments or several of them, or an argument in two orders; if two sites observe the same
            entries; or if a draw of a site and its observed value differ in the number of entries.

    Example:
        >>> import torch, pyrovae as pv
        >>> from pyrovae.evaluation.simulation import simulate
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Normal(pv.networks.mlp(2, 4)),
        ...     pv.posteriors.DiagonalNormal(pv.networks.mlp(4, 2 * 2)),
        ... )
        >>> latents, (x,) = simulate(vae.model, (torch.zeros(10, 4),))
        >>> latents["z"].shape, x.shape
        (torch.Size([10, 2]), torch.Size([10, 4]))
    """
    simulated, latents, replaced = list(args), dict[str, Tensor](), dict[str, tuple[int, Tensor]]()
    while (site := _run(model, simulated, kwargs or {}, latents, replaced)) is not None:
        replaced[site["name"]] = position, entries = _replaceable(site, simulated, replaced)
        if (entries >= 0).any():
            simulated[position] = _with_draw(site, simulated[position], entries)
    if not replaced:
        raise ValueError(
            "the model observes nothing inside a plate. Observe the data inside a plate by pyro.sample(..., obs=x)."
        )
    return latents, tuple(simulated)


class Redrawn(Given):
    """Handler that samples the observed sites inside a program's plates instead of observing them.

    A latent site gets its value from ``values``, or is sampled if it has no value there. Sites of ``pyro.factor`` and
    ``pyro.deterministic`` keep their values, and so do observed sites outside all plates. If an observed site is
    sampled, its observed value is stored as ``site["infer"]["obs"]``.

    Args:
        values: Values of latent sites by name, in the shapes that the program draws.
        kept: Names of observed sites inside plates that keep their values.
    """

    def __init__(self, values: Mapping[str, Tensor], kept: Collection[str] = ()) -> None:
        super().__init__(values)
        self.kept = kept

    def _pyro_sample(self, msg: Any) -> None:
        super()._pyro_sample(msg)
        if msg["is_observed"] and is_data(msg) and msg["name"] not in self.kept:
            msg["infer"] = {**msg["infer"], "was_observed": True, "obs": msg["value"]}
            msg.update(is_observed=False, value=None, done=False)


def is_data(site: Site) -> bool:
    """Return whether an observed site holds data: it is inside a plate, and is neither a factor nor deterministic."""
    return bool(site_plates(site)) and not (is_deterministic(site) or is_factor(site))


def check_generative(sites: Iterable[Site], remedy: str) -> None:
    """Check that all sites of a model can be sampled.

    Args:
        sites: Sites of a run of the model.
        remedy: Last sentence of the error message.

    Raises:
        ValueError: If a site is a ``pyro.factor``.
    """
    for site in sites:
        if site["type"] == "sample" and is_factor(site):
            raise ValueError(
                f"site {site['name']!r} is a pyro.factor, a weight without a distribution, so the model cannot be "
                f"sampled. {remedy}"
            )


def observed_argument(name: str, observed: Tensor, args: Sequence[Any], scored: Tensor | None = None) -> int:
    """Return the index of the argument that a site observes.

    If the observed tensor is itself an argument, the index of this argument is returned. Otherwise, the result is the
    index of the argument that has the same entries in the same order; its shape may differ.

    Args:
        name: Name of the site.
        observed: Value that the site observes.
        args: Arguments of the model.
        scored: Boolean tensor in the shape of ``observed``, false for entries that a mask leaves out. These entries are
            not compared. By default, all entries are compared.

    Raises:
        ValueError: If no argument fits, or more than one; or if the order of the entries is not clear.
    """
    found = [i for i, arg in enumerate(args) if arg is observed] or [
        i for i, arg in enumerate(args) if isinstance(arg, Tensor) and _has_entries(arg, observed, scored)
    ]
    if len(found) != 1:
        what = f"equals the arguments {found}" if found else "equals none of the arguments"
        shapes = [tuple(arg.shape) for arg in args if isinstance(arg, Tensor)]
        raise ValueError(
            f"the value that the model observes at site {name!r}, shape {tuple(observed.shape)}, {what} of the model. "
            f"The arguments have shapes {shapes}. Simulated data must replace one "
            f"argument, but it is not clear which one. Observe an argument unchanged, obs=x. If the site depends on no "
            f"latent site, you can leave the site out instead: pyro.poutine.block(model, hide=[{name!r}])."
        )
    arg = args[found[0]]
    if arg is not observed and _has_two_orders(arg, observed):
        raise ValueError(
            f"the value that the model observes at site {name!r}, shape {tuple(observed.shape)}, has the entries of an "
            f"argument of shape {tuple(arg.shape)}, but their order is not clear, because many of them are equal. "
            f"Observe a view of the argument, such as x.T, or pass an argument whose entries differ."
        )
    return found[0]


def _has_entries(arg: Tensor, observed: Tensor, scored: Tensor | None) -> bool:
    """Return whether two tensors have the same scored entries in the same order; the shapes may differ."""
    mine, theirs = arg.flatten(), torch.as_tensor(observed).to(arg.device).flatten()
    if len(mine) != len(theirs):
        return False
    same = mine == theirs
    return bool((same if scored is None else same | ~scored.to(same.device).flatten()).all())


def _has_two_orders(arg: Tensor, observed: Tensor) -> bool:
    """Return whether ``observed`` also equals ``arg`` with its dimensions in another order."""
    mine, theirs = arg.squeeze(), torch.as_tensor(observed).to(arg.device).squeeze()
    if mine.shape == theirs.shape or mine.ndim != theirs.ndim:
        return False
    orders = (mine.permute(order) for order in permutations(range(mine.ndim)))
    return any(each.shape == theirs.shape and bool((each == theirs).all()) for each in orders)


def observed_entries(observed: Tensor, arg: Tensor) -> Tensor | None:
    """Find the entries of ``arg`` that ``observed`` holds, if ``observed`` is a view of ``arg`` such as ``x[:, t]``.

    Returns:
        Indices in the flattened argument, in the shape of ``observed``. ``None`` if ``observed`` is not a view of the
        argument, if ``observed`` holds an entry of the argument more than once, or if the argument is an expanded
        tensor.
    """
    is_view = observed.dtype == arg.dtype and observed.untyped_storage().data_ptr() == arg.untyped_storage().data_ptr()
    if not is_view or 0 in arg.stride():  # entries of an expanded argument share their memory
        return None
    indices = torch.full((arg.untyped_storage().nbytes() // arg.element_size(),), -1)
    layout = (arg.shape, arg.stride(), arg.storage_offset())
    indices.as_strided(*layout).copy_(torch.arange(arg.numel()).reshape(arg.shape))
    found = indices.as_strided(observed.shape, observed.stride(), observed.storage_offset())
    return found if (found >= 0).all() and len(found.unique()) == found.numel() else None


def observed_part(name: str, observed: Tensor, args: Sequence[Any], scored: Tensor | None = None) -> tuple[int, Tensor]:
    """Find the part of an argument that a site observes.

    The arguments are those of :func:`observed_argument`.

    Returns:
        The index of the argument, and indices of entries of the flattened argument, in the shape of ``observed``.

    Raises:
        ValueError: If ``observed`` is neither a view of an argument nor has the entries of exactly one argument.
    """
    tensors = {i: arg for i, arg in enumerate(args) if isinstance(arg, Tensor)}
    views = {i: part for i, arg in tensors.items() if (part := observed_entries(observed, arg)) is not None}
    if len(views) == 1:
        return next(iter(views.items()))
    position = observed_argument(name, observed, args, scored)
    return position, torch.arange(observed.numel()).reshape(observed.shape)


def _run(
    model: Program,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    latents: dict[str, Tensor],
    kept: Collection[str],
) -> Site | None:
    """Run the model, and return the first data site that is not in ``kept``, with a draw in place of its data.

    If ``kept`` has the names of all data sites, ``None`` is returned. A data site is an observed site for which
    :func:`is_data` is true. The values of all latent sites before the returned site are added to ``latents``.
    """
    trace = poutine.trace(Redrawn(latents, kept)(model)).get_trace(*args, **kwargs)
    sites: list[Site] = list(trace.nodes.values())
    check_generative(sites, "Hide the site, pyro.poutine.block(model, hide=[name])")
    for site in sites:
        if site["type"] == "sample" and not (site["is_observed"] or site_is_subsample(site)):
            if site["infer"].get("was_observed"):
                return site
            latents[site["name"]] = site["value"]
    return None


def _replaceable(site: Site, args: Sequence[Any], replaced: Mapping[str, tuple[int, Tensor]]) -> tuple[int, Tensor]:
    """Find the entries of an argument that a site observes and that its draw can replace.

    Args:
        site: Data site with a draw in place of its data.
        args: Arguments of the model.
        replaced: Results of this function for earlier sites, by name.

    Returns:
        The index of the argument, and indices of entries of the flattened argument in the shape of the observed value.
        The index is -1 for entries that a mask leaves out.

    Raises:
        ValueError: If the site observes no argument, several arguments, or the same entries as another site; or if the
            draw and the observed value differ in the number of entries.
    """
    value, observed = site["value"], torch.as_tensor(site["infer"]["obs"])
    if value.numel() != observed.numel():
        raise ValueError(
            f"site {site['name']!r} draws a value of shape {tuple(value.shape)} but observes an argument of shape "
            f"{tuple(observed.shape)}. Give its distribution the batch and event shape of the data."
        )
    scored = scored_entries(site).reshape(observed.shape)
    if not scored.any():
        return 0, torch.full(observed.shape, -1)
    position, entries = observed_part(site["name"], observed, args, scored)
    entries = torch.where(scored.cpu(), entries, -1)
    for other, (index, taken) in replaced.items():
        if index == position and torch.isin(entries[entries >= 0], taken).any():
            raise ValueError(
                f"sites {other!r} and {site['name']!r} observe the same entries of argument {position}. Pass each site "
                f"its own argument."
            )
    return position, entries


def _with_draw(site: Site, arg: Tensor, entries: Tensor) -> Tensor:
    """Return an argument in which the draw of a site replaces the entries that the site observes.

    ``entries`` holds the indices of these entries in the flattened argument, and -1 for draws that replace nothing.
    """
    inside = entries.flatten() >= 0
    drawn: Tensor = site["value"].flatten()[inside.to(arg.device)]
    dtype = arg.dtype if arg.is_floating_point() or _fits(drawn, arg.dtype) else drawn.dtype
    flat = arg.flatten().to(dtype, copy=True)
    flat[entries.flatten()[inside].to(arg.device)] = drawn.to(flat)
    return flat.reshape(arg.shape)


def _fits(values: Tensor, dtype: torch.dtype) -> bool:
    """Return whether a dtype can hold the values without a change."""
    return bool((values.to(dtype).to(values.dtype) == values).all())


def scored_entries(site: Site) -> Tensor:
    """Return a boolean tensor in the shape of a site's value, which is false for entries that a mask leaves out."""
    value, distribution = site["value"], site["fn"]
    scored = torch.ones(value.shape, dtype=torch.bool, device=value.device)
    masks = [(site["mask"], distribution)]
    while hasattr(distribution, "base_dist"):
        if isinstance(distribution, dist.MaskedDistribution):
            masks.append((distribution._mask, distribution))
        distribution = distribution.base_dist
    for mask, of in masks:
        if isinstance(mask, Tensor):
            mask = mask.reshape(mask.shape + (1,) * len(of.event_shape))
        scored = scored if mask is None else scored & mask
    return scored
