"""The log-probability of one site, with its mask."""

import math
import sys
from functools import reduce
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.util import scale_and_mask
from pyro.infer.util import is_validation_enabled
from pyro.util import check_site_shape
from torch import Tensor

from pyrovae._waist.errors import OutsideSupportError, outside_support
from pyrovae._waist.plates import DRAWS
from pyrovae._waist.sites import Site, is_enumerated
from pyrovae._waist.support import has_varying_support, inside_support, moved_inside


def score(site: Site, *, strict: bool = False) -> Tensor:
    """Return the unscaled log-probability of a site, in its batch shape, nats.

    The log-probability is -inf if a latent site is given a value outside its support. It is also -inf if an observed
    value lies outside a support that depends on latent sites, such as the support of a binomial distribution with a
    latent count.

    Args:
        site: A site of a run.
        strict: If true, also raise an error for an observed value outside a support that depends on latent sites.

    Raises:
        ValueError: If Pyro's validation is on, and a value has a wrong event shape, or an observed value lies outside a
            support that does not depend on latent sites.
    """
    fn, value, inside = site["fn"], site["value"], site["infer"].get("_pyrovae_inside")
    if site["is_observed"] and not strict and has_varying_support(fn):
        value, inside = moved_inside(fn, _counted_value(site))
    try:
        log_prob: Tensor = fn.log_prob(value, *site["args"], **site["kwargs"])
    except ValueError as error:
        raise OutsideSupportError(outside_support(site, " ".join(str(error).split())[:200])) from error
    if is_validation_enabled():
        _check_shapes(site, log_prob)
    return log_prob if inside is None else torch.where(inside, log_prob, -torch.inf)


def masked_score(site: Site) -> Tensor:
    """Return the log-probability of a site with the site's mask applied, in the site's batch shape, nats.

    The mask of an enumerated site is ignored, as in :class:`pyro.infer.TraceEnum_ELBO`. The site is summed out, and the
    sum needs the probabilities of the site's values, because unmasked sites may depend on these values. If no other
    site depends on the values, the enumerated site contributes nothing, because its probabilities sum to one.
    """
    if is_enumerated(site) and "_enumerate_dim" in site["infer"]:
        return score({**site, "fn": _without_mask(site["fn"])})
    return scale_and_mask(score(site), mask=site["mask"])


def _without_mask(fn: Any) -> Any:
    """Return a distribution with the batch shape of ``fn``, without the masks that the method ``mask`` has added."""
    if isinstance(fn, dist.MaskedDistribution):
        return _without_mask(fn.base_dist).expand(fn.batch_shape)
    if not hasattr(fn, "base_dist") or (inner := _without_mask(fn.base_dist)) is fn.base_dist:
        return fn
    if isinstance(fn, torch.distributions.Independent):
        return inner.to_event(fn.reinterpreted_batch_ndims)
    return inner.expand(fn.batch_shape) if isinstance(fn, dist.ExpandedDistribution) else fn


def mask_of(site: Site) -> Any:
    """Return the mask of a site, combined from handlers and distribution, in the site's batch shape.

    If the site has no mask, the result is the value ``True``. A mask of single entries of an event is left out, because
    it does not mask the whole event.
    """
    mask: Any = True if site["mask"] is None else site["mask"]
    fn = site["fn"]
    batch = fn.batch_shape
    while hasattr(fn, "base_dist"):
        if isinstance(fn, dist.MaskedDistribution) and len(fn.batch_shape) == len(batch):
            mask = torch.as_tensor(fn._mask) & torch.as_tensor(mask).to(torch.as_tensor(fn._mask).device)
        fn = fn.base_dist
    return mask


def is_outside(site: Site, data_dim: int, nesting: int) -> Tensor:
    """Return, for each datum, whether its observed value is outside the site's support, shape ``(N,)``.

    The support may depend on latent sites. If there are enumerated sites, a datum counts as outside only if it is
    outside for all values of these sites. Masked values count as inside.

    Args:
        site: Observed site of a run with one draw.
        data_dim: Dimension of the data plate, counted from the right.
        nesting: Nesting depth of the program's own plates.
    """
    inside = inside_support(site["fn"], _counted_value(site))
    assert inside is not None
    inside = inside.reshape((1,) * (nesting - inside.ndim) + inside.shape)
    by_datum = inside.movedim(data_dim, -1)  # dimensions: enumerated sites, other plates, data
    enumerated = by_datum.ndim - nesting
    flat = by_datum.reshape(-1, max(1, math.prod(by_datum.shape[enumerated:-1])), by_datum.shape[-1])
    return ~flat.all(1).any(0)


def _counted_value(site: Site) -> Tensor:
    """Return the value of an observed site, expanded to the shape of its distribution.

    Entries that a mask leaves out are replaced by draws from the distribution, which lie in its support.
    """
    fn, value, mask = site["fn"], site["value"], entry_mask(site)
    value = value.expand(torch.broadcast_shapes(value.shape, fn.shape()))
    return value if mask is True else torch.where(torch.as_tensor(mask, device=value.device), value, fn.sample())


def entry_mask(site: Site) -> Any:
    """Return the mask of each entry of a site, or True if the site has no mask.

    Masks of handlers and masks of the distribution are combined. Unlike the result of :func:`mask_of`, this mask has
    the event dimensions, so it can vary within an event.
    """
    fn = site["fn"]
    masks = [] if site["mask"] is None else [_with_event(site["mask"], fn.event_dim)]
    level = fn
    while hasattr(level, "base_dist"):
        if isinstance(level, dist.MaskedDistribution):
            masks.append(_with_event(level._mask, fn.event_dim - len(level.batch_shape) + len(fn.batch_shape)))
        level = level.base_dist
    masks = [mask for mask in masks if mask is not True]
    return reduce(lambda first, second: first & second.to(first.device), map(torch.as_tensor, masks)) if masks else True


def _with_event(mask: Any, event_dim: int) -> Any:
    return mask.reshape(mask.shape + (1,) * event_dim) if isinstance(mask, Tensor) and mask.ndim else mask


def _check_shapes(site: Site, log_prob: Tensor) -> None:
    event_shape = site["fn"].event_shape
    if site["value"].shape[site["value"].ndim - len(event_shape) :] != event_shape:
        raise ValueError(
            f"site {site['name']!r}: a value of shape {tuple(site['value'].shape)} would be broadcast to the event "
            f"shape {tuple(event_shape)} of its distribution. Give model, guide and data the same event shape."
        )
    enumerated = site["infer"].get("_dim_to_id")  # dimensions to the left of all plates
    # All draws of an enumerated site may share their values, so the dimension of draws is not checked.
    stack = [frame for frame in site["cond_indep_stack"] if not (enumerated and frame.name == DRAWS)]
    checked: Any = {**site, "log_prob": log_prob, "cond_indep_stack": tuple(stack)}
    plates = [-frame.dim for frame in stack if frame.vectorized]
    check_site_shape(checked, max_plate_nesting=max(plates, default=0) if enumerated else sys.maxsize)
