"""Log-densities of the guide's draws under model and guide, from which log-weights are computed."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from pyrovae._waist.agreement import check_masks
from pyrovae._waist.draws import Draws, run_model
from pyrovae._waist.plates import dim_of, plate_names
from pyrovae._waist.scoring import masked_score
from pyrovae._waist.sites import Program, is_enumerated
from pyrovae._waist.summation import device_of, sum_per_datum


class Densities(NamedTuple):
    r"""The three terms of a log-weight, :math:`\log w = \log p(x \mid z) + \log p(z) - \log q(z \mid x)`.

    Attributes:
        likelihood: Log-density of the observed sites, shape ``(num_draws, N)``, nats.
        prior: Log-density of the model's latent sites, shape ``(num_draws, N)``, nats.
        guide: Log-density of the guide's sites, shape ``(num_draws, N)``, nats.
    """

    likelihood: Tensor
    prior: Tensor
    guide: Tensor


def log_joint(
    model: Program,
    args: Sequence[Any],
    values: Mapping[str, Tensor],
    num_draws: int,
    *,
    plate: CondIndepStackFrame,
    nesting: int | None,
    kwargs: Mapping[str, Any] | None = None,
    masks: Mapping[str, Any] | None = None,
) -> Tensor:
    """Run the model at values of its latent sites and return log p(x, z), shape ``(num_draws, N)``, nats.

    The guide must not enumerate sites, and the programs must have passed the checks of :func:`importance_weights`.

    Args:
        model: Pyro program of p(x, z).
        args: Arguments of the model, which include the data.
        values: By name, the values of the latent sites and the indices of the subsampling plates.
        num_draws: Number of draws in the values.
        plate: The data plate, with the number of data in the arguments as its size.
        nesting: Nesting depth of the program's own plates, or ``None`` for values without a dimension of draws.
        kwargs: Keyword arguments of the model.
        masks: Masks of the guide's latent sites, by name. The masks of the model must be the same. ``None`` skips this
            check.

    Raises:
        ProgramError: If the mask of a latent site differs from its mask in the guide.
    """
    sites = run_model(model, args, values, num_draws, kwargs=kwargs, nesting=nesting)
    if masks is not None:
        check_masks(sites, masks)
    inside = [site for site in sites if plate.name in plate_names(site)]
    draws_dim = None if nesting is None else -nesting - 1
    terms = [(site, masked_score(site)) for site in inside]
    if any(map(is_enumerated, inside)):
        return sum_per_datum(terms, draws_dim, dim_of(plate)).expand(num_draws, plate.size)
    likelihood, prior = (
        sum_per_datum(part, draws_dim, dim_of(plate), device_of(terms))
        for part in ([term for term in terms if term[0]["is_observed"] == observed] for observed in (True, False))
    )
    return joint_density(likelihood, prior).expand(num_draws, plate.size)


def log_guide(draws: Draws, plate: CondIndepStackFrame, device: torch.device | None = None) -> Tensor:
    """Return log q(z | x) of a guide's draws, shape ``(num_draws, N)``, nats; the guide must not enumerate sites.

    If the guide has no latent sites, the result is a tensor of zeros on ``device``.
    """
    latents = [site for site in draws.latents.values() if plate.name in plate_names(site)]
    terms = [(site, masked_score(site)) for site in latents]
    return sum_per_datum(terms, draws.draws_dim, dim_of(plate), device).expand(draws.num_draws, plate.size)


def joint_density(likelihood: Tensor, prior: Tensor) -> Tensor:
    """Return log p(x | z) + log p(z), nats. If log p(z) is -inf, the sum is -inf too, even if log p(x | z) is NaN."""
    return torch.where(prior == -math.inf, prior, likelihood + prior)
