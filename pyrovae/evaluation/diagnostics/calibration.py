r"""Whether a guide's posterior is calibrated: ranks of true latents among its draws.

With :math:`z \sim p(z)`, :math:`x' \sim p(x \mid z)` and :math:`z^{(1)}, \dots, z^{(L)} \sim q(z \mid x')`, the rank of
each unit,

.. math:: r = \sum_{l=1}^L 1[z^{(l)} < z],

is uniform on 0, ..., L if q is the posterior. The ranks pile up at both ends if q is too narrow, in the middle if it is
too wide, and at one end if it is shifted.
"""

import time
from itertools import cycle

import numpy as np
import pyro
import torch
import xarray as xr
from scipy.stats import chisquare
from torch import Tensor

from pyrovae._waist.draws import draw_latents
from pyrovae._waist.sites import Program
from pyrovae.arguments import Data
from pyrovae.evaluation.posterior.predictive import arranged
from pyrovae.evaluation.problem import Pieces
from pyrovae.evaluation.provenance import attributes
from pyrovae.evaluation.simulation import simulate
from pyrovae.isolation import fresh_seed, isolated


def simulation_based_calibration(
    model: Program,
    guide: Program,
    x: Data,
    num_draws: int = 99,
    *,
    num_simulations: int = 1000,
    seed: int | None = None,
    plate: str | None = None,
    vectorize: bool = True,
    memory: int | None = None,
) -> xr.Dataset:
    """Ranks the latents that simulated data came from among the guide's draws for these data.

    It judges the guide's posterior on data from the model, whatever its data are; the guide must take any data, so its
    parameters must not belong to single data. A unit whose ranks are uniform may still be wrong jointly with others.

    Args:
        model: Pyro program of p(x, z), called as ``model(x)``, or ``model(*x)`` if ``x`` is a tuple.
        guide: Pyro program of q(z | x), called likewise.
        x: A template of the data, shape ``(N, *event)``, or a tuple of tensors that share the first dimension. What the
            model observes of them is simulated, other arguments are given; they are gone through again and again.
        num_draws: Draws of the guide per simulated datum, L.
        num_simulations: Number of simulated data.
        seed: Seed of the draws; by default a new one from the operating system.
        plate: Name of the data plate; by default the outermost plate that all latent sites share.
        vectorize: Whether many draws are made in one run; see :func:`log_weights`.
        memory: Bytes that the tensors of one run may take; see :func:`log_weights`.

    Returns:
        Dataset with, for each latent site, say ``z``: ``z``, the ranks, 0 to L, over ``simulation`` and ``z_unit``, and
        ``z_p_value``, over ``z_unit``, that of a chi-squared test that they are uniform. Expect one in a hundred units
        of a calibrated guide to have a p-value below 0.01. Equal values, of a discrete unit, are ranked at random.

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
    start, seed = time.perf_counter(), fresh_seed() if seed is None else seed
    parts: list[dict[str, Tensor]] = []
    done = 0
    with isolated(model, guide, seed=seed):
        pieces = Pieces(model, guide, x, plate=plate, vectorize=vectorize, memory=memory)
        pieces.check_whole()
        with pyro.validation_enabled(False):
            for piece in cycle(list(pieces.cut(max(1, min(pieces.affordable // num_draws, num_simulations))))):
                if done >= num_simulations:
                    break
                parts.append(_ranks(pieces, pieces.arguments(piece), num_draws))
                done += piece.kept
    columns: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
    for name in parts[0]:
        ranks = torch.cat([part[name] for part in parts])[:num_simulations].cpu().numpy()
        columns[name] = (("simulation", f"{name}_unit"), ranks)
        columns[f"{name}_p_value"] = ((f"{name}_unit",), np.array([_p_value(unit, num_draws) for unit in ranks.T]))
    return xr.Dataset(
        columns,
        coords={"simulation": np.arange(num_simulations)},
        attrs=attributes(
            pieces,
            seed=seed,
            binarization="simulated",
            start=start,
            units="ranks, from 0 to num_draws",
            num_draws=num_draws,
            num_simulations=num_simulations,
        ),
    )


def _ranks(pieces: Pieces, args: list[Tensor], num_draws: int) -> dict[str, Tensor]:
    """Simulates data like the arguments, and ranks their latents, shape ``(n, units)``, by site."""
    latents, simulated = simulate(pieces.model, args)
    below: dict[str, Tensor] = {}
    equal: dict[str, Tensor] = {}
    step = max(1, pieces.affordable // len(args[0])) if pieces.vectorize else 1
    for start in range(0, num_draws, step):
        nesting, count = pieces.nesting if pieces.vectorize else None, min(step, num_draws - start)
        for name, site in draw_latents(pieces.guide, simulated, count, nesting=nesting).items():
            if name in latents:
                true, draws = (
                    arranged(site, value, pieces.plate.name)[0].reshape(count, len(args[0]), -1)
                    for value in (latents[name], site["value"])
                )
                below[name] = below.get(name, 0) + (draws < true).sum(0)
                equal[name] = equal.get(name, 0) + (draws == true).sum(0)
    return {name: less + _below(equal[name] + 1) for name, less in below.items()}


def _below(limits: Tensor) -> Tensor:
    """Random integers, from 0 to the limits less one."""
    return (torch.rand(limits.shape, device=limits.device) * limits).long()


def _p_value(ranks: np.ndarray, num_draws: int) -> float:
    """Of a chi-squared test that ranks are uniform on 0 to ``num_draws``, in at most 20 bins, some 20 ranks in each."""
    bins = min(20, num_draws + 1, len(ranks) // 20)
    sizes = np.bincount(np.arange(num_draws + 1) * bins // (num_draws + 1))
    counts = np.bincount(ranks * bins // (num_draws + 1), minlength=bins)
    return float(chisquare(counts, sizes * len(ranks) / (num_draws + 1)).pvalue)
