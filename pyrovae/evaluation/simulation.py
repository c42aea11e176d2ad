r"""Data simulated from a model, together with their true latents.

.. math:: z \sim p(z), \qquad x' \sim p(x \mid z),

so z is an exact draw from the posterior :math:`p(z \mid x')`. Simulation-based calibration and the reversed chains of
annealed importance sampling start from such exact draws.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyrovae._waist.draws import Given
from pyrovae._waist.errors import ProgramError
from pyrovae._waist.plates import data_plate, site_plates
from pyrovae._waist.sites import Program, Site, is_deterministic, is_factor
from pyrovae.evaluation.observed import entries_of, scored_values, values_per_datum


def simulate(
    model: Program, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None, *, plate: str | None = None
) -> tuple[dict[str, Tensor], tuple[Any, ...]]:
    """Draw latents and data from a model.

    The call must be inside the context of :func:`pyrovae.isolation.isolated`, which restores the state of modules and
    random generators.

    Each observed site inside a plate is sampled, and its draw replaces the entries of the argument that the site
    observes. A site observes an argument if its value is a view of this tensor, such as ``x`` or ``x[:, t]``, or a copy
    of it; see :func:`pyrovae.evaluation.observed.entries_of`. The model runs again after each replacement, so later
    sites may depend on the new argument or on the value of the site. The simulation is conditional on the other
    arguments, on masked entries of the data, and on observed sites outside all plates, such as a global latent that
    :func:`pyro.condition` fixes. Inside a plate, a site that :func:`pyro.condition` fixes counts as an observed site.

    A simulated argument has the dtype of its template. If this is a dtype of integers or booleans that cannot hold the
    draws, the argument gets the dtype of the draws.

    Args:
        model: Pyro program of p(x, z), called as ``model(*args, **kwargs)``.
        args: Arguments of the program, including templates of the data.
        kwargs: Keyword arguments of the program, which are not replaced.
        plate: Name of the data plate; by default the outermost plate of each observed site.

    Returns:
        A dictionary of the latents by name of their site, in the shapes that the program draws, and a tuple of the
        arguments, in which simulated data replace the observed data.

    Raises:
        ValueError: If the model observes nothing inside a plate, or has a ``pyro.factor``; if an observed value is a
            copy of none of the arguments or of several of them, of an argument in several orders, or a function of an
            argument; if two sites observe the same entries; or if a draw of a site and its observed value differ in
            the number of entries.

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
    simulated: list[Any] = [arg.clone() if isinstance(arg, Tensor) else arg for arg in args]  # without shared memory
    latents, replaced = dict[str, Tensor](), dict[str, _Replacement]()
    while (site := _run(model, simulated, kwargs or {}, latents, replaced)) is not None:
        replaced[site["name"]] = new = _replacement(site, simulated, replaced, plate)
        if new.scored.any():
            simulated[new.argument] = _with_draws(simulated[new.argument], new)
    if not replaced:
        raise ValueError(
            "the model observes nothing inside a plate. Observe the data inside a plate by pyro.sample(..., obs=x)."
        )
    changed = {each.argument for each in replaced.values() if each.scored.any()}
    return latents, tuple(simulated[i] if i in changed else arg for i, arg in enumerate(args))


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


class _Replacement(NamedTuple):
    """Draws of a site that replace the entries of an argument that the site observes.

    Attributes:
        argument: Index of the argument.
        plate: Name of the data plate.
        entries: Indices in the flattened argument, shape ``(n, m)`` for m entries of each datum.
        draws: New values of these entries, shape ``(n, m)``.
        scored: False for entries that a mask leaves out, which are not replaced, shape ``(n, m)``.
    """

    argument: int
    plate: str
    entries: Tensor
    draws: Tensor
    scored: Tensor


