"""Sample sites of a model and its guide: their plates, their checks and their log-probabilities."""

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.util import is_validation_enabled
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from pyro.util import check_site_shape
from torch import Tensor

from pyrovae._waist.support import coordinates, measure

Program = Callable[..., Any]
Site = Any  # a Pyro message
DRAWS = "_pyrovae_draws"  # name of the plate of draws


class OutsideSupportError(ValueError):
    """A value cannot be scored by the distribution of its site."""


@contextmanager
def explained_divergence() -> Iterator[None]:
    """Explain the error that a distribution raises when its parameters are NaN or infinite.

    Raises:
        FloatingPointError: In place of the ValueError of the distribution.
    """
    try:
        yield
    except (ValueError, RuntimeError) as error:
        message, found, shapes = str(error).partition("\nTrace Shapes:")
        if found:  # as Pyro puts its table of shapes behind the message
            error.args = (message,)
            error.add_note(f"Trace shapes:{shapes}")
        pattern = r"Expected parameter (\w+) .*? of distribution (\w+)\(.* found invalid values:(.*)"
        refused = re.search(pattern, message, flags=re.DOTALL) if isinstance(error, ValueError) else None
        if not (refused and re.search(r"\b(nan|inf)\b", refused[3])):
            raise
        raise FloatingPointError(
            f"the model has diverged: {refused[1]} of a {refused[2]} is NaN or infinite; look at the parameters of the "
            f"module and at its history, and go back to weights from before that, such as a checkpoint's"
        ) from error


def sample_sites(trace: poutine.Trace) -> list[Site]:
    """Return the sample sites of a run, without those at which plates choose their data."""
    return [site for site in prune_subsample_sites(trace).nodes.values() if site["type"] == "sample"]


def site_plates(site: Site) -> list[Any]:
    """Return the vectorized plates of a site, outermost first, without the plate of draws."""
    return [frame for frame in site["cond_indep_stack"] if frame.vectorized and frame.name != DRAWS]


def plate_names(site: Site) -> set[str]:
    """Return the names of the vectorized plates of a site."""
    return {frame.name for frame in site_plates(site)}


def shared_plates(sites: list[Site]) -> list[CondIndepStackFrame]:
    """Return the plates that all sites are in, outermost first."""
    return [frame for frame in site_plates(sites[0]) if all(frame.name in plate_names(site) for site in sites)]


def outermost_plate(sites: list[Site]) -> CondIndepStackFrame:
    """Return the outermost plate that all sites are in.

    Raises:
        ValueError: If no plate holds all of them.
    """
    if not sites:
        raise ValueError("the model observes nothing; pass the data with pyro.sample(name, distribution, obs=x)")
    if not (shared := shared_plates(sites)):
        raise ValueError(
            f"there is no data plate around the observed sites {[site['name'] for site in sites]}; declare the data "
            f"independent with a vectorized plate, `with pyro.plate('data', len(x)):`"
        )
    return sized(shared[0], sites)


def sized(plate: CondIndepStackFrame, sites: Sequence[Site]) -> CondIndepStackFrame:
    """Return a plate with its size. Pyro gives -1 to a plate that was declared without one.

    Args:
        plate: The plate.
        sites: Sites inside the plate, from which a missing size is read.
    """
    if plate.size is not None and plate.size >= 0:
        return plate
    dim: int = plate.dim  # type: ignore[assignment]
    shapes = [_batch_shape(site) for site in sites if plate.name in plate_names(site)]
    size = max((shape[dim] for shape in shapes if len(shape) >= -dim), default=1)
    return plate._replace(size=size, full_size=size)


def _batch_shape(site: Site) -> torch.Size:
    value, event = site["value"], len(site["fn"].event_shape)
    of_value = value.shape[: value.ndim - event] if isinstance(value, Tensor) else torch.Size()
    return torch.broadcast_shapes(of_value, site["fn"].batch_shape)


def is_enumerated(site: Site) -> bool:
    """Return whether a site asks to be summed out over all of its values."""
    return not site["is_observed"] and site["infer"].get("enumerate") == "parallel"


def is_point(distribution: Any) -> bool:
    """Return whether a distribution has all of its mass on a point."""
    while isinstance(distribution, dist.ExpandedDistribution | torch.distributions.Independent):
        distribution = distribution.base_dist
    return isinstance(distribution, dist.Delta)


