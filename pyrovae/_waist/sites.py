"""Properties of the sample sites of a program. Other modules handle the plates and log-probabilities of sites."""

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites, site_is_subsample

Program = Callable[..., Any]
Site = Any  # a Pyro message
CONDITIONED = "_pyrovae_conditioned"  # option of an observed site whose value comes from a handler, not the program


def sample_sites(trace: poutine.Trace) -> list[Site]:
    """Return the sample sites of a run, without the sites at which plates choose their data."""
    return [site for site in prune_subsample_sites(trace).nodes.values() if site["type"] == "sample"]


def is_enumerated(site: Site) -> bool:
    """Return whether a site is latent and has ``infer={"enumerate": "parallel"}``, so that it is summed out."""
    return not site["is_observed"] and site["infer"].get("enumerate") == "parallel"


def is_point(distribution: Any) -> bool:
    """Return whether a distribution puts all of its mass on a point."""
    return isinstance(_base(distribution), dist.Delta)


def is_factor(site: Site) -> bool:
    """Return whether a site is a ``pyro.factor``, a weight without a distribution."""
    return isinstance(site["fn"], dist.Unit)


def factors(distribution: Any) -> Any | None:
    """Convert the event dimensions of a distribution to batch dimensions, and return the result.

    Return None if the entries of an event are not known to be independent.
    """
    if distribution.event_shape == ():
        return distribution
    independent = isinstance(distribution, torch.distributions.Independent)
    return factors(distribution.base_dist) if independent else None


def is_deterministic(site: Site) -> bool:
    """Return whether a site records a value that the program computes: ``pyro.deterministic``, or a computed latent."""
    return bool(site["infer"].get("_deterministic")) or is_computed_latent(site)


def is_computed_latent(site: Site) -> bool:
    """Return whether ``poutine.reparam`` has replaced a latent site by a function of other latent sites.

    Such a site is observed, and its distribution is a ``Delta`` at the observed value itself.
    """
    if not site["is_observed"] or site["infer"].get("_deterministic"):
        return False
    point = _base(site["fn"])
    return isinstance(point, dist.Delta) and point.v.data_ptr() == site["value"].data_ptr()


def _base(distribution: Any) -> Any:
    """Return a distribution without the wrappers that expand, mask or reshape it."""
    while isinstance(
        distribution, dist.ExpandedDistribution | torch.distributions.Independent | dist.MaskedDistribution
    ):
        distribution = distribution.base_dist
    return distribution


class Latents(Messenger):
    """Pyro handler that records a program's latent sites, by name, in the order in which they are sampled."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: dict[str, list[Site]] = {}

    def _pyro_post_sample(self, msg: Any) -> None:
        if not (msg["is_observed"] or site_is_subsample(msg)):
            self.runs.setdefault(msg["name"], []).append(msg)