def _run(
    model: Program,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    latents: dict[str, Tensor],
    replaced: Mapping[str, _Replacement],
) -> Site | None:
    """Run the model, and return the first data site that is not in ``replaced``, with a draw in place of its data.

    If ``replaced`` has the names of all data sites, ``None`` is returned. A data site is an observed site for which
    :func:`is_data` is true. The values of all latent sites before the returned site are added to ``latents``.

    Raises:
        ValueError: If a site in ``replaced`` does not observe the draws that replaced its data.
    """
    trace = poutine.trace(Redrawn(latents, replaced)(model)).get_trace(*args, **kwargs)
    sites: list[Site] = list(trace.nodes.values())
    check_generative(sites, "Hide the site, pyro.poutine.block(model, hide=[name])")
    for site in sites:
        if site["type"] != "sample" or site_is_subsample(site):
            continue
        if site["name"] in replaced:
            _check_observed(site, replaced[site["name"]], args)
        elif not site["is_observed"]:
            if site["infer"].get("was_observed"):
                return site
            latents[site["name"]] = site["value"]
    return None


def _check_observed(site: Site, new: _Replacement, args: Sequence[Any]) -> None:
    """Check that a site observes the draws that replaced its data.

    A site can observe a function of an argument that equals the argument only for the template, as ``x / 10`` does for
    a template of zeros.

    Raises:
        ValueError: If the site observes other values.
    """
    if not new.scored.any():
        return
    observed = values_per_datum(site, torch.as_tensor(site["value"]), new.plate)[0][new.scored].double()
    expected = new.draws[new.scored].to(args[new.argument].dtype).double()
    if not torch.allclose(observed, expected, rtol=1e-5, atol=0.0, equal_nan=True):
        raise ProgramError(
            f"the value that the model observes at site {site['name']!r} is a function of argument {new.argument}, "
            f"such as x / 10, so simulated data cannot replace the argument. Compute the observed tensor before the "
            f"call, pass it as an argument, and observe this argument unchanged, obs=x."
        )


def _replacement(
    site: Site, args: Sequence[Any], replaced: Mapping[str, _Replacement], plate: str | None
) -> _Replacement:
    """Find the entries of an argument that a site observes, and the draws that replace them.

    Args:
        site: Data site with a draw in place of its data.
        args: Arguments of the model.
        replaced: Replacements by the draws of earlier sites, by name.
        plate: Name of the data plate; by default the outermost plate of the site.

    Raises:
        ValueError: If the site observes no argument, several arguments, or the same entries as another site; or if the
            draw and the observed value differ in the number of entries.
    """
    value, observed = site["value"], torch.as_tensor(site["infer"]["obs"])
    if value.numel() != observed.numel():
        raise ProgramError(
            f"site {site['name']!r} draws a value of shape {tuple(value.shape)} but observes an argument of shape "
            f"{tuple(observed.shape)}. Give its distribution the batch and event shape of the data."
        )
    name = data_plate([site], plate).name
    scored, draws = scored_values(site, observed, name)[0], values_per_datum(site, value, name)[0]
    if not scored.any():
        return _Replacement(-1, name, torch.full(scored.shape, -1), draws, scored)
    found = entries_of(site, observed, args, name)
    for other, earlier in replaced.items():
        taken = earlier.entries[earlier.scored]
        if earlier.argument == found.argument and torch.isin(found.indices[scored], taken).any():
            raise ProgramError(
                f"sites {other!r} and {site['name']!r} observe the same entries of argument {found.argument}. Pass "
                f"each site its own argument."
            )
    return _Replacement(found.argument, name, found.indices, draws, scored)


def _with_draws(arg: Tensor, new: _Replacement) -> Tensor:
    """Return an argument in which draws replace the scored entries that a site observes."""
    draws = new.draws[new.scored]
    dtype = arg.dtype if arg.is_floating_point() or _fits(draws, arg.dtype) else draws.dtype
    flat = arg.flatten().to(dtype, copy=True)
    flat[new.entries[new.scored]] = draws.to(flat)
    return flat.reshape(arg.shape)


def _fits(values: Tensor, dtype: torch.dtype) -> bool:
    """Return whether a dtype can hold the values without a change."""
    return bool((values.to(dtype).to(values.dtype) == values).all())