def check_program(model: Program, guide: Program, args: Sequence[Any]) -> CondIndepStackFrame:
    """Run guide and model once with validation, and return the outermost plate of the observed sites.

    Latent sites outside of that plate, and sites that the model enumerates, are no error in a program to be trained.

    Raises:
        ValueError: If model and guide disagree about their latent sites, if no plate holds the observed sites, or if a
            value lies outside the support of its distribution.
    """
    with pyro.validation_enabled():
        model_sites, guide_sites = trace(model, guide, args)
        check_same_latents(model_sites, guide_sites)
        for site in model_sites + guide_sites:
            score(site)
    observed = [site for site in model_sites if site["is_observed"]]
    return outermost_plate([site for site in observed if site_plates(site)] or observed)


def trace(model: Program, guide: Program, args: Sequence[Any], kwargs: Any = None) -> tuple[list[Site], list[Site]]:
    """Run the guide, then the model at its draws, and return the sample sites of model and guide."""
    with explained_divergence():
        guide_trace = poutine.trace(guide).get_trace(*args, **(kwargs or {}))
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **(kwargs or {}))
    return sample_sites(model_trace), sample_sites(guide_trace)


def global_draws(model: Program, guide: Program, args: Sequence[Any], *, plate: str | None = None) -> dict[str, Tensor]:
    """Draw the latent sites that lie outside of the data plate.

    Raises:
        ValueError: If all latent sites lie inside.
    """
    model_sites, guide_sites = trace(model, guide, args)
    name = plate or outermost_plate([site for site in model_sites if site["is_observed"] and site_plates(site)]).name
    of_model = {site["name"] for site in model_sites if not site["is_observed"]}
    latents = [site for site in guide_sites if site["name"] in of_model]
    outside = [site for site in latents if name not in plate_names(site)]
    if not outside:
        raise ValueError(
            f"all latent sites, {[site['name'] for site in latents]}, lie inside the data plate {name!r}; there is no "
            f"global latent to average over: use pyrovae.evaluation.evaluate"
        )
    return {site["name"]: site["value"].detach() for site in outside}


def check_same_latents(model_sites: list[Site], guide_sites: list[Site]) -> None:
    """Check that model and guide have the same latent sites, except for enumerated and auxiliary ones.

    Raises:
        ValueError: If a latent site is missing in either, a site asks for parallel draws, the guide has no density, or
            an auxiliary site of the guide has no counterpart.
    """
    for site in filter(is_enumerated, model_sites + guide_sites):
        if site["infer"].get("num_samples") is not None:
            raise ValueError(
                f"latent site {site['name']!r} asks for {site['infer']['num_samples']} parallel samples, which is not "
                f"a sum over its values; enumerate it, infer={{'enumerate': 'parallel'}}, or draw it"
            )
    _check_points(model_sites, guide_sites)
    in_model = {site["name"] for site in model_sites if not (site["is_observed"] or is_enumerated(site))}
    in_guide = {site["name"] for site in guide_sites if not site["is_observed"]}
    auxiliary = {site["name"] for site in guide_sites if site["infer"].get("is_auxiliary")}
    in_model |= in_guide & {site["name"] for site in model_sites if is_enumerated(site)}
    if missing := sorted(in_model - in_guide):
        raise ValueError(
            f"latent site {missing[0]!r} is in the model but not in the guide, which has {sorted(in_guide)}; "
            f"sample it in the guide under the same name, or observe it"
        )
    if surplus := sorted(in_guide - in_model - auxiliary):
        raise ValueError(
            f"latent site {surplus[0]!r} is in the guide but not in the model, which has {sorted(in_model)}; "
            f"sample it in the model under the same name, or mark it with infer={{'is_auxiliary': True}}"
        )


def check_auxiliary(model_sites: list[Site], guide_sites: list[Site]) -> None:
    """Check that auxiliary sites of the guide are the noise from which its other sites are computed.

    An autoguide draws one auxiliary vector and computes every latent site from it, as a point. A vector that leaves
    latent sites random has a density of its own in log q, which nothing in the model matches: then the mean weight is
    not p(x), and can be infinite.

    Raises:
        ValueError: If auxiliary sites have not as many entries as the points that are computed from them.
    """
    in_model = {site["name"]: site for site in model_sites}
    alone = [s for s in guide_sites if s["infer"].get("is_auxiliary") and s["name"] not in in_model]
    points = [site for site in guide_sites if site["name"] in in_model and is_point(site["fn"])]
    free = sum(site["value"].numel() for site in alone)
    bound = sum(coordinates(in_model[site["name"]]["fn"], site["value"]) for site in points)
    if alone and free > bound:
        raise ValueError(
            f"auxiliary site {alone[0]['name']!r} of the guide has no counterpart in the model, so the mean of the "
            f"importance weights is not p(x); sample it in the model too, from a density given the other latent sites, "
            f"or leave it out of the guide"
        )
    if alone and free < bound:
        raise ValueError(
            f"auxiliary site {alone[0]['name']!r} of the guide has {free} entries in all, and {bound} of the latent "
            f"sites {[site['name'] for site in points]} are computed as points, so these have no density; sample as "
            f"many entries as there are"
        )


