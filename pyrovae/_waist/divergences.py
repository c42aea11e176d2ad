"""KL divergence of a latent site's posterior from its prior, for each dimension if the dimensions are independent."""

from collections.abc import Sequence
from typing import Any

from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import kl_divergence

from pyrovae._waist.sites import Site, factors


def is_mean_field(name: str, model_order: Sequence[str], guide_order: Sequence[str]) -> bool:
    """Return whether the prior of a site depends only on sites that the guide draws before it.

    A bottom-up guide violates this condition: it draws z1 and then z2 given z1, but the prior of z1 is p(z1 | z2). The
    KL divergence of q(z1 | x) from p(z1 | z2) averages over z1 at a fixed z2. In the draws, however, z2 depends on z1.
    The mean of log q(z1 | x) - log p(z1 | z2) over the draws therefore differs from the mean of this divergence.
    """
    later = guide_order[guide_order.index(name) + 1 :]
    return not set(later) & set(model_order[: model_order.index(name)])


def divergence(q: Site, p: Site, *, exact: bool) -> Tensor:
    """Return the KL divergence of a latent site's posterior from its prior, or log q - log p at the draw.

    The difference log q - log p is returned if ``exact`` is false, or if torch has no closed form of the divergence.

    Args:
        q: Latent site of the guide.
        p: The same site of the model.
        exact: True if the KL divergence may replace log q - log p, because both have the same mean over the guide's
            draws; see :func:`is_mean_field`.

    Returns:
        Divergences in nats, in the site's batch shape. If the latent dimensions of q and p are independent, an
        additional last dimension of the tensor holds one divergence for each latent dimension. Entries that the
        guide's mask leaves out are zero.
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
    """Return KL(q || p) if torch has a closed form for these two distributions, else None."""
    try:
        return kl_divergence(q, p)
    except NotImplementedError:  # torch has no closed form
        return None
