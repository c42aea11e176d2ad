"""Latent sites of a model and its guide, side by side, for the diagnostics that compare their densities."""

from collections.abc import Iterator

from torch import Tensor

from pyrovae._waist.sites import Site
from pyrovae._waist.weights import Weights
from pyrovae.evaluation.batches import Batch
from pyrovae.evaluation.problem import Problem

SUMMED_OUT = (
    "the program sums out a discrete latent site, so the draws have no density q(z | x). Sample the site in model and "
    "guide instead of enumerating it."
)


def runs(problem: Problem, batch: Batch, num_samples: int) -> Iterator[Weights]:
    """Yield runs of guide and model: a single run if the draws are vectorized, else one run for each draw."""
    counts = [num_samples] if problem.vectorize else [1] * num_samples
    for count in counts:
        weights = problem.run(batch, count)
        if weights.densities is None:
            raise ValueError(SUMMED_OUT)
        yield weights


def latents_of(sites: list[Site]) -> dict[str, Site]:
    """Return the latent sites of a run by name."""
    return {site["name"]: site for site in sites if not site["is_observed"]}


def pairs(of_guide: dict[str, Site], of_model: dict[str, Site]) -> Iterator[tuple[str, Site, Site]]:
    """Yield three values for each latent site: its name, the site in the guide, and the site in the model."""
    for name, site in of_guide.items():
        if name not in of_model:
            raise ValueError(
                f"latent site {name!r} is auxiliary: it is in the guide but not in the model, so it has no KL "
                f"divergence. Use pyrovae.evaluation.evaluate for a bound on log p(x)."
            )
        yield name, site, of_model[name]


def by_datum(problem: Problem, site: Site, values: Tensor, *, flat: bool = True) -> Tensor:
    """Return a site's values in shape ``(num_draws, n, ...)``; if ``flat``, all further dimensions become one."""
    missing = problem.nesting + 1 - len(site["fn"].batch_shape)
    moved = values.reshape((1,) * missing + values.shape).movedim(problem.data_dim, 1)
    return moved.reshape(*moved.shape[:2], -1) if flat else moved
