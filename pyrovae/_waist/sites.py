"""Sample sites of a model and its guide: run together, checked against each other, scored one by one."""

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
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

Program = Callable[..., Any]
Site = Any  # a Pyro message


def trace(
    model: Program, guide: Program, args: Sequence[Any], kwargs: Mapping[str, Any], depth: int | None = None
) -> tuple[list[Site], list[Site]]:
    """Runs the guide, then the model on the guide's draws, and returns the sample sites of model and guide.

    With a depth, sites that ask for it are enumerated along dimensions to the left of so many plates.
    """
    if depth is not None:
        guide, model = poutine.enum(guide, first_available_dim=-depth - 1), poutine.enum(model)  # left of the guide's
    with _told_of_divergence():
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
    return sample_sites(model_trace), sample_sites(guide_trace)


@contextmanager
def _told_of_divergence() -> Iterator[None]:
    """Says what it means that a distribution refuses parameters which are no numbers.

    Raises:
        FloatingPointError: Instead of the distribution's error.
    """
    try:
        yield
    except ValueError as error:
        pattern = r"Expected parameter (\w+) .*? of distribution (\w+)\(.* found invalid values:(.*)"
        refused = re.search(pattern, str(error), flags=re.DOTALL)
        if not (refused and re.search(r"\b(nan|inf)\b", refused[3])):
            raise
        raise FloatingPointError(
            f"the model has diverged: {refused[1]} of a {refused[2]} is NaN or infinite; look at the parameters of the "
            f"module and at its history, and go back to weights from before that, such as a checkpoint's"
        ) from error


def check_program(model: Program, guide: Program, args: Sequence[Any]) -> CondIndepStackFrame:
    """Runs guide and model once with validation on and returns the outermost plate of the observed sites.

    Latents outside that plate, and latents that the model enumerates, are no fault of a program that is to be trained.

    Raises:
        ValueError: If model and guide disagree about their latent sites, no plate holds the observed sites, or a value
            lies outside the support of its distribution.
    """
    with pyro.validation_enabled():
        model_sites, guide_sites = trace(model, guide, args, {})
        check_same_latents(model_sites, guide_sites)
        for site in model_sites + guide_sites:
            score(site)
    observed = [site for site in model_sites if site["is_observed"]]
    return outermost_plate([site for site in observed if site_plates(site)] or observed)


def global_draws(model: Program, guide: Program, args: Sequence[Any], *, plate: str | None = None) -> dict[str, Tensor]:
    """Draws the latent sites that lie outside the data plate.

    Raises:
        ValueError: If there are none.
    """
    model_sites, guide_sites = trace(model, guide, args, {})
    name = plate or outermost_plate([site for site in model_sites if site["is_observed"] and site_plates(site)]).name
    latents = [site for site in guide_sites if not site["is_observed"]]
    outside = [site for site in latents if name not in {frame.name for frame in site_plates(site)}]
    if not outside:
        raise ValueError(
            f"all latent sites, {[site['name'] for site in latents]}, lie inside the data plate {name!r}; there is no "
            f"global latent to average over: use pyrovae.evaluation.evaluate"
        )
    return {site["name"]: site["value"].detach() for site in outside}


def latent_draws(guide: Program, args: Sequence[Any]) -> dict[str, Tensor]:
    """Runs the guide once and returns the draws of each latent site in its outermost plate, shape ``(N, units)``."""
    draws = {}
    for site in sample_sites(poutine.trace(guide).get_trace(*args)):
        if not (site["is_observed"] or is_enumerated(site)) and (frames := site_plates(site)):
            dim = frames[0].dim - site["fn"].event_dim
            value = site["value"].movedim(dim, 0)
            draws[site["name"]] = value.reshape(len(value), -1).double()
    return draws


def site_plates(site: Site) -> list[Any]:
    """A site's vectorized plates, outermost first."""
    return [frame for frame in site["cond_indep_stack"] if frame.vectorized and frame.name != "_pyrovae_draws"]


def is_enumerated(site: Site) -> bool:
    """Whether a site asks to be summed out over all of its values."""
    return not site["is_observed"] and site["infer"].get("enumerate") == "parallel"


