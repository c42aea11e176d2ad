"""The result is right for any number of data, draws, latents and batches, and any bound on the memory.

At the exact posterior of a linear-Gaussian VAE every log-weight is log p(x), so every average or sum over chunks must
give log p(x) up to rounding.
"""

import math
from itertools import chain
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from pyro.infer import Trace_ELBO
from torch import Tensor

import pyrovae as pv
from pyrovae.evaluation import bits_per_dimension, compare, evaluate, log_weights, rqmc, verdicts
from pyrovae.evaluation.bounds import effective_sample_size, iwae
from tests.conftest import small_vae
from tests.oracle import Oracle

sizes, draws = st.integers(1, 9), st.integers(1, 40)
latents, memories = st.integers(1, 4), st.one_of(st.integers(1, 5000), st.integers(1, 2**26))
seeds = st.integers(0, 2**64 - 1)


def by_hand(weights: Tensor, k: int) -> np.ndarray:
    """IWAE_k from all cyclic windows of k draws, shape ``(N,)``."""
    rows = weights.double().numpy()
    windows = np.stack([np.roll(rows, -i, 0)[:k] for i in range(len(rows))])
    return (np.logaddexp.reduce(windows, axis=1) - math.log(k)).mean(0)


@given(size=sizes, num_samples=draws, latent=latents, memory=memories, vectorize=st.booleans(), seed=seeds)
@example(size=1, num_samples=1, latent=1, memory=1, vectorize=True, seed=0)
def test_evaluations_of_exact_posteriors_are_exact(
    size: int, num_samples: int, latent: int, memory: int, vectorize: bool, seed: int
) -> None:
    oracle = Oracle(latent=latent)
    x = oracle.data(size)
    options: Any = {"memory": memory, "vectorize": vectorize, "seed": seed}
    result = evaluate(oracle.vae.model, oracle.vae.guide, x, num_samples, progress=False, **options)
    expected = oracle.log_likelihood(x).numpy()
    for bound in (result.elbo, result.log_likelihood, *result.iwae.transpose("k", "datum")):
        np.testing.assert_allclose(bound, expected, rtol=1e-10)
    np.testing.assert_allclose(result.ess, num_samples)
    assert result.sizes["datum"] == size
    assert result.k.values[-1] == num_samples
    assert result.mcse.isnull().all() if num_samples == 1 else (result.mcse < 1e-5).all()


@given(size=sizes, num_samples=draws, latent=latents, memory=memories, seed=seeds, data=st.data())
def test_evaluations_agree_with_their_log_weights(
    size: int, num_samples: int, latent: int, memory: int, seed: int, data: st.DataObject
) -> None:
    pyro.set_rng_seed(0)
    vae, x = small_vae(latent=latent), torch.bernoulli(torch.full((size, 6), 0.5))
    ks = data.draw(st.lists(st.integers(1, num_samples), min_size=1, max_size=4))
    weights = log_weights(vae.model, vae.guide, x, num_samples, seed=seed, memory=memory)
    result = evaluate(vae.model, vae.guide, x, num_samples, seed=seed, memory=memory, k=ks, progress=False)
    assert weights.shape == (num_samples, size)
    assert result.k.values.tolist() == sorted(set(ks))
    np.testing.assert_allclose(result.elbo, weights.double().mean(0), rtol=1e-9)
    np.testing.assert_allclose(result.log_likelihood, by_hand(weights, num_samples), rtol=1e-9)
    for k in ks:
        np.testing.assert_allclose(result.iwae.sel(k=k), by_hand(weights, k), rtol=1e-9)
    assert (result.ess >= 1 - 1e-9).all()
    assert (result.ess <= num_samples * (1 + 1e-9)).all()


