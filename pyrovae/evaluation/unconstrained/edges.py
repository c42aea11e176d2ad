r"""Search for draws that rounding has moved to the edge of a support.

A value of a latent between 0 and 1 cannot come closer to 1 than 6e-8 in single precision. PyTorch replaces all draws
that would come closer, or would equal 0 or 1, by one value at the edge. If many draws end there, the edge has a
probability, but the programs score the draws by a density. The weight of these draws is then a ratio of two densities
at the edge instead of a ratio of two probabilities. The estimate of log p(x) is wrong by any amount, in both
directions, and nearly equal weights hide the error. Concrete distributions of low temperature, and beta and gamma
distributions with small parameters, have such draws.

In continuous coordinates, draws repeat a value only by rounding. A draw is therefore said to be rounded if several
draws share the smallest or the largest value of a coordinate. The search draws from the guide and from the prior. It
measures how much of p(x) comes from rounded draws.
"""

import math
import warnings

import torch
from torch import Tensor

from pyrovae._waist.support import is_real
from pyrovae._warnings import find_stack_level
from pyrovae.evaluation.problem import Problem
from pyrovae.evaluation.unconstrained.flat import target_of
from pyrovae.evaluation.unconstrained.space import Space
from pyrovae.evaluation.unconstrained.target import Target
from pyrovae.isolation import seeded

NUM_DRAWS = 256  # draws from the guide, and as many from the prior
FEWEST = 4  # draws that must share an extreme value
NEGLIGIBLE = 0.02  # part of p(x) that may come from rounded draws
ADVICE = (
    "rounding moves many draws of latent site {site!r} to the edge of its support, where densities do not give "
    "probabilities, so estimates of log p(x) can be wrong. Describe the site by coordinates without an edge, such as "
    "the logit of a value between 0 and 1, or choose a distribution with less probability near the edge."
)


def rounded_sites(target: Target, level: Tensor, *, with_prior: bool) -> dict[str, Tensor]:
    """Return, for each latent site by name, a mask of the data for which rounded draws of the site matter.

    The masks have shape ``(N,)``.

    Args:
        target: Posteriors of N data, with the guide.
        level: Log of the mean weight of draws from the guide, shape ``(N,)``, nats; may be NaN.
        with_prior: If true, draws from the prior are tested too, unless the model raises an error at these draws.
    """
    level = level.double().cpu().nan_to_num(nan=-math.inf, posinf=-math.inf)
    u, log_q = target.draw(NUM_DRAWS)
    found = _share(u, target.log_joint(u) - log_q, level) > NEGLIGIBLE
    if with_prior:
        found |= _by_prior(target, level)
    sizes = [math.prod(shape) for shape in target.space.shapes.values()]
    return {name: part.any(-1) for name, part in zip(target.space.shapes, found.split(sizes, -1), strict=True)}


def _by_prior(target: Target, level: Tensor) -> Tensor:
    """Return a mask of the coordinates for which rounded draws from the prior matter, shape ``(N, D)``."""
    try:
        u, log_prior = target.draw_prior(NUM_DRAWS)
        return _share(u, target.log_joint(u) - log_prior, level) > NEGLIGIBLE
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception:  # a program may raise any error at values that the guide never draws
        return torch.zeros(target.size, target.dim, dtype=torch.bool)


def cost_of_rounded_sites(*, with_prior: bool) -> int:
    """Return the number of evaluations of log p(x, u) per datum in :func:`rounded_sites`."""
    return (1 + with_prior) * NUM_DRAWS


def warn_of_rounding(problem: Problem) -> None:
    """Warn if rounded draws matter for the first data of a problem.

    The programs run once. Further runs follow only if a latent site has a support other than all real numbers.
    """
    with seeded(problem.seed):  # the draws of a batch must not depend on this test
        batch = problem.few()
        weights = problem.run(batch, amortized=True)
        if all(site["is_observed"] or is_real(site["fn"]) for site in weights.model_sites):
            return
        try:
            space = Space(problem)
        except ValueError:  # discrete or periodic latents, point estimates, and random guides have no coordinates
            return
        level = torch.full((batch.size,), math.nan)
        found = rounded_sites(target_of(space, batch), level, with_prior=space.has_prior)
    if names := [name for name, mask in found.items() if mask.any()]:
        warnings.warn(ADVICE.format(site=names[0]), stacklevel=find_stack_level())


def _share(u: Tensor, log_weights: Tensor, level: Tensor) -> Tensor:
    """Return the fraction of p(x) that comes from rounded values of each coordinate, shape ``(N, D)``.

    The weight of a draw at the edge can be infinite or NaN. It then counts as much as the mean weight.
    """
    log_weights = log_weights.double().cpu()
    is_known = log_weights < math.inf
    log_weights = torch.where(is_known, log_weights, -math.inf)
    total = torch.maximum(log_weights.logsumexp(0) - math.log(len(u)), level)
    weights = torch.where(is_known, (log_weights - total.nan_to_num(neginf=0.0)).exp(), 1.0) / len(u)
    shares = []
    for extreme in (u.amin(0), u.amax(0)):
        shared = (u == extreme).cpu()
        mass = torch.einsum("snd,sn->nd", shared.double(), weights)
        shares.append(torch.where(shared.sum(0) >= FEWEST, mass, 0.0))
    return torch.maximum(*shares)
