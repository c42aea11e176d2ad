r"""Data simulated from a model, together with the latents that they came from.

.. math:: z \sim p(z), \qquad x' \sim p(x \mid z),

so that z is an exact draw from the posterior :math:`p(z \mid x')`: what calibration and reverse annealing start from.
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
    """Draws latents and data from a model; to be called in isolation.

    An observed site's draw takes the place of the argument that it observes, the tensor itself or one with the same
    entries in the same order. The model is run anew after each, so that later sites may read the argument or the site.
    Other arguments, masked entries of the data, and observed sites outside all plates (a latent that was conditioned
    on), are given; a latent that was conditioned on inside a plate is drawn.

    Args:
        model: Pyro program of p(x, z), called as ``model(*args)``.
        args: The program's arguments, templates of the data among them.

    Returns:
        The latent sites' values by name, as the program draws them, and its arguments with simulated data.

    Raises:
        ValueError: If the model observes nothing, something that is not one of its arguments or equals several of them,
            one argument at two sites, or a ``pyro.factor``; or if a site draws another number of entries than its
            argument has.

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
        raise ValueError("the model observes nothing inside a plate; pass the data with pyro.sample(..., obs=x)")
    return latents, tuple(simulated)


class Redrawn(Given):
    """Draws the observed sites of a program's plates anew, given some or all latents.

    An observed site outside all plates is given, and so are ``pyro.factor`` and ``pyro.deterministic``. A site drawn
    anew keeps what was observed as ``site["infer"]["obs"]``.

    Args:
        values: Of latent sites, by name, shaped as the program draws them.
        kept: Names of further observed sites that are to stay so.
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
    """Whether an observed site is of data: in a plate, and neither a factor nor deterministic."""
    return bool(site_plates(site)) and not (is_deterministic(site) or is_factor(site))


def check_generative(sites: Iterable[Site], way_out: str) -> None:
    """Checks that a model's sites can all be drawn; ``way_out`` says in the error what else to do.

    Raises:
        ValueError: If one is a ``pyro.factor``.
    """
    for site in sites:
        if site["type"] == "sample" and is_factor(site):
            raise ValueError(
                f"site {site['name']!r} is a pyro.factor, a weight without a distribution, so the model cannot be "
                f"drawn from; {way_out}"
            )


def observed_argument(name: str, observed: Tensor, args: Sequence[Tensor]) -> int:
    """Which of the arguments a site observes: the tensor itself, or the one with the same entries in the same order.

    Raises:
        ValueError: If it is none of them, or equals several.
    """
    found = [i for i, arg in enumerate(args) if arg is observed] or [
        i for i, arg in enumerate(args) if torch.equal(arg.flatten(), torch.as_tensor(observed).to(arg).flatten())
    ]
    if len(found) != 1:
        what = f"equals its arguments {found}" if found else "is none of its arguments"
        raise ValueError(
            f"what the model observes at site {name!r}, shape {tuple(observed.shape)}, {what}, which have shapes "
            f"{[tuple(arg.shape) for arg in args]}, so it is not clear which of them to replace; observe an argument "
            f"as it is, obs=x, or have the site given, pyro.poutine.block(model, hide=[{name!r}])"
        )
    return found[0]


def _run(model: Program, args: Sequence[Tensor], latents: dict[str, Tensor], kept: Collection[str]) -> Site | None:
    """Runs the model on its latents so far, adds those up to the first observed site drawn anew, and returns that."""
    sites: list[Site] = list(poutine.trace(Redrawn(latents, kept)(model)).get_trace(*args).nodes.values())
    check_generative(sites, "hide it, pyro.poutine.block(model, hide=[name])")
    for site in sites:
        if site["type"] == "sample" and not (site["is_observed"] or site_is_subsample(site)):
            if site["infer"].get("was_observed"):
                return site
            latents[site["name"]] = site["value"]
    return None


def _position(site: Site, args: Sequence[Tensor], taken: Mapping[str, int]) -> int:
    """Which of the arguments an observed site observes, and no other site."""
    position = observed_argument(site["name"], site["infer"]["obs"], args)
    for other in (name for name, index in taken.items() if index == position):
        raise ValueError(
            f"sites {other!r} and {site['name']!r} observe the same argument, {position}; pass each its own"
        )
    return position


def _as_argument(site: Site, arg: Tensor) -> Tensor:
    """A site's draw, of the shape and type of the argument that it observes; masked entries stay as they are."""
    value: Tensor = site["value"]
    if value.numel() != arg.numel():
        raise ValueError(
            f"site {site['name']!r} draws a value of shape {tuple(value.shape)} but observes an argument of shape "
            f"{tuple(arg.shape)}; give its distribution the batch and event shape of the data"
        )
    drawn = value.reshape(arg.shape).to(arg)
    return torch.where(_scored(site).reshape(arg.shape), drawn, arg)


def _scored(site: Site) -> Tensor:
    """Which entries of an observed site's value no mask leaves out, of the shape of the value."""
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