def check_same_latents(model_sites: list[Site], guide_sites: list[Site]) -> None:
    """Checks that model and guide have the same latent sites, but for enumerated and auxiliary ones.

    Raises:
        ValueError: If they do not, or a site asks for parallel draws.
    """
    for site in filter(is_enumerated, model_sites + guide_sites):
        if site["infer"].get("num_samples") is not None:
            raise ValueError(
                f"latent site {site['name']!r} asks for {site['infer']['num_samples']} parallel samples, which is no "
                f"sum over its values; enumerate it, infer={{'enumerate': 'parallel'}}, or draw it"
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


def _check_points(model_sites: list[Site], guide_sites: list[Site]) -> None:
    """Refuses a guide without a density: all mass on a point where the model has a density, and nothing else drawn."""
    if any(site["infer"].get("is_auxiliary") for site in guide_sites):
        return  # an autoguide computes such points from what it draws
    of_model = {site["name"]: site["fn"] for site in model_sites if not site["is_observed"]}
    for site in guide_sites:
        given = site["is_observed"] or site["infer"].get("_pyrovae_given")
        if not given and is_point(site["fn"]) and not is_point(of_model.get(site["name"], site["fn"])):
            raise ValueError(
                f"the guide puts all mass of latent site {site['name']!r} on a point, a maximum a posteriori estimate, "
                f"so its draws have no density and no weights; sample it, or condition the model on its value"
            )


def is_point(distribution: Any) -> bool:
    """Whether a distribution has all of its mass on a point."""
    while isinstance(distribution, dist.ExpandedDistribution | torch.distributions.Independent):
        distribution = distribution.base_dist
    return isinstance(distribution, dist.Delta)


def shared_plates(sites: list[Site]) -> list[CondIndepStackFrame]:
    """The plates that all sites are in, outermost first."""
    return [frame for frame in site_plates(sites[0]) if all(frame in site["cond_indep_stack"] for site in sites)]


def outermost_plate(sites: list[Site]) -> CondIndepStackFrame:
    """The outermost plate that all sites are in.

    Raises:
        ValueError: If there is none.
    """
    if not sites:
        raise ValueError("the model observes nothing; pass the data with pyro.sample(name, distribution, obs=x)")
    if not (shared := shared_plates(sites)):
        raise ValueError(
            f"there is no data plate around the observed sites {[site['name'] for site in sites]}; declare the data "
            f"independent with a vectorized plate, `with pyro.plate('data', len(x)):`"
        )
    return shared[0]


def score(site: Site) -> Tensor:
    """Unscaled log-probability of a site, shape: its batch shape."""
    try:
        log_prob: Tensor = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    except ValueError as error:
        raise ValueError(_outside_support(site, " ".join(str(error).split())[:200])) from error
    if is_validation_enabled():
        event_shape = site["fn"].event_shape
        if site["value"].shape[site["value"].ndim - len(event_shape) :] != event_shape:
            raise ValueError(
                f"site {site['name']!r}: a value of shape {tuple(site['value'].shape)} would be broadcast to the event "
                f"shape {tuple(event_shape)} of its distribution; give model, guide and data the same event shape"
            )
        checked: Any = {**site, "log_prob": log_prob}
        plates = [-frame.dim for frame in site["cond_indep_stack"] if frame.vectorized]
        enumerated = site["infer"].get("_dim_to_id")  # dimensions to the left of all plates
        check_site_shape(checked, max_plate_nesting=max(plates, default=0) if enumerated else sys.maxsize)
    return log_prob


def _outside_support(site: Site, reason: str) -> str:
    """What a distribution's refusal means and how to answer it."""
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


def sample_sites(trace: poutine.Trace) -> list[Site]:
    """The sample sites of a run, without the choices of subsampling plates."""
    return [site for site in prune_subsample_sites(trace).nodes.values() if site["type"] == "sample"]


class Latents(Messenger):
    """Keeps the messages of latent sites by name, in the order of the runs: the guide's, then the model's."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: dict[str, list[Site]] = {}

    def _pyro_post_sample(self, msg: Any) -> None:
        if not (msg["is_observed"] or site_is_subsample(msg)):
            self.runs.setdefault(msg["name"], []).append(msg)


class LatentScale(Messenger):
    """Multiplies the log-probabilities of latent sites in model and guide; unlike Pyro's scale, by 0 too."""

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
    """Whether two sites are scaled alike; told without values where they have the very same tensor."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first is second or torch.equal(first, second)
    return not (isinstance(first, Tensor) or isinstance(second, Tensor)) and first == second


def factors(distribution: Any) -> Any | None:
    """The distribution of each latent dimension, all in the batch shape; None where they are not independent."""
    if distribution.event_shape == ():
        return distribution
    independent = isinstance(distribution, torch.distributions.Independent)
    return factors(distribution.base_dist) if independent else None
