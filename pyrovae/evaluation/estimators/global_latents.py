r"""Evaluation of programs with global latents, such as a Bayesian decoder's weights W.

.. math:: p(x \mid \text{data}) \approx \frac{1}{S} \sum_{s=1}^S p(x \mid W_s), \qquad W_s \sim q(W).
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import pyro
from pyro import poutine

from pyrovae._waist.single_runs import global_draws
from pyrovae._waist.sites import Program
from pyrovae.evaluation.estimators.importance import evaluate
from pyrovae.evaluation.options import Options
from pyrovae.evaluation.pairs import takes_vae
from pyrovae.evaluation.problem import Problem
from pyrovae.isolation import isolated

if TYPE_CHECKING:
    import xarray as xr


@takes_vae
def evaluate_globals(
    model: Program,
    guide: Program,
    x: Any,
    num_samples: int = 1000,
    *,
    num_draws: int = 10,
    **options: Unpack[Options],
) -> "xr.Dataset":
    """Evaluate a program given draws of its global latents, and averages the probabilities.

    Args:
        model: Pyro program of p(x, z, W).
        guide: Pyro program of q(z | x) q(W).
        x: Data, shape ``(N, *event)``, or a tuple of tensors that share the first dimension.
        num_samples: Draws of z per datum and draw of W.
        num_draws: Draws of the global latents, S.
        **options: See :class:`Options`. A checkpoint folder holds a folder for each draw of W.

    Returns:
        What :func:`evaluate` returns, with a dimension ``draw`` more, and over ``datum`` alone ``log_predictive``, the
        logarithm of the probability averaged over the draws, nats.

    Raises:
        ValueError: If ``num_draws`` is not positive, or the guide has no latent outside the data plate; as
            :func:`evaluate`.

    Source:
        *Weight Uncertainty in Neural Networks* (Blundell et al., 2015).

    Example:
        >>> import torch, pyrovae as pv
        >>> vae = pv.BayesianVAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Normal(pv.bayesian.random_weights(pv.networks.mlp(2, 4))),
        ...     pv.posteriors.DiagonalNormal(pv.networks.mlp(4, 2 * 2)),
        ...     data_size=100,
        ... )
        >>> results = pv.evaluation.evaluate_globals(vae.model, vae.guide, torch.zeros(5, 4), 50, num_draws=3, seed=0)
        >>> results.log_likelihood.sizes, results.log_predictive.sizes
        (Frozen({'draw': 3, 'datum': 5}), Frozen({'datum': 5}))
    """
    if num_draws < 1:
        raise ValueError(f"num_draws, the number of draws of the global latents, must be at least 1, got {num_draws}")
    import xarray as xr

    start = time.perf_counter()
    problem = Problem(model, guide, x, **options)
    args, plate = problem.data.batch(0, problem.size, problem.device), options.get("plate")
    first, *others = (int(state) for state in np.random.SeedSequence(problem.seed).generate_state(num_draws + 1))
    with isolated(model, guide, seed=first) as isolation, isolation.adopting():
        draws = [global_draws(model, guide, args, options.get("kwargs"), plate=plate) for _ in range(num_draws)]
    results = []
    for index, (draw, own_seed) in enumerate(zip(draws, others, strict=True)):
        given = [pyro.condition(program, data=draw.values) for program in (model, guide)]
        given[1] = poutine.block(given[1], hide=draw.outside)
        own: Options = {**options, "seed": own_seed, "plate": draw.plate}
        if folder := options.get("checkpoint"):
            own["checkpoint"] = Path(folder) / f"draw-{index}"
        results.append(evaluate(given[0], given[1], x, num_samples, **own))
    together = xr.concat(results, "draw", combine_attrs="override")
    log_predictive = np.logaddexp.reduce(together.log_likelihood.values, axis=0) - np.log(num_draws)
    attrs = {"num_draws": num_draws, "seed": problem.seed, "seconds": time.perf_counter() - start}
    return together.assign(log_predictive=("datum", log_predictive)).assign_attrs(attrs)
