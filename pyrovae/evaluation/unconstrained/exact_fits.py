"""A test that finds programs whose likelihood can become very large, because latents fit the data and remove the noise.

Let the scale of an observed site depend on a latent v, as in ``Normal(f(z), v.exp())``. If the other latents z have as
many dimensions as the site has entries, f(z) can equal the data exactly. At the exact fit, the likelihood grows as the
scale falls. If z is integrated out, the likelihood of v hardly depends on small scales. The posterior probability of
small scales is therefore about as large as their prior probability, but it lies in a narrow region at the exact fit.
Neither draws from the guide nor chains show how much posterior probability is there.
"""

import math
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import AffineTransform, TransformedDistribution

from pyrovae._waist.scoring import entry_mask
from pyrovae._waist.sites import Site
from pyrovae.evaluation.batches import Batch
from pyrovae.evaluation.unconstrained.conditional_priors import WRAPPERS, after_affine, location_and_scale
from pyrovae.evaluation.unconstrained.space import Space

NUM_DRAWS, NUM_PRIOR_DRAWS = 16, 1024
MOST_NOISE = 32  # coordinates of the noise that are tested
SMALL = 1 / 3  # a scale is small if it is less than this part of its median under the guide
NEGLIGIBLE = 0.05  # prior probability of small scales that may be missed; the error is then 0.05 nats


class _Entries(NamedTuple):
    """The entries of all observed sites that have a location and a scale, E for each datum.

    Attributes:
        location: Locations, shape ``(num_draws, N, E)``.
        log_scale: Logarithms of the scales, shape ``(num_draws, N, E)``.
        counted: False for masked entries, shape ``(num_draws, N, E)``.
    """

    location: Tensor
    log_scale: Tensor
    counted: Tensor


def can_fit_exactly(space: Space) -> bool:
    """Return true if latents can fit the data exactly while other latents make the noise small.

    The result is false if the prior gives small scales a negligible probability.
    """
    problem, batch = space.problem, space.problem.few()
    most = max(1, problem.affordable // batch.size)
    names = [site["name"] for site in problem.run(batch, amortized=True).model_sites if site["is_observed"]]
    num_draws = min(NUM_DRAWS, most)
    with torch.enable_grad():
        u = space.flatten(problem.draw(batch, num_draws, amortized=True).values).detach().requires_grad_()
        drawn = _entries(space, batch, names, space.values(u)[0], num_draws)
        if drawn is None:
            return False
        is_noise = (_gradient(torch.where(drawn.counted, drawn.log_scale, 0.0).sum(), u) != 0).any(0).any(0)
        if not is_noise.any() or is_noise.all():
            return False
        noise = is_noise.nonzero()[:, 0].tolist()[:MOST_NOISE]
        fits = [_fitted_entries(space, batch, names, u, drawn, j, ~is_noise) for j in noise]
    fitted = torch.stack(fits).any(0)
    return bool(fitted.any()) and bool((fitted & _can_be_small(space, batch, names, drawn, most)).any())


def _fitted_entries(
    space: Space, batch: Batch, names: list[str], u: Tensor, drawn: _Entries, j: int, is_free: Tensor
) -> Tensor:
    """Return a mask of the entries whose scale depends on coordinate j, if the latents can fit all of them exactly.

    The mask has shape ``(N, E)``. It is false for a datum if fewer latents in ``is_free`` move the locations of these
    entries than there are entries.
    """
    moved = u.detach() + torch.eye(space.dim, dtype=u.dtype, device=u.device)[j]
    after = _entries(space, batch, names, space.values(moved)[0], len(u))
    assert after is not None
    changed = ((after.log_scale - drawn.log_scale).detach().abs() > 1e-6) & drawn.counted
    own = changed.any(0)
    slope = _gradient((torch.rand_like(drawn.location) * torch.where(changed, drawn.location, 0.0)).sum(), u)
    num_free = ((slope != 0).any(0) & is_free).sum(-1)
    return own & (num_free >= own.sum(-1))[:, None]


def _can_be_small(space: Space, batch: Batch, names: list[str], drawn: _Entries, most: int) -> Tensor:
    """Return a mask of the entries for which the prior probability of a small scale is not negligible, ``(N, E)``."""
    counts = [min(most, NUM_PRIOR_DRAWS - done) for done in range(0, NUM_PRIOR_DRAWS, most)]
    found = [_entries(space, batch, names, {}, count) for count in counts]
    prior = torch.cat([entries.log_scale for entries in found if entries is not None])
    limit = drawn.log_scale.detach().median(0).values + math.log(SMALL)
    return (prior < limit).double().mean(0) > NEGLIGIBLE


def _entries(
    space: Space, batch: Batch, names: list[str], values: dict[str, Tensor], num_draws: int
) -> _Entries | None:
    """Run the model, and return the entries of the given observed sites, or None if none has a location and a scale.

    The latents have the given values. Latents without a value are drawn from their prior.
    """
    runs = space.problem.route.priors(batch, values, num_draws, names)
    found = []
    for name in names:
        parts = [_of_site(space, run[name], num_draws) for run in runs if name in run]
        kept = [part for part in parts if part is not None and part[0].shape[space.problem.data_dim] == batch.size]
        if len(kept) == len(runs):
            columns = [torch.cat(column).movedim(space.problem.data_dim, 1) for column in zip(*kept, strict=True)]
            found.append([column.reshape(num_draws, batch.size, -1) for column in columns])
    return _Entries(*(torch.cat(column, -1) for column in zip(*found, strict=True))) if found else None


def _of_site(space: Space, site: Site, num_draws: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return location, log-scale and mask of a site in its full shape, or None for a site without these."""
    pair, nesting = _location_and_scale(site["fn"]), space.problem.nesting
    batch_shape, event_shape = site["fn"].batch_shape, site["fn"].event_shape
    if pair is None or len(batch_shape) > nesting + space.problem.vectorize:
        return None
    padded = (1,) * (nesting + 1 - len(batch_shape)) + tuple(batch_shape)
    shape = (num_draws if space.problem.vectorize else 1, *padded[1:], *event_shape)
    mask = torch.as_tensor(entry_mask(site), device=pair[0].device)
    return pair[0].expand(shape), pair[1].log().expand(shape), mask.expand(shape)


def _location_and_scale(distribution: Any) -> tuple[Tensor, Tensor] | None:
    """Return location and scale before the first transform that is not affine, or None for a distribution without them.

    If the latents can fit the data exactly before such transforms, they can do so after them.
    """
    if (found := location_and_scale(distribution)) is not None:
        return found
    while isinstance(distribution, WRAPPERS):
        distribution = distribution.base_dist
    if not isinstance(distribution, TransformedDistribution):
        location, scale = getattr(distribution, "loc", None), getattr(distribution, "scale", None)
        return (location, scale) if isinstance(location, Tensor) and isinstance(scale, Tensor) else None
    found = _location_and_scale(distribution.base_dist)
    affine = takewhile(lambda transform: isinstance(transform, AffineTransform), distribution.transforms)
    return None if found is None else after_affine(*found, affine)


def _gradient(value: Tensor, u: Tensor) -> Tensor:
    """Return the gradient of a value with respect to u; zero if the value does not depend on u."""
    if not value.requires_grad:
        return torch.zeros_like(u)
    options: Any = {"allow_unused": True, "materialize_grads": True, "retain_graph": True}
    (gradient,) = torch.autograd.grad(value, u, **options)
    return gradient
