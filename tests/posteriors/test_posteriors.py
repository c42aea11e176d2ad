"""Posteriors on the oracle: correlations, refinement, and the functions that keep using the encoder."""

import copy
import pickle
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrovae as pv
from tests.oracle import Oracle


def constant(parameters: Tensor) -> nn.Module:
    """A network whose output is the same for all data."""
    network = nn.Linear(5, len(parameters)).double()
    with torch.no_grad():
        network.weight.zero_()
        network.bias.copy_(parameters)
    return network


def test_a_full_covariance_is_made_of_scales_and_a_unit_triangle() -> None:
    parameters = torch.tensor([0.1, 0.2, 0.3, -1.0, 0.0, 1.0, 0.5, -0.7, 0.2]).double()
    q = pv.posteriors.MultivariateNormal(constant(parameters))(torch.zeros(1, 5).double())
    below = torch.tensor([[0.0, 0.0, 0.0], [0.5, 0.0, 0.0], [-0.7, 0.2, 0.0]]).double()
    unit = torch.eye(3).double() + below / 3**0.5
    scale = parameters[3:6].exp().diag()
    torch.testing.assert_close(q.mean[0], parameters[:3])
    torch.testing.assert_close(q.covariance_matrix[0], scale @ unit @ unit.T @ scale)


def test_a_low_rank_covariance_is_made_of_scales_and_columns() -> None:
    parameters = torch.tensor([0.1, 0.2, -1.0, 1.0, 0.5, -0.7]).double()
    q = pv.posteriors.MultivariateNormal(constant(parameters), rank=1)(torch.zeros(1, 5).double())
    column, scale = parameters[4:].unsqueeze(-1), parameters[2:4].exp().diag()
    torch.testing.assert_close(q.covariance_matrix[0], scale @ (torch.eye(2).double() + column @ column.T) @ scale)


def test_heavy_tails_are_better_proposals_than_a_posterior_that_is_too_narrow() -> None:
    x, oracle = Oracle().data(50), Oracle(scale=0.5)
    normal = pv.evaluation.evaluate(oracle.vae.model, oracle.vae.guide, x, 2000, seed=0)
    for heavy in (pv.posteriors.Laplace, pv.posteriors.StudentT):
        oracle.vae.posterior = heavy(oracle.vae.posterior.network)
        result = pv.evaluation.evaluate(oracle.vae.model, oracle.vae.guide, x, 2000, seed=0)
        assert float(result.pareto_k.mean()) < float(normal.pareto_k.mean())
        error = torch.from_numpy(result.log_likelihood.values) - oracle.log_likelihood(x)
        assert error.mean().abs() < 0.05


@pytest.mark.slow
def test_correlated_posteriors_learn_a_correlated_truth() -> None:
    oracle = Oracle()
    mix = torch.tensor([[1.0, 0.0], [0.9, 0.4]]).double()  # rotates the latents, so that p(z | x) is correlated
    rotated = copy.deepcopy(oracle.vae)
    with torch.no_grad():
        rotated.likelihood.network[0].weight.copy_(oracle.w @ mix * 1.5)
    covariance = rotated.likelihood.network[0].weight @ rotated.likelihood.network[0].weight.T
    covariance = (covariance + oracle.sigma**2 * torch.eye(5)).detach()
    x = dist.MultivariateNormal(oracle.b, covariance).sample((500,))
    log_p = dist.MultivariateNormal(oracle.b, covariance).log_prob(x).mean()
    rotated.likelihood.requires_grad_(False)
    gaps = {}
    for name, posterior in {
        "mean field": pv.posteriors.DiagonalNormal(pv.networks.mlp(5, 4)),
        "correlated": pv.posteriors.MultivariateNormal(pv.networks.mlp(5, 5)),
        "low rank": pv.posteriors.MultivariateNormal(pv.networks.mlp(5, 6), 1),
    }.items():
        rotated.posterior = posterior.double()
        for parameter in posterior.parameters():
            torch.nn.init.zeros_(parameter)  # some random weights give scales from which the training does not recover
        anneal = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=200)
        pv.fit(rotated, x, epochs=200, learning_rate=0.02, scheduler=anneal, seed=0)
        result = pv.evaluation.evaluate(rotated.model, rotated.guide, x, 200, seed=0)
        gaps[name] = float(log_p) - float(result.elbo.mean())
    assert max(gaps["correlated"], gaps["low rank"]) < 0.03 < 0.1 < gaps["mean field"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        pv.posteriors.DiagonalNormal,
        lambda network: pv.posteriors.NormalizingFlow(
            pv.posteriors.DiagonalNormal(network), pv.flows.inverse_autoregressive(2)
        ),
    ],
)
def test_refinement_closes_the_amortization_gap(make: object) -> None:
    oracle = Oracle(scale=2.0, shift=1.5)
    x, vae = oracle.data(40), oracle.vae
    vae.posterior = make(vae.posterior.network).double()
    amortized = pv.evaluation.evaluate(vae.model, vae.guide, x, 500, seed=0)
    before = copy.deepcopy(vae.state_dict())
    vae.posterior = pv.posteriors.SemiAmortized(vae.posterior, steps=150, num_particles=20)
    refined = pv.evaluation.evaluate(vae.model, vae.guide, x, 500, seed=0)
    truth = oracle.log_likelihood(x).numpy()
    assert float((truth - amortized.elbo).mean()) > 1.0
    assert float((truth - refined.elbo).mean()) < 0.05
    assert float(refined.ess.mean()) > 400
    assert all(part.equal(before[name.replace("amortized.", "")]) for name, part in vae.state_dict().items())
    assert all(parameter.grad is None for parameter in vae.parameters())