@given(
    num_samples=draws,
    size=sizes,
    offset=st.floats(-1e9, 1e9),
    spread=st.sampled_from([0.0, 1e-9, 1.0, 100.0, 1e5]),
    data=st.data(),
)
def test_bounds_of_extreme_weights(
    num_samples: int, size: int, offset: float, spread: float, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, num_samples))
    generator = torch.Generator().manual_seed(num_samples)
    weights = offset + spread * torch.randn(num_samples, size, generator=generator, dtype=torch.float64)
    bound, mcse = iwae(weights, k)
    np.testing.assert_allclose(bound, by_hand(weights, k), rtol=1e-9, atol=1e-9)
    assert (mcse.isnan() if num_samples == 1 else mcse >= 0).all()
    assert (bound <= weights.max(0).values + 1e-6).all()
    assert (bound >= weights.mean(0) - 1e-6).all()
    ess = effective_sample_size(weights)
    assert (ess >= 1 - 1e-6).all()
    assert (ess <= num_samples + 1e-6 * num_samples).all()


@given(
    num_replicates=st.integers(2, 5),
    each=st.integers(1, 20),
    size=sizes,
    latent=latents,
    memory=memories,
    seed=seeds,
)
def test_quasi_monte_carlo_of_exact_posteriors_is_exact(
    num_replicates: int, each: int, size: int, latent: int, memory: int, seed: int
) -> None:
    oracle = Oracle(latent=latent)
    x = oracle.data(size)
    options: Any = {"num_replicates": num_replicates, "memory": memory, "seed": seed, "progress": False}
    result = rqmc(oracle.vae.model, oracle.vae.guide, x, num_replicates * each, **options)
    np.testing.assert_allclose(result.log_likelihood, oracle.log_likelihood(x), rtol=1e-10)
    np.testing.assert_allclose(result.elbo, oracle.log_likelihood(x), rtol=1e-10)
    assert (result.mcse < 1e-6).all()


OBJECTIVES = {
    "Trace_ELBO": lambda k: Trace_ELBO(num_particles=k),
    "Trace_ELBO, vectorized": lambda k: Trace_ELBO(num_particles=k, vectorize_particles=True),
    "IWAE": pv.objectives.IWAE,
    "IWAE, one by one": lambda k: pv.objectives.IWAE(k, vectorize_particles=False),
    "IWAE, doubly reparameterized": lambda k: pv.objectives.IWAE(k, gradient="doubly_reparameterized"),
    "MIWAE": lambda k: pv.objectives.MIWAE(k, num_groups=3),
    "PIWAE": lambda k: pv.objectives.PIWAE(k, num_groups=2),
    "CIWAE": pv.objectives.CIWAE,
    "Renyi": lambda k: pv.objectives.Renyi(0.5, k),
}


@pytest.mark.parametrize("name", OBJECTIVES)
@given(
    size=sizes, rest=st.integers(1, 9), batch_size=st.integers(1, 12), num_particles=st.integers(1, 6), latent=latents
)
@example(size=1, rest=1, batch_size=1, num_particles=1, latent=1)
def test_histories_count_every_datum_once(
    name: str, size: int, rest: int, batch_size: int, num_particles: int, latent: int
) -> None:
    oracle, objective = Oracle(latent=latent), OBJECTIVES[name](num_particles)
    train, valid = oracle.data(size), oracle.data(rest, seed=2)
    options: Any = {
        "objective": objective,
        "epochs": 1,
        "batch_size": batch_size,
        "learning_rate": 0,
        "progress": False,
    }
    history = pv.fit(oracle.vae, train, valid, **options)
    assert history.train[0] == pytest.approx(oracle.log_likelihood(train).mean().item(), rel=1e-9)
    assert history.valid[0] == pytest.approx(oracle.log_likelihood(valid).mean().item(), rel=1e-9)
    expected = -oracle.log_likelihood(train).sum().item()
    assert objective.loss(oracle.vae.model, oracle.vae.guide, train) == pytest.approx(expected, rel=1e-9)


