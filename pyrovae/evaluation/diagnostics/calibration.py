r"""Whether a guide's posterior is calibrated: ranks of true latents among its draws.

With :math:`z \sim p(z)`, :math:`x' \sim p(x \mid z)` and :math:`z^{(1)}, \dots, z^{(L)} \sim q(z \mid x')`, the rank of
each unit,

.. math:: r = \sum_{l=1}^L 1[z^{(l)} < z],

is uniform on 0, ..., L if q is the posterior. The ranks pile up at both ends if q is too narrow, in the middle if it is
too wide, and at one end if it is shifted.
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
from pyrovae.evaluation.problem import Problem
from pyrovae.evaluation.report import report
from pyrovae.evaluation.simulation import simulate

if TYPE_CHECKING:
    import xarray as xr


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
    """Rank the latents that simulated data came from among the guide's draws for these data.

    It judges the guide's posterior on data from the model, whatever its data are; the guide must take any data, so its
    parameters must not belong to single data. A unit whose ranks are uniform may still be wrong jointly with others.

    Args:
        model: Pyro program of p(x, z), called as ``model(x)``, or ``model(*x)`` if ``x`` is a tuple.
        guide: Pyro program of q(z | x), called likewise.
        x: A template of the data, shape ``(N, *event)``, or a tuple of tensors that share the first dimension. What the
            model observes of them is simulated, other arguments are given; they are gone through again and again.
        num_draws: Draws of the guide per simulated datum, L.
        num_simulations: Number of simulated data.
        **options: See :class:`Options`.

    Returns:
        Dataset with, for each latent site, say ``z``: ``z``, the ranks, 0 to L, over ``simulation`` and ``z_unit``, and
        ``z_p_value``, over ``z_unit``, that of a chi-squared test that they are uniform. Expect one in a hundred units
        of a calibrated guide to have a p-value below 0.01. Equal values, of a discrete unit, are ranked at random. The
        p-value is NaN if fewer than 40 simulations are done.

    Raises:
        TypeError: As :func:`log_weights`.
        ValueError: As :func:`log_weights`; if there is no draw, or fewer than 50 simulations to test; if the model
            observes something that is not one of its arguments, or has a ``pyro.factor``.

    Source:
        *Validating Bayesian Inference Algorithms with Simulation-Based Calibration* (Talts, Betancourt, Simpson,
        Vehtari and Gelman, 2018).

    Example:
        >>> import torch, pyrovae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Normal(pv.networks.mlp(2, 4)),
        ...     pv.posteriors.DiagonalNormal(pv.networks.mlp(4, 2 * 2)),
        ... )
        >>> ranks = pv.evaluation.simulation_based_calibration(vae.model, vae.guide, torch.zeros(10, 4), seed=0)
        >>> ranks["z"].shape, ranks["z_p_value"].shape
        ((1000, 2), (2,))
    """
    if num_draws < 1 or num_simulations < 50:
        raise ValueError(
            f"calibration needs num_draws of at least 1 and num_simulations of at least 50, got {num_draws} and "
            f"{num_simulations}"
        )
    simulated: Options = {**options, "binarization": "simulated"}
    problem = Problem(model, guide, x, **simulated)
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
    p_values = {
        name: np.array([_p_value(unit, num_draws) for unit in values.values.T]) for name, values in ranks.items()
    }
    return ranks.assign({f"{name}_p_value": (f"{name}_unit", values) for name, values in p_values.items()})


def _ranks(problem: Problem, batch: Batch, num_draws: int) -> dict[str, Tensor]:
    """Simulate data like a batch, and return the ranks of their latents, shape ``(n, units)``, by site."""
    latents, args = simulate(problem.model, batch.args)
    simulated = replace(batch, args=args)
    below: dict[str, Tensor] = {}
    equal: dict[str, Tensor] = {}
    chunk = max(1, problem.affordable // batch.size)
    for start in range(0, num_draws, chunk):
        drawn = problem.draw(simulated, min(chunk, num_draws - start))
        for name in set(drawn.dims) & set(latents):
            draws = _by_datum(problem, name, drawn.values[name])
            true = _by_datum(problem, name, latents[name])
            below[name] = below.get(name, 0) + (draws < true).sum(0)
            equal[name] = equal.get(name, 0) + (draws == true).sum(0)
    return {name: below[name] + _below(equal[name] + 1) for name in sorted(below)}


def _by_datum(problem: Problem, name: str, value: Tensor) -> Tensor:
    """Return draws of a latent, or one value of it, as ``(num_draws or 1, n, units)``."""
    missing = problem.nesting + 1 + problem.probe.event_dims[name] - value.ndim
    moved = value.reshape((1,) * missing + value.shape).movedim(problem.data_dim, 1)
    return moved.reshape(*moved.shape[:2], -1)


def _below(limits: Tensor) -> Tensor:
    """Random integers, from 0 to the limits less one."""
    return (torch.rand(limits.shape, device=limits.device) * limits).long()


def _p_value(ranks: np.ndarray, num_draws: int) -> float:
    """Of a chi-squared test that ranks are uniform on 0 to ``num_draws``, in at most 20 bins, some 20 ranks in each."""
    from scipy.stats import chisquare

    ranks = ranks[np.isfinite(ranks)].astype(int)  # without the rows of simulations that raised an error
    bins = min(20, num_draws + 1, len(ranks) // 20)
    if bins < 2:
        return np.nan
    sizes = np.bincount(np.arange(num_draws + 1) * bins // (num_draws + 1))
    counts = np.bincount(ranks * bins // (num_draws + 1), minlength=bins)
    return float(chisquare(counts, sizes * len(ranks) / (num_draws + 1)).pvalue)
