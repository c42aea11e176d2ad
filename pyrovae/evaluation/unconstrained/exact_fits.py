"""A test that finds programs whose likelihood can become very large, because latents fit the data and remove the noise.

Let the scale of an observed site depend on a latent v, as in ``Normal(f(z), v.exp())``. If the other latents z have as
many dimensions as the site has entries, f(z) can equal the data exactly. At the exact fit, the likelihood is the larger
the smaller the scale is. If z is integrated out, the likelihood of a small scale does not depend on the scale. The
posterior probability of small scales is therefore about as large as their prior probability, but it lies in a narrow
region at the exact fit. Neither draws from the guide nor chains show how much posterior probability is there.
"""

import math

import torch
from torch import Tensor

from pyrovae.evaluation.batches import Batch
from pyrovae.evaluation.unconstrained.conditional_priors import location_and_scale
from pyrovae.evaluation.unconstrained.space import Space

NUM_DRAWS = 256
SMALL = 1 / 3  # a scale is small if it is less than this part of its median under the guide
NEGLIGIBLE = 0.02  # prior probability of small scales that may be missed


def can_fit_exactly(space: Space) -> bool:
    """Return true if latents can fit the data exactly while other latents make the noise small.

    Programs whose prior gives small scales a negligible probability are left out.
    """
    batch = space.problem.few()
    num_draws = max(1, min(NUM_DRAWS, space.problem.affordable // batch.size))
    with torch.enable_grad():
        u = space.flatten(space.problem.draw(batch, num_draws, amortized=True).values).detach().requires_grad_()
        drawn = _log_scales(space, batch, space.values(u)[0], num_draws)
        slopes = {name: _gradient(log_scale, u) for name, log_scale in drawn.items()}
    varying = [name for name, slope in slopes.items() if slope.any()]
    if not varying:
        return False
    num_noise = int(torch.stack([slopes[name] for name in varying]).any(0).any(0).any(0).sum())
    num_entries = sum(drawn[name].numel() for name in varying) // (num_draws * batch.size)
    if space.dim - num_noise < num_entries:
        return False
    prior = _log_scales(space, batch, {}, num_draws)
    limits = {name: drawn[name].detach().median() + math.log(SMALL) for name in varying}
    return any(float((prior[name] < limits[name]).float().mean()) > NEGLIGIBLE for name in varying)


def _log_scales(space: Space, batch: Batch, values: dict[str, Tensor], num_draws: int) -> dict[str, Tensor]:
    """Return the logarithms of the scales of each observed site that has scales, as a vector for each site.

    The latents have the given values. Latents without a value are drawn from their prior.
    """
    sites = space.problem.run(batch, amortized=True).model_sites
    names = [site["name"] for site in sites if site["is_observed"]]
    scales: dict[str, list[Tensor]] = {}
    for run in space.problem.route.priors(batch, values, num_draws, names):
        for name, site in run.items():
            if (found := location_and_scale(site["fn"])) is not None:
                scales.setdefault(name, []).append(found[1].flatten())
    return {name: torch.cat(parts).log() for name, parts in scales.items()}


def _gradient(log_scale: Tensor, u: Tensor) -> Tensor:
    """Return the gradient of the sum of log-scales with respect to u; zero if they do not depend on u."""
    if not log_scale.requires_grad:
        return torch.zeros_like(u)
    (gradient,) = torch.autograd.grad(log_scale.sum(), u, allow_unused=True, materialize_grads=True)
    return gradient