def _check_points(model_sites: list[Site], guide_sites: list[Site]) -> None:
    """Refuse a guide that puts all mass on a point where the model has a density, and draws nothing else."""
    if any(site["infer"].get("is_auxiliary") for site in guide_sites):
        return  # an autoguide computes such points from its auxiliary draw
    of_model = {site["name"]: site["fn"] for site in model_sites if not site["is_observed"]}
    for site in guide_sites:
        given = site["is_observed"] or site["infer"].get("_pyrovae_given")
        if not given and is_point(site["fn"]) and not is_point(of_model.get(site["name"], site["fn"])):
            raise ValueError(
                f"the guide puts all mass of latent site {site['name']!r} on a point, a maximum a posteriori estimate, "
                f"so its draws have no density and no weights; sample it, or condition the model on its value"
            )


def check_measures(model_sites: list[Site], guide_sites: list[Site]) -> None:
    """Check that densities of model and guide refer to the same measure, so that their ratio is a weight.

    Raises:
        ValueError: If one is discrete and the other is not, one lies on a surface such as the simplex, or one is of
            angles and the other of all real numbers.
    """
    of_model = {site["name"]: site["fn"] for site in model_sites if not site["is_observed"]}
    for site in guide_sites:
        other, name = of_model.get(site["name"]), site["name"]
        if site["is_observed"] or other is None or is_point(site["fn"]) or is_point(other):
            continue
        kinds = measure(site["fn"]), measure(other)
        if None in kinds or kinds[0] == kinds[1]:
            continue
        if set(kinds) <= {"interval", "Lebesgue"} or set(kinds) == {"interval", "angle"}:
            continue
        words = {"counting": "discrete", "Lebesgue": "a density on real numbers", "angle": "a density of angles"}
        drawn, scored = (words.get(kind or "", f"a density on the {kind}") for kind in kinds)
        raise ValueError(
            f"latent site {name!r} is {drawn} in the guide, {type(site['fn']).__name__}, and {scored} in the model, "
            f"{type(other).__name__}, so their ratio is no importance weight; give both the same support"
        )


def check_masks(model_sites: list[Site], guide_sites: list[Site]) -> None:
    """Check that a latent site is masked alike in model and guide.

    Where both are masked, the site is left out of the weight. If only one is, its density has no counterpart.

    Raises:
        ValueError: If the masks differ.
    """
    of_model = {site["name"]: site for site in model_sites if not site["is_observed"]}
    for site in guide_sites:
        other = of_model.get(site["name"])
        if other is None or site["is_observed"] or is_enumerated(site) or is_enumerated(other):
            continue
        first, second = mask_of(other), mask_of(site)
        if first is second or torch.equal(*torch.broadcast_tensors(*map(torch.as_tensor, (first, second)))):
            continue
        raise ValueError(
            f"latent site {site['name']!r} has another mask in the guide than in the model, so where it is masked in "
            f"one of them its density has no counterpart in the log-weight; mask it alike in both, "
            f"pyro.poutine.mask(mask=...)"
        )


def mask_of(site: Site) -> Any:
    """Return the mask of a site, of handlers and of its distribution together, in its batch shape; True if all counts.

    A distribution whose mask varies within an event has no mask of the whole site, and counts in full.
    """
    mask: Any = True if site["mask"] is None else site["mask"]
    fn = site["fn"]
    batch = fn.batch_shape
    while hasattr(fn, "base_dist"):
        if isinstance(fn, dist.MaskedDistribution) and len(fn.batch_shape) == len(batch):
            mask = torch.as_tensor(fn._mask) & torch.as_tensor(mask).to(torch.as_tensor(fn._mask).device)
        fn = fn.base_dist
    return mask


