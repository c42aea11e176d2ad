r"""Calibration of a guide's posterior, tested by the ranks of true latents among draws of the guide.

Simulate :math:`z \sim p(z)` and :math:`x' \sim p(x \mid z)`. Then draw L values from the guide,
:math:`z^{(1)}, \dots, z^{(L)} \sim q(z \mid x')`. In each latent dimension (unit), the true z has the rank

.. math:: r = \sum_{l=1}^L 1[z^{(l)} < z]

among the draws. If q is the posterior, the rank is uniform on 0, ..., L. If q is too narrow, the ranks pile up at both
ends; if q is too wide, they pile up in the middle; if q is shifted, they pile up at one end.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch
from torch import Tensor

from pyrovae._waist.sites import Program
from pyrovae.evaluation.batches import Batch
from pyrovae.evaluation.options import Options
from pyrovae.evaluation.pairs import takes_vae
from pyrovae.evaluation.posterior.summed_out import GuideDraws
from pyrovae.evaluation.problem import Problem
from pyrovae.evaluation.report import report
from pyrovae.evaluation.simulation import simulate

if TYPE_CHECKING:
    import xarray as xr

MASKED = -1  # rank of a latent that is masked for a datum, while the ranks are collected


@takes_vae
def simulation_based_calibration(
    model: Program,
    guide: Program,
    x: Any,
    num_draws: int = 99,
    *,
    num_simulations: int = 1000,
    **options: Unpack[Options],
) -> "xr.Dataset":
    """Rank the true latents of simulated data among the guide's draws for these data.

    The test judges the guide's posterior on data that the model generates, not on the training data. The guide must be
    amortized: it must accept any data, and must not have separate parameters for each datum. A unit is
    an entry of a latent site. The ranks of each unit are tested separately, so the test does not show whether the
    guide's dependence between units is right. Sites that the guide enumerates are sampled instead.

    Args:
        model: Pyro program of p(x, z), called as ``model(x)``, or ``model(*x)`` if ``x`` is a tuple.
        guide: Pyro program of q(z | x), called with the same arguments.
        x: Template of the data, shape ``(N, *event)``, or a tuple of tensors that share the first dimension. Simulated
            data replace the arguments that the model observes. The model and the guide get the other arguments
            unchanged. If there are more simulations than data, the arguments are used repeatedly.
        num_draws: Number of draws of the guide for each simulated datum, L.
        num_simulations: Number of simulated data.
        **options: Keyword arguments of :class:`Options`.

    Returns:
        Dataset that holds for each latent site, say ``z``:

        * ``z``: ranks from 0 to L, over ``simulation`` and ``z_unit``. Ties, which occur for discrete latents, are
          broken at random. If a site is masked for a datum, its ranks are NaN;
        * ``z_p_value``: p-value of a chi-squared test of uniform ranks, over ``z_unit``. About one in a hundred units
          of a calibrated guide has a p-value below 0.01. The p-value is NaN if fewer than 40 simulations have a
          rank.

    Raises:
        TypeError: For the reasons listed at :func:`log_weights`.
        ValueError: For the reasons listed at :func:`log_weights`; if ``num_draws`` is less than 1 or
            ``num_simulations`` less than 50; if the model has a ``pyro.factor`` or observes a value that is not a view
            or copy of one of its arguments; or if the guide is a :class:`pyrovae.guides.Refined`, because a refined
            guide is wider than the posterior.

    Source:
        *Validating Bayesian Inference Algorithms with Simulation-Based Calibration* (Talts, Betancourt, Simpson,
        Vehtari and Gelman, 2018).

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyrovae as pv
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):  # too wide, because the posterior is N(x / 2, 1 / 2)
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 1.5))
        >>> ranks = pv.evaluation.simulation_based_calibration(
        ...     model, guide, torch.zeros(200), num_draws=19, num_simulations=400, seed=0
        ... )
        >>> ranks.z.shape, float(ranks.z_p_value[0]) < 0.001
        ((400, 1), True)
    """
    if num_draws < 1 or num_simulations < 50:
        raise ValueError(
            f"num_draws must be at least 1 and num_simulations at least 50, got num_draws={num_draws} and "
            f"num_simulations={num_simulations}"
        )
    simulated: Options = {**options, "binarization": "simulated"}
    problem = Problem(*GuideDraws().around(model, guide), x, **simulated)
    if problem.proposal is not None:
        raise ValueError(
            f"{problem.proposal!r} draws from a mixture that is wider than the posterior, so its ranks are not "
            f"uniform. Pass the guide that it refines, refined.guide."
        )
    dims: dict[str, tuple[str, ...]] = {}

    def prepare() -> int:
        problem.check_whole()
        dims.update({name: ("datum", f"{name}_unit") for name in problem.probe.event_dims})
        return max(1, min(problem.width(num_draws), num_simulations))

    def columns(batch: Batch) -> dict[str, Tensor]:
        return {name: values[: batch.kept] for name, values in _ranks(problem, batch, num_draws).items()}

    ranks = report(
        problem,
        columns,
        estimator="simulation-based calibration",
        width=prepare,
        dims=dims,
        num_rows=num_simulations,
        units="ranks, from 0 to num_draws",
        num_draws=num_draws,
        num_simulations=num_simulations,
    ).rename(datum="simulation")
    ranks = ranks.assign({name: each.where(each != MASKED) for name, each in ranks.items() if (each == MASKED).any()})
    p_values = {
        name: np.array([_p_value(unit, num_draws) for unit in values.values.T]) for name, values in ranks.items()
    }
    return ranks.assign({f"{name}_p_value": (f"{name}_unit", values) for name, values in p_values.items()})


def _ranks(problem: Problem, batch: Batch, num_draws: int) -> dict[str, Tensor]:
    """Simulate data in the shape of a batch, and rank the true latents of these data among the guide's draws.

    Returns:
        Dictionary from the name of each latent site to the ranks of its values, shape ``(n, units)``. A unit is one
        entry of a value. The rank is ``MASKED`` where the guide's mask leaves out the site.
    """
    latents, args = simulate(problem.model, batch.args, problem.options["kwargs"], plate=problem.plate.name)
    simulated = replace(batch, args=args)
    below: dict[str, Tensor] = {}
    equal: dict[str, Tensor] = {}
    scored: dict[str, Tensor] = {}
    chunk = max(1, problem.affordable // batch.size)
    for start in range(0, num_draws, chunk):
        drawn = problem.draw(simulated, min(chunk, num_draws - start))
        for name in set(drawn.dims) & set(latents):
            draws = _by_datum(problem, name, drawn.values[name])
            true = _by_datum(problem, name, latents[name])
            below[name] = below.get(name, 0) + (draws < true).sum(0)
            equal[name] = equal.get(name, 0) + (draws == true).sum(0)
        for name, mask in drawn.masks[0].items() if drawn.masks else ():
            full = torch.as_tensor(mask, device=problem.device).expand(drawn.values[name].shape)
            scored[name] = _by_datum(problem, name, full)[0]
    ranks = {name: below[name] + _below(equal[name] + 1) for name in sorted(below)}
    return {name: torch.where(scored[name], rank, MASKED) if name in scored else rank for name, rank in ranks.items()}


def _by_datum(problem: Problem, name: str, value: Tensor) -> Tensor:
    """Reshape values of a latent site to ``(num_draws, n, units)``. Without a dimension of draws, there is one draw."""
    missing = problem.nesting + 1 + problem.probe.event_dims[name] - value.ndim
    moved = value.reshape((1,) * missing + value.shape).movedim(problem.data_dim, 1)
    return moved.reshape(*moved.shape[:2], -1)


def _below(limits: Tensor) -> Tensor:
    """Return, for each entry of ``limits``, a random integer from 0 to the entry minus one."""
    return (torch.rand(limits.shape, device=limits.device) * limits).long()


def _p_value(ranks: np.ndarray, num_draws: int) -> float:
    """Return the p-value of a chi-squared test that ranks are uniform on 0 to ``num_draws``, in at most 20 bins."""
    from scipy.stats import chisquare

    ranks = ranks[np.isfinite(ranks)].astype(int)  # simulations that raised an error are rows of NaN
    bins = min(20, num_draws + 1, len(ranks) // 20)
    if bins < 2:
        return np.nan
    sizes = np.bincount(np.arange(num_draws + 1) * bins // (num_draws + 1))
    counts = np.bincount(ranks * bins // (num_draws + 1), minlength=bins)
    return float(chisquare(counts, sizes * len(ranks) / (num_draws + 1)).pvalue)
