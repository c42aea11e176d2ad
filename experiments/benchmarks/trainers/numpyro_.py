"""NumPyro as its VAE example uses it: ``SVI``, and one compiled function for an epoch.

For several draws per datum NumPyro offers ``RenyiELBO`` with alpha = 0. This objective takes the logarithm of the mean
weight within each plate that all sites share. Here this is the data plate, which gives the importance-weighted bound
per datum.
"""

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax, random
from jax.custom_batching import custom_vmap
from numpyro.infer import SVI, RenyiELBO, Trace_ELBO
from numpyro.optim import Adam

from experiments.benchmarks.problem import Problem
from experiments.benchmarks.rounds import serve
from experiments.benchmarks.trainers.numpyro_models import MODELS

Weights = dict[str, Any]


def main(problem: Problem) -> None:
    """Train for one epoch in a turn."""
    sizes = problem.sizes
    if sizes.device != jax.default_backend().replace("gpu", "cuda"):
        raise RuntimeError(
            f"JAX computes on the {jax.default_backend()} here, not on {sizes.device}. Install jax[cuda]."
        )
    x = jnp.asarray(problem.x)
    programs = MODELS[sizes.model](problem)
    model, guide = programs.model, programs.guide

    objective = Trace_ELBO() if sizes.k == 1 else RenyiELBO(alpha=0, num_particles=sizes.k)
    svi = SVI(model, guide, Adam(sizes.learning_rate), objective)
    facts = state(
        problem, programs.trained(), lambda weights, x: objective.loss(random.key(0), weights, model, guide, x) / len(x)
    )

    @jax.jit
    def epoch(state: Any, x: Array, key: Array) -> tuple[Any, Array]:
        order = random.permutation(key, len(x)).reshape(-1, sizes.batch_size)
        return lax.scan(lambda state, indices: svi.update(state, x[indices]), state, order)

    now, key = svi.init(random.key(sizes.seed), x[: sizes.batch_size]), random.key(sizes.seed)

    def work() -> None:
        nonlocal now, key
        key, mine = random.split(key)
        now, losses = epoch(now, x, mine)
        jax.block_until_ready((now, losses))

    serve("NumPyro", work, **facts)


def state(problem: Problem, weights: Weights, loss: Callable[[Weights, Array], Array]) -> dict[str, float]:
    """Return the loss of the checked batch and the norm of its gradient. The given noise replaces normal draws."""
    noise = jnp.asarray(problem.noise)

    def normal(key: Array, shape: Sequence[int] = (), *_: Any, **__: Any) -> Array:
        draws = noise.reshape(len(noise), -1)[:, : math.prod(shape)].reshape(-1, *shape)

        @custom_vmap
        def given(_: Array) -> Array:
            return draws[0]

        @given.def_vmap
        def given_to_all(_: int, __: list[bool], ___: Array) -> tuple[Array, bool]:
            return draws, True

        return given(key)

    with mock.patch("jax.random.normal", normal):
        value, gradient = jax.value_and_grad(loss)(weights, jnp.asarray(problem.checked))
    squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient))
    return {"loss": float(value), "gradient": float(np.sqrt(squares))}


if __name__ == "__main__":
    main(Problem.read(Path(sys.argv[1])))
