r"""Evaluation of programs with global latents, such as the weights W of a Bayesian decoder.

.. math:: p(x \mid \text{data}) \approx \frac{1}{S} \sum_{s=1}^S p(x \mid W_s), \qquad W_s \sim q(W).
"""

import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import pyro
from pyro import poutine

from pyrovae._waist.single_runs import global_draws
from pyrovae._waist.sites import Program
from pyrovae._warnings import find_stack_level
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
    """Evaluate a program for each draw of its global latents, and average the estimates of p(x) over these draws.

    Args:
        model: Pyro program of p(x, z, W).
        guide: Pyro program of q(z | x) q(W).
        x: Data, shape ``(N, *event)``, or a tuple of tensors that share the first dimension.
        num_samples: Draws of z per datum and per draw of W.
        num_draws: Draws of the global latents, S.
        **options: Keyword arguments of :class:`Options`. The checkpoint folder gets a subfolder for each draw of W.

    Returns:
        Result of :func:`evaluate` with an additional dimension ``draw``, and with an additional variable
        ``log_predictive``, dimension ``datum``. For this variable, the estimates of p(x) are averaged over the draws of
        W, and the logarithm of the average is taken, nats. After Ctrl-C, the result holds the finished draws of
        the global latents. If the first draw is not finished, the result holds the finished rows of this draw. If no
        row is finished, ``KeyboardInterrupt`` is raised.

    Raises:
        ValueError: For the reasons listed at :func:`evaluate`; if ``num_draws`` is not positive; or if the guide has no
            latent site outside the data plate.
        TypeError: For the reasons listed at :func:`evaluate`.
        FloatingPointError: If the log-weights of all data are NaN or infinite.
        KeyboardInterrupt: If Ctrl-C is pressed before the first row is finished.

    Source:
        *Weight Uncertainty in Neural Networks* (Blundell et al., 2015).

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyrovae as pv
        >>> def model(x):
        ...     w = pyro.sample("w", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z + w, 1.0), obs=x)
        >>> def guide(x):
        ...     w = pyro.sample("w", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal((x - w) / 2, 1.0))
        >>> x = torch.tensor([0.0, 1.0])
        >>> results = pv.evaluation.evaluate_globals(model, guide, x, num_samples=100, num_draws=2, seed=0)
        >>> dict(results.log_likelihood.sizes), dict(results.log_predictive.sizes)
        ({'draw': 2, 'datum': 2}, {'datum': 2})
        >>> bool((results.log_predictive >= results.log_likelihood.mean("draw")).all())  # Jensen's inequality
        True
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
    results: list[xr.Dataset] = []
    for index, (draw, own_seed) in enumerate(zip(draws, others, strict=True)):
        given = [pyro.condition(program, data=draw.values) for program in (model, guide)]
        given[1] = poutine.block(given[1], hide=draw.outside)
        own: Options = {**options, "seed": own_seed, "plate": draw.plate}
        if folder := options.get("checkpoint"):
            own["checkpoint"] = Path(folder) / f"draw-{index}"
        try:
            found = evaluate(given[0], given[1], x, num_samples, **own)
        except KeyboardInterrupt:  # before the first row of this draw
            if not results:
                raise
            break
        if not (results and "interrupted" in found.attrs):  # later draws must have all data
            results.append(found)
        if "interrupted" in found.attrs:
            break
    together = xr.concat(results, "draw", combine_attrs="override")
    log_predictive = np.logaddexp.reduce(together.log_likelihood.values, axis=0) - np.log(len(results))
    attrs: dict[str, Any] = {"num_draws": len(results), "seed": problem.seed, "seconds": time.perf_counter() - start}
    if len(results) < num_draws and "interrupted" not in together.attrs:
        attrs["interrupted"] = f"after {len(results)} of {num_draws} draws of the global latents"
        warnings.warn(
            f"the evaluation was interrupted, and the result holds only the {len(results)} draws of the global latents "
            f"that were finished. log_predictive is an average over these draws.",
            stacklevel=find_stack_level(),
        )
    return together.assign(log_predictive=("datum", log_predictive)).assign_attrs(attrs)