@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=3), offset=st.floats(-1e6, 1e6), seed=seeds)
def test_comparisons_are_paired_differences(sizes: list[int], offset: float, seed: int) -> None:
    oracle = Oracle(1.2)
    x = oracle.data(sum(sizes))
    first = evaluate(oracle.vae.model, oracle.vae.guide, x, 50, seed=seed, progress=False)
    second = first.copy(deep=True)
    second["log_likelihood"] = second.log_likelihood + offset
    table = compare({"first": first, "second": second})
    assert table.difference["second"] == pytest.approx(offset, rel=1e-9, abs=1e-6)
    assert table.log_likelihood["first"] == pytest.approx(float(first.log_likelihood.mean()))
    assert math.isnan(table.difference_error["second"]) == (len(x) == 1)
    summary = verdicts(first, worst=sum(sizes))
    assert summary["data"].sum() == len(x)
    assert summary["share"].sum() == pytest.approx(1)
    assert sorted(chain.from_iterable(summary["worst"])) == list(range(len(x)))


@given(
    shape=st.lists(st.integers(1, 40), min_size=1, max_size=3), levels=st.integers(2, 1000), nats=st.floats(-1e8, 1e8)
)
def test_bits_of_uniform_levels(shape: list[int], levels: int, nats: float) -> None:
    dimensions = math.prod(shape)
    uniform = -dimensions * math.log(levels)
    assert bits_per_dimension(uniform, shape) == pytest.approx(math.log2(levels))
    assert bits_per_dimension(uniform + nats, shape) == pytest.approx(
        math.log2(levels) - nats / dimensions / math.log(2), rel=1e-9, abs=1e-9
    )
    assert bits_per_dimension(0.0, shape, bin_width=1 / levels) == pytest.approx(math.log2(levels))  # density one


@given(offset=st.sampled_from([0.0, 1e3, -1e5, 1e6, -3e6]), scale=st.floats(0.3, 4.0), seed=st.integers(0, 9))
@example(offset=1e6, scale=1.5, seed=0)  # weights between 1 and e^6 were called equal, and the datum reliable
def test_k_hat_does_not_depend_on_the_size_of_the_weights(offset: float, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = scale * torch.randn(1000, 1, generator=generator) + offset
    shifted = weights.double() - offset  # the rounded values
    _, pareto_k = pv.evaluation.psis(weights)
    _, expected = pv.evaluation.psis(shifted)
    if pareto_k == -math.inf:  # equal weights, for what float32 can tell
        tail = weights[:, 0].topk(96).values  # the fitted tail of 1000 draws, and its start
        assert expected < 0.5
        assert tail[0] - tail[-1] <= 1
    else:
        np.testing.assert_allclose(pareto_k, expected, atol=1e-3)


@given(size=sizes, classes=st.integers(1, 4), num_samples=draws, memory=memories)
def test_several_tensors_stay_together(size: int, classes: int, num_samples: int, memory: int) -> None:
    pyro.set_rng_seed(0)
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Normal(pv.networks.Joint(pv.networks.mlp(2 + classes, 3), (1, 1))),
        pv.posteriors.DiagonalNormal(pv.networks.Joint(pv.networks.mlp(3 + classes, 4), (1, 1))),
    )
    with torch.no_grad():  # the mean depends on the label only
        vae.likelihood.network.network[0].weight[:, :2] = 0
        vae.posterior.network.network[0].weight.zero_()
        vae.posterior.network.network[0].bias.zero_()
    x, y = torch.randn(size, 3), torch.eye(classes)[torch.arange(size) % classes]
    result = evaluate(vae.model, vae.guide, (x, y), num_samples, memory=memory, progress=False)
    expected = vae.likelihood(torch.zeros(size, 2), y).log_prob(x).detach()
    np.testing.assert_allclose(result.log_likelihood, expected, rtol=1e-4)
    assert vae.generate(size, y).shape == x.shape
