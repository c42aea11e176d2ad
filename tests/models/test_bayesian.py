"""Random decoder weights: their scale in a minibatch, their names, and an evaluation that averages over them."""

import copy
import math
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroModule
from pyro.optim import Adam
from torch import Tensor

import pyrovae as pv
from tests.models.examples import bayesian_vae
from tests.processes import in_each

WEIGHTS = {"0.weight": (8, 2), "0.bias": (8,), "2.weight": (6, 8), "2.bias": (6,)}


def test_weights_are_drawn_once_outside_the_data_plate(x: Tensor) -> None:
    vae = bayesian_vae()
    for program in (vae.model, vae.guide):
        sites = {
            name: site
            for name, site in poutine.trace(program).get_trace(x).nodes.items()
            if site["type"] == "sample" and name in WEIGHTS
        }
        assert {name: tuple(site["value"].shape) for name, site in sites.items()} == WEIGHTS
        assert all(not site["cond_indep_stack"] for site in sites.values())


def test_a_minibatch_counts_the_weights_once(x: Tensor) -> None:
    vae = bayesian_vae()

    def parts(batch: Tensor) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        guide = poutine.trace(vae.guide).get_trace(batch)
        model = poutine.trace(poutine.replay(vae.model, trace=guide)).get_trace(batch)
        model.compute_log_prob()
        of_weights = sum(model.nodes[name]["log_prob_sum"] for name in WEIGHTS)
        return of_weights, model.nodes["x"]["scale"]

    whole, batch = parts(x), parts(x[:3])
    torch.testing.assert_close(whole[0], batch[0])
    assert (whole[1], batch[1]) == (1.0, 4.0)


def test_data_are_generated_with_weights_from_their_posterior() -> None:
    x = 5 + 0.2 * torch.randn(100, 4)
    vae = pv.BayesianVAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Normal(pv.bayesian.random_weights(pv.networks.mlp(2, 4)), scale=0.2),
        pv.posteriors.DiagonalNormal(pv.networks.mlp(4, 4)),
        data_size=100,
    )
    with torch.no_grad():
        vae.guide.loc[vae.guide.sites.index("0.bias")].fill_(5.0)
        vae.guide.loc[vae.guide.sites.index("0.weight")].zero_()
        for parameter in vae.posterior.parameters():
            parameter.zero_()  # codes near zero, whatever the random weights were
    assert (vae.reconstruct(x, mean=True) - 5).abs().max() < 0.5
    assert (vae.generate(200, mean=True) - 5).abs().max() < 0.5
    assert not pyro.get_param_store().keys()


def test_the_prior_of_the_weights_moves_with_the_module(x: Tensor) -> None:
    vae = bayesian_vae().double()
    results = pv.evaluation.evaluate_globals(vae.model, vae.guide, x.double(), 10, num_draws=2, seed=0)
    assert results.log_likelihood.shape == (2, 12)
    pv.fit(vae, x.double(), epochs=1)


def test_every_parameter_trains_and_vaes_do_not_share(x: Tensor) -> None:
    def by_svi(vae: pv.BayesianVAE) -> None:
        SVI(vae.model, vae.guide, Adam({"lr": 0.01}), Trace_ELBO()).step(x)

    def by_fit(vae: pv.BayesianVAE) -> None:
        history = pv.fit(vae, x, batch_size=5, epochs=2)
        assert -60 < history.train[-1] < -4  # nats per datum, whatever the batch

    first = bayesian_vae()
    for train in (by_svi, by_fit):
        second = pickle.loads(pickle.dumps(copy.deepcopy(first)))
        before = {name: part.detach().clone() for name, part in second.named_parameters()}
        train(second)
        assert all(not part.equal(before[name]) for name, part in second.named_parameters())
        assert all(part.equal(before[name]) for name, part in first.named_parameters())
    assert not pyro.get_param_store().keys()


