r"""Data simulated from a model, together with their true latents.

.. math:: z \sim p(z), \qquad x' \sim p(x \mid z),

so z is an exact draw from the posterior :math:`p(z \mid x')`. Simulation-based calibration and the reversed chains of
annealed importance sampling start from such exact draws.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyrovae._waist.draws import Given
from pyrovae._waist.plates import site_plates
from pyrovae._waist.sites import Program, Site, is_deterministic, is_factor


def simulate(model: Program, args: Sequence[Tensor]) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
    """Draw latents and data from a model.

    The call must be inside the context of :func:`pyrovae.isolation.isolated`, which restores the state of modules and
    random generators.

    Each observed site inside a plate is sampled, and its draw replaces the argument that the site observes. A site
    observes an argument if its value is this tensor, or has the same entries in the same order. The model runs again
    after each replacement, so later sites may depend on the new argument or on the value of the site. The simulation is
    conditional on the other arguments, on masked entries of the data, and on observed sites outside all plates, such as
    a global latent that :func:`pyro.condition` fixes. Inside a plate, a site that :func:`pyro.condition` fixes counts
    as an observed site.

    Args:
        model: Pyro program of p(x, z), called as ``model(*args)``.
        args: Arguments of the program, including templates of the data.

    Returns:
        A dictionary of the latents by name of their site, in the shapes that the program draws, and a tuple of the
        arguments, in which simulated data replace the observed data.

    Raises:
        ValueError: If the model observes nothing inside a plate, or has a ``pyro.factor``; if an observed value equals
            none of the arguments or several of them; if two sites observe the same argument; or if a site and the
            argument that it observes differ in the number of entries.

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
    simulated, latents, positions = list(args), dict[str, Tensor](), dict[str, int]()
    while (observed := _run(model, simulated, latents, positions)) is not None:
        positions[observed["name"]] = position = _position(observed, simulated, positions)
        simulated[position] = _as_argument(observed, simulated[position])
    if not positions:
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


def observed_argument(name: str, observed: Tensor, args: Sequence[Tensor]) -> int:
    """Return the index of the argument that a site observes.

    If the observed tensor is itself an argument, the index of this argument is returned. Otherwise, the result is the
    index of the argument that has the same entries in the same order; its shape may differ.

    Raises:
        ValueError: If no argument fits, or more than one.
    """
    found = [i for i, arg in enumerate(args) if arg is observed] or [
        i for i, arg in enumerate(args) if torch.equal(arg.flatten(), torch.as_tensor(observed).to(arg).flatten())
    ]
    if len(found) != 1:
        what = f"equals the arguments {found}" if found else "equals none of the arguments"
        raise ValueError(
            f"the value that the model observes at site {name!r}, shape {tuple(observed.shape)}, {what} of the model. "
            f"The arguments have shapes {[tuple(arg.shape) for arg in args]}. Simulated data must replace one "
            f"argument, but it is not clear which one. Observe an argument unchanged, obs=x. If the site depends on no "
            f"latent site, you can leave the site out instead: pyro.poutine.block(model, hide=[{name!r}])."
        )
    return found[0]


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


def _run(model: Program, args: Sequence[Tensor], latents: dict[str, Tensor], kept: Collection[str]) -> Site | None:
    """Run the model, and return the first data site that is not in ``kept``, with a draw in place of its data.

    If ``kept`` has the names of all data sites, ``None`` is returned. A data site is an observed site for which
    :func:`is_data` is true. The values of all latent sites before the returned site are added to ``latents``.
    """
    sites: list[Site] = list(poutine.trace(Redrawn(latents, kept)(model)).get_trace(*args).nodes.values())
    check_generative(sites, "Hide the site, pyro.poutine.block(model, hide=[name])")
    for site in sites:
        if site["type"] == "sample" and not (site["is_observed"] or site_is_subsample(site)):
            if site["infer"].get("was_observed"):
                return site
            latents[site["name"]] = site["value"]
    return None


def _position(site: Site, args: Sequence[Tensor], taken: Mapping[str, int]) -> int:
    """Return the index of the argument that a site observes.

    Raises:
        ValueError: If the site observes no argument, several arguments, or the same argument as another site.
    """
    position = observed_argument(site["name"], site["infer"]["obs"], args)
    for other in (name for name, index in taken.items() if index == position):
        raise ValueError(
            f"sites {other!r} and {site['name']!r} observe the same argument, {position}. Pass each site its own "
            f"argument."
        )
    return position


def _as_argument(site: Site, arg: Tensor) -> Tensor:
    """Return the argument that a site observes, with the data replaced by the site's draw.

    Entries that a mask leaves out of the log-probability are not replaced.
    """
    value: Tensor = site["value"]
    if value.numel() != arg.numel():
        raise ValueError(
            f"site {site['name']!r} draws a value of shape {tuple(value.shape)} but observes an argument of shape "
            f"{tuple(arg.shape)}. Give its distribution the batch and event shape of the data."
        )
    drawn = value.reshape(arg.shape).to(arg)
    return torch.where(scored_entries(site).reshape(arg.shape), drawn, arg)


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