def score(site: Site) -> Tensor:
    """Return the unscaled log-probability of a site, in its batch shape, nats.

    A given value of a latent site outside of the support has probability zero: -inf.

    Raises:
        ValueError: With validation, if any other value lies outside of the support or has another event shape.
    """
    fn, value, inside = site["fn"], site["value"], site["infer"].get("_pyrovae_inside")
    try:
        log_prob: Tensor = fn.log_prob(value, *site["args"], **site["kwargs"])
    except ValueError as error:
        raise OutsideSupportError(_outside_support(site, " ".join(str(error).split())[:200])) from error
    if is_validation_enabled():
        _check_shapes(site, log_prob)
    return log_prob if inside is None else torch.where(inside, log_prob, -torch.inf)


def _check_shapes(site: Site, log_prob: Tensor) -> None:
    event_shape = site["fn"].event_shape
    if site["value"].shape[site["value"].ndim - len(event_shape) :] != event_shape:
        raise ValueError(
            f"site {site['name']!r}: a value of shape {tuple(site['value'].shape)} would be broadcast to the event "
            f"shape {tuple(event_shape)} of its distribution; give model, guide and data the same event shape"
        )
    enumerated = site["infer"].get("_dim_to_id")  # dimensions to the left of all plates
    # Draws of an enumerated site may have all values in common, so their dimension is not checked.
    stack = [frame for frame in site["cond_indep_stack"] if not (enumerated and frame.name == DRAWS)]
    checked: Any = {**site, "log_prob": log_prob, "cond_indep_stack": tuple(stack)}
    plates = [-frame.dim for frame in stack if frame.vectorized]
    check_site_shape(checked, max_plate_nesting=max(plates, default=0) if enumerated else sys.maxsize)


def _outside_support(site: Site, reason: str) -> str:
    """Say what the error of a distribution means, and what to do."""
    fn, value = site["fn"], site["value"]
    while isinstance(fn, dist.Independent | dist.ExpandedDistribution | torch.distributions.Independent):
        fn = fn.base_dist
    name = type(fn).__name__
    found = f"values from {value.min():.4g} to {value.max():.4g}" if value.numel() else "no values"
    message = (
        f"site {site['name']!r}: {found}, shape {tuple(value.shape)}, cannot be scored by a {name} of batch shape "
        f"{tuple(site['fn'].batch_shape)} and event shape {tuple(site['fn'].event_shape)} ({reason})"
    )
    if hasattr(fn, "hint"):
        message += f"; {fn.hint}"
    is_grey = ((value > 0) & (value < 1)).any() and value.min() >= 0 and value.max() <= 1
    if isinstance(fn, torch.distributions.Bernoulli) and is_grey:
        message += (
            "; grey values have no Bernoulli likelihood: binarize them (pyrovae.data.binarize, or a data set with "
            "binarization='dynamic' and fit(transform=splits.transform)), or use a likelihood of real values such as "
            "pyrovae.likelihoods.Normal"
        )
    return message


class Latents(Messenger):
    """Keep the messages of latent sites by name, in the order of the runs: the guide's, then the model's."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: dict[str, list[Site]] = {}

    def _pyro_post_sample(self, msg: Any) -> None:
        if not (msg["is_observed"] or site_is_subsample(msg)):
            self.runs.setdefault(msg["name"], []).append(msg)


class LatentScale(Messenger):
    """Multiply the log-probabilities of latent sites in model and guide; unlike Pyro's scale, also by 0."""

    def __init__(self, scale: float | Tensor) -> None:
        super().__init__()
        self.scale = scale
        self.scaled: dict[float, float | Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"]:
            own = msg["scale"]
            # Sites scaled alike get the very same tensor, so that this can be told without its value.
            msg["scale"] = own * self.scale if isinstance(own, Tensor) else self._times(own)

    def _times(self, own: float) -> float | Tensor:
        return self.scaled.setdefault(own, own * self.scale)


def same_scale(first: float | Tensor, second: float | Tensor) -> bool:
    """Return whether two sites are scaled alike, without a look at values if they have the very same tensor."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first is second or torch.equal(first, second)
    return not (isinstance(first, Tensor) or isinstance(second, Tensor)) and first == second


def factors(distribution: Any) -> Any | None:
    """Return the distribution of each latent dimension in the batch shape, or ``None`` if they are dependent."""
    if distribution.event_shape == ():
        return distribution
    independent = isinstance(distribution, torch.distributions.Independent)
    return factors(distribution.base_dist) if independent else None