def test_the_evaluation_averages_probabilities_over_draws_of_the_weights(x: Tensor) -> None:
    vae = bayesian_vae()
    with pytest.raises(ValueError, match=r"latent site '0.weight' lies outside .*evaluate_globals"):
        pv.evaluation.evaluate(vae.model, vae.guide, x, 10)
    state = torch.get_rng_state()
    results = pv.evaluation.evaluate_globals(vae.model, vae.guide, x, 40, num_draws=5, seed=0)
    assert state.equal(torch.get_rng_state())
    assert results.log_likelihood.sizes == {"draw": 5, "datum": 12}
    expected = np.log(np.exp(results.log_likelihood).mean("draw"))
    np.testing.assert_allclose(results.log_predictive, expected)
    assert (results.log_predictive >= results.log_likelihood.mean("draw")).all()
    again = pv.evaluation.evaluate_globals(vae.model, vae.guide, x, 40, num_draws=5, seed=0)
    assert again.log_predictive.equals(results.log_predictive)


def globals_in_a_process(folder: Path | None = None) -> list[float]:
    pyro.set_rng_seed(0)
    vae, x = bayesian_vae(), torch.rand(12, 6, generator=torch.Generator().manual_seed(1)).round()
    options: dict[str, Any] = {"seed": 2, "memory": 2**17, "progress": False, "checkpoint": folder}
    results = pv.evaluation.evaluate_globals(vae.model, vae.guide, x, 20, num_draws=3, **options)
    return [*results.log_predictive.values, *results.log_likelihood.values.ravel()]


@pytest.mark.slow
def test_processes_and_a_folder_leave_the_average_as_it_is(tmp_path: Path) -> None:
    one = globals_in_a_process()
    assert in_each(2, globals_in_a_process) == [one, one]
    assert globals_in_a_process(tmp_path) == one
    assert sorted(path.name for path in tmp_path.iterdir()) == ["draw-0", "draw-1", "draw-2"]
    assert globals_in_a_process(tmp_path) == one


def test_keyword_arguments_reach_the_draws_of_global_latents() -> None:
    def model(x: Tensor, *, scale: float) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(w + z, scale), obs=x)

    def guide(x: Tensor, *, scale: float) -> None:
        pyro.sample("w", dist.Normal(0.0, scale))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    run = partial(pv.evaluation.evaluate_globals, model, guide, torch.ones(4), 20, num_draws=2, seed=0, progress=False)
    one, other = (run(kwargs={"scale": scale}).log_predictive.values for scale in (1.0, 2.0))
    assert not np.allclose(one, other)


@pytest.mark.slow
def test_the_average_is_the_marginal_of_a_closed_form() -> None:
    """x = w + z + noise with w global: given the data the predictive of one datum is known."""
    x = torch.tensor([0.5, -1.0, 2.0]).double()
    one = torch.ones(()).double()

    def model(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(0 * one, one))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0 * one, one))
            pyro.sample("x", dist.Normal(w + z, one), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("w", dist.Normal(0.3 * one, 0.5 * one))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, one))

    results = pv.evaluation.evaluate_globals(model, guide, x, 500, num_draws=100, seed=0, progress=False)
    expected = dist.Normal(0.3, math.sqrt(0.5**2 + 2)).log_prob(x)
    np.testing.assert_allclose(results.log_predictive, expected, atol=0.1)


def test_bad_arguments(x: Tensor, vae: pv.VAE) -> None:
    with pytest.raises(ValueError, match=r"data_size=5, but a batch has 12 data"):
        pv.fit(bayesian_vae(5), x)
    with pytest.raises(ValueError, match="data_size=0"):
        bayesian_vae(0)
    with pytest.raises(ValueError, match=r"no random weights\. Make its network with"):
        pv.BayesianVAE(vae.prior, vae.likelihood, vae.posterior, data_size=12)
    half = pv.networks.mlp(2, 8, 6)
    pv.bayesian.random_weights(half[0])
    mixed = PyroModule[torch.nn.Linear](8, 6)
    half[2] = mixed
    with pytest.raises(ValueError, match=r"network.2 has both random and fixed weights"):
        pv.BayesianVAE(vae.prior, pv.likelihoods.Bernoulli(half), vae.posterior, data_size=12)
    with pytest.raises(ValueError, match=r"num_draws.* got 0"):
        pv.evaluation.evaluate_globals(vae.model, vae.guide, x, num_draws=0)
    with pytest.raises(ValueError, match=r"\['z'\], lie inside the data plate 'data'.*Use pyrovae.evaluation.evaluate"):
        pv.evaluation.evaluate_globals(vae.model, vae.guide, x)
