"""NumPyro as its VAE example uses it: stax networks, ``SVI``, and one compiled function for an epoch.

For several draws per datum NumPyro offers ``RenyiELBO`` with alpha = 0. This objective takes the logarithm of the mean
weight within each plate that all sites share. Here this is the data plate, which gives the importance-weighted bound
per datum.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array, lax, random
from jax.custom_batching import custom_vmap
from jax.example_libraries import stax
from numpyro.infer import SVI, RenyiELBO, Trace_ELBO
from numpyro.optim import Adam

from experiments.benchmarks.problem import Problem
from experiments.benchmarks.rounds import serve

Weights = dict[str, Any]


def main(problem: Problem) -> None:
    """Train for one epoch in a turn."""
    sizes = problem.sizes
    if sizes.device != jax.default_backend().replace("gpu", "cuda"):
        raise RuntimeError(
            f"JAX computes on the {jax.default_backend()} here, not on {sizes.device}. Install jax[cuda]."
        )
    x = jnp.asarray(problem.x)
    encoder, decoder = perceptron(sizes.hidden, 2 * sizes.latent), perceptron(sizes.hidden, x.shape[1])

    def model(x: Array) -> None:
        decode = numpyro.module("decoder", decoder, (len(x), sizes.latent))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(sizes.latent), 1.0).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=decode(z)).to_event(1), obs=x)

    def guide(x: Array) -> None:
        encode = numpyro.module("encoder", encoder, x.shape)
        with numpyro.plate("data", len(x)):
            loc, log_scale = jnp.split(encode(x), 2, axis=-1)
            numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))

    objective = Trace_ELBO() if sizes.k == 1 else RenyiELBO(alpha=0, num_particles=sizes.k)
    svi = SVI(model, guide, Adam(sizes.learning_rate), objective)
    weights = initial(problem)
    facts = state(problem, weights, lambda weights, x: objective.loss(random.key(0), weights, model, guide, x) / len(x))

    @jax.jit
    def epoch(state: Any, x: Array, key: Array) -> tuple[Any, Array]:
        order = random.permutation(key, len(x)).reshape(-1, sizes.batch_size)
        return lax.scan(lambda state, indices: svi.update(state, x[indices]), state, order)

    now, key = svi.init(random.key(sizes.seed), x[: sizes.batch_size], init_params=weights), random.key(sizes.seed)

    def work() -> None:
        nonlocal now, key
        key, mine = random.split(key)
        now, losses = epoch(now, x, mine)
        jax.block_until_ready((now, losses))

    serve("NumPyro", work, **facts)


def perceptron(hidden: int, outputs: int) -> Any:
    """Return a network with one hidden layer of softplus units."""
    return stax.serial(stax.Dense(hidden), stax.Softplus, stax.Dense(outputs))


def initial(problem: Problem) -> Weights:
    """Return the initial weights in the order of stax, with the names of NumPyro."""
    weights = {}
    for name in ("encoder", "decoder"):
        part = {key: jnp.asarray(value.T) for key, value in problem.part(name).items()}
        weights[f"{name}$params"] = [(part["0.weight"], part["0.bias"]), (), (part["2.weight"], part["2.bias"])]
    return weights


def state(problem: Problem, weights: Weights, loss: Callable[[Weights, Array], Array]) -> dict[str, float]:
    """Return the loss of the checked batch and the norm of its gradient. The given noise replaces normal draws."""
    noise = jnp.asarray(problem.noise)

    @custom_vmap
    def given(_: Array) -> Array:
        return noise[0]

    @given.def_vmap
    def given_to_all(_: int, __: list[bool], ___: Array) -> tuple[Array, bool]:
        return noise, True

    with mock.patch("jax.random.normal", lambda key, *_, **__: given(key)):
        value, gradient = jax.value_and_grad(loss)(weights, jnp.asarray(problem.checked))
    squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient))
    return {"loss": float(value), "gradient": float(np.sqrt(squares))}


if __name__ == "__main__":
    main(Problem.read(Path(sys.argv[1])))
