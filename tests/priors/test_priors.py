"""Priors inside a VAE: the posterior of a VampPrior, the content of a state dict, and trained parameters."""

import copy
import math
import pickle

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from torch import Tensor

import pyrovae as pv


def vamp_vae() -> pv.VAE:
    return pv.VAE(
        pv.priors.VampPrior(5, (6,)),
        pv.likelihoods.Bernoulli(pv.networks.mlp(2, 8, 6)),
        pv.posteriors.DiagonalNormal(pv.networks.mlp(6, 8, 4)),
    )


def by_hand(vae: pv.VAE, z: Tensor) -> Tensor:
    q = vae.posterior(vae.prior.pseudo_inputs)
    return torch.logsumexp(torch.stack([q.log_prob(part.expand(5, 2)) for part in z]), -1) - math.log(5)


def test_vamp_prior_is_the_mean_of_the_posteriors() -> None:
    vae, z = vamp_vae(), torch.randn(7, 2)
    torch.testing.assert_close(vae.prior().log_prob(z), by_hand(vae, z))


def test_a_vamp_prior_of_two_vaes_uses_the_posterior_of_the_one_that_runs(x: Tensor) -> None:
    first = vamp_vae()
    second = pv.VAE(first.prior, first.likelihood, pv.posteriors.DiagonalNormal(pv.networks.mlp(6, 4)))
    z = torch.randn(7, 2)
    for vae in (first, second, first):
        torch.testing.assert_close(vae.prior().log_prob(z), by_hand(vae, z))
        result = pv.evaluation.evaluate(vae.model, vae.guide, x, 5, seed=0)
        vae.guide.posterior.network[0].weight.data.mul_(1.1)
        assert (pv.evaluation.evaluate(vae.model, vae.guide, x, 5, seed=0).elbo != result.elbo).all()


def test_a_vamp_prior_follows_copies_and_exchanges() -> None:
    vae, z = vamp_vae(), torch.randn(7, 2)
    for clone in (copy.deepcopy(vae), pickle.loads(pickle.dumps(vae))):
        with torch.no_grad():
            clone.posterior.network[0].weight.mul_(2)
        torch.testing.assert_close(clone.prior().log_prob(z), by_hand(clone, z))
        assert not torch.allclose(clone.prior().log_prob(z), vae.prior().log_prob(z))
    vae.posterior = pv.posteriors.DiagonalNormal(pv.networks.mlp(6, 4))
    torch.testing.assert_close(vae.prior().log_prob(z), by_hand(vae, z))
    vae.double()
    assert vae.prior().log_prob(z.double()).dtype == torch.float64


def test_the_state_dict_holds_the_posterior_once() -> None:
    names = set(vamp_vae().state_dict())
    assert names == {
        "model.prior.pseudo_inputs",
        *(f"model.likelihood.network.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")),
        *(f"guide.posterior.network.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")),
    }


def test_a_vamp_prior_trains_its_posterior_through_the_prior_too(x: Tensor) -> None:
    vae = vamp_vae()
    prior_only = vae.prior().log_prob(torch.zeros(2))
    gradients = torch.autograd.grad(prior_only, list(vae.guide.parameters()))
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
    before = vae.prior.pseudo_inputs.detach().clone()
    SVI(vae.model, vae.guide, Adam({"lr": 0.1}), Trace_ELBO()).step(x)
    assert not before.equal(vae.prior.pseudo_inputs)


def test_a_vamp_prior_starts_from_data() -> None:
    data = torch.randn(20, 3, 2)
    start = pv.priors.VampPrior(6, data=data).pseudo_inputs
    rows = [next(i for i, datum in enumerate(data) if datum.equal(row)) for row in start]
    assert len(set(rows)) == 6
    data.zero_()
    assert start.ne(0).any()


def test_a_vamp_prior_inside_a_flow_is_told_its_posterior() -> None:
    vae = vamp_vae()
    vae.prior = pv.priors.NormalizingFlow(2, base=pv.priors.VampPrior(5, (6,)))
    assert vae.generate(3).shape == (3, 6)


@pytest.mark.parametrize("objective", [Trace_ELBO(), pv.objectives.IWAE(3)])
def test_a_plain_distribution_is_a_prior(x: Tensor, objective: object) -> None:
    vae = vamp_vae()
    vae.prior = dist.Laplace(torch.zeros(2), 1.0).to_event(1)
    pv.fit(vae, x, objective=objective, epochs=1)
    assert isinstance(vae.prior().base_dist, dist.Laplace)
    vae.double()
    assert vae.prior().base_dist.loc.dtype == torch.float64
    assert pickle.loads(pickle.dumps(vae)).generate(3).shape == (3, 6)


def test_fixed_moves_everything_inside_a_distribution() -> None:
    inner = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(torch.zeros(2, 3), 1.0).to_event(1))
    flow = dist.TransformedDistribution(inner, [dist.transforms.AffineTransform(torch.ones(3), 2.0, event_dim=1)])
    prior = pv.priors.Fixed(flow).double()
    assert prior().sample().dtype == torch.float64
    assert flow.sample().dtype == torch.float32
    assert not prior.state_dict()


def test_a_second_stage_prior_is_fitted_to_the_aggregate_posterior() -> None:
    torch.manual_seed(0)
    x = torch.bernoulli(torch.rand(300, 6).round() * 0.8 + 0.1)
    vae = vamp_vae()
    vae.prior = pv.priors.StandardNormal(2)
    with torch.no_grad():
        vae.posterior.network[-1].bias[:2] += 3.0  # an aggregate posterior far from the prior
    before = pv.evaluation.evaluate(vae.model, vae.guide, x, 50, seed=0)
    vae.posterior.requires_grad_(False)
    vae.likelihood.requires_grad_(False)
    frozen = {name: part.clone() for name, part in vae.state_dict().items() if "prior" not in name}
    vae.prior = pv.priors.GaussianMixture(2, components=3)
    pv.fit(vae, x, epochs=60, learning_rate=0.05, seed=0)
    after = pv.evaluation.evaluate(vae.model, vae.guide, x, 50, seed=0)
    assert float((after.elbo - before.elbo).mean()) > 5
    assert all(part.equal(vae.state_dict()[name]) for name, part in frozen.items())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: pv.priors.GaussianMixture(0), ValueError, "latent=0"),
        (lambda: pv.priors.GaussianMixture(2, 0), ValueError, "components=0"),
        (lambda: pv.priors.VampPrior(5), ValueError, "exactly one of event_shape= and data="),
        (
            lambda: pv.priors.VampPrior(5, (2,), data=torch.zeros(9, 2)),
            ValueError,
            "exactly one of event_shape= and data=",
        ),
        (
            lambda: pv.priors.VampPrior(5, data=torch.zeros(3, 2)),
            ValueError,
            "components=5 pseudo-inputs .* only 3 data",
        ),
        (lambda: pv.priors.VampPrior(5, (2,))(), ValueError, "Use the prior in a pyrovae.VAE"),
        (lambda: pv.priors.VampPrior(2, data=torch.ones(3, 2).long()), TypeError, "floating-point, got torch.int64"),
        (lambda: pv.priors.NormalizingFlow(0), ValueError, "latent=0"),
        (lambda: pv.priors.Fixed(3), TypeError, "takes a distribution, got a int"),
    ],
)
def test_bad_arguments(make: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
