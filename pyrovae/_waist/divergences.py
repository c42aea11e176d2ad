"""The KL divergence of a latent site's posterior from its prior, dimension by dimension where these are independent."""

from collections.abc import Sequence
from typing import Any

from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import kl_divergence

from pyrovae._waist.sites import Site, factors


def is_mean_field(name: str, model_order: Sequence[str], guide_order: Sequence[str]) -> bool:
    """Whether the guide draws nothing after a site that the model has drawn before it, and may have used for it.

    Where it does, as in a bottom-up guide, the prior of the site depends on draws that depend on the site's own, and
    the mean of log q - log p is not the divergence of the two distributions.
    """
    later = guide_order[guide_order.index(name) + 1 :]
    return not set(later) & set(model_order[: model_order.index(name)])


def divergence(q: Site, p: Site, *, exact: bool) -> Tensor:
    """KL(q || p), by its closed form if that is exact and known, else log q - log p at the draw.

    Args:
        q: The guide's site.
        p: The model's.
        exact: Whether the closed form is what the ELBO has in the mean.

    Returns:
        Nats, in the site's batch shape, and to the right of it one number for each independent dimension, if both have
        independent ones. Zero where the site is masked.
    """
    q_fn, p_fn = factors(q["fn"]), factors(p["fn"])
    if q_fn is None or p_fn is None:
        q_fn, p_fn = q["fn"], p["fn"]
    kl = _closed_form(q_fn, p_fn) if exact else None
    if kl is None:
        kl = q_fn.log_prob(q["value"]) - p_fn.log_prob(q["value"])
    mask, units = q["mask"], len(q_fn.batch_shape) - len(q["fn"].batch_shape)
    if isinstance(mask, Tensor):
        mask = mask.reshape(mask.shape + (1,) * units)
    return scale_and_mask(kl, mask=mask).expand(q_fn.batch_shape)


def _closed_form(q: Any, p: Any) -> Tensor | None:
    """KL(q || p) if torch knows it for these two distributions."""
    try:
        return kl_divergence(q, p)
    except NotImplementedError:  # as torch says that it has no closed form
        return None