@pytest.mark.parametrize(
    "posterior",
    [
        pv.posteriors.Laplace(pv.networks.mlp(6, 4)),
        pv.posteriors.StudentT(pv.networks.mlp(6, 4)),
        pv.posteriors.MultivariateNormal(pv.networks.mlp(6, 5)),
        pv.posteriors.MultivariateNormal(pv.networks.mlp(6, 6), rank=1),
    ],
)
def test_refinement_of_other_families(vae: pv.VAE, x: Tensor, posterior: nn.Module) -> None:
    vae.posterior = pv.posteriors.SemiAmortized(posterior, steps=3)
    before = {name: part.detach().clone() for name, part in vae.named_parameters()}
    assert type(vae.posterior(x)) is type(posterior(x))
    pv.fit(vae, x, epochs=1)
    assert all(not part.equal(before[name]) for name, part in vae.named_parameters())
    pickle.loads(pickle.dumps(copy.deepcopy(vae))).reconstruct(x)


def test_refinement_under_a_vamp_prior_that_has_not_run_yet(vae: pv.VAE, x: Tensor) -> None:
    vae.prior = pv.priors.VampPrior(5, (6,))
    vae.posterior = pv.posteriors.SemiAmortized(vae.posterior, steps=3)
    assert vae.posterior(x).batch_shape == (12,)


def test_refinement_leaves_a_vamp_prior_alone(vae: pv.VAE, x: Tensor) -> None:
    vae.prior = pv.priors.VampPrior(5, (6,))
    z = torch.randn(7, 2)
    expected = vae.prior().log_prob(z)
    vae.posterior = pv.posteriors.SemiAmortized(vae.posterior, steps=3)
    assert pv.evaluation.evaluate(vae.model, vae.guide, x, 20, seed=0).elbo.shape == (12,)
    torch.testing.assert_close(vae.prior().log_prob(z), expected)


def test_parts_that_cannot_be_refined_are_named(vae: pv.VAE, x: Tensor) -> None:
    with pytest.raises(ValueError, match="steps=0"):
        pv.posteriors.SemiAmortized(vae.posterior, steps=0)
    with pytest.raises(ValueError, match="Use SemiAmortized as the posterior of a pyrovae"):
        pv.posteriors.SemiAmortized(vae.posterior)(x)
    vae.posterior = pv.posteriors.SemiAmortized(lambda x: dist.Uniform(x[:, :2], x[:, :2] + 1).to_event(1))
    with pytest.raises(TypeError, match=r"families: Normal, .*; got a Uniform"):
        vae.posterior(x)


def test_refinement_repeats_under_a_seed(vae: pv.VAE, x: Tensor) -> None:
    vae.posterior = pv.posteriors.SemiAmortized(vae.posterior, steps=3)
    state = torch.get_rng_state()
    runs = [pv.evaluation.evaluate(vae.model, vae.guide, x, 20, seed=3).elbo.values for _ in range(2)]
    assert (runs[0] == runs[1]).all()
    assert state.equal(torch.get_rng_state())
    assert not pyro.get_param_store().keys()
