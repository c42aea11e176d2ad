r"""Several latent layers, against a linear-Gaussian chain of which everything is known.

With scalars :math:`z_2 \sim N(0, 1)`, :math:`z_1 \mid z_2 \sim N(a z_2, s^2)`,
:math:`x \mid z_1 \sim N(b z_1, t^2)`, x is normal with variance :math:`b^2 (a^2 + s^2) + t^2`, and each
conditional of the posterior is normal too.
"""

import copy
import math
import pickle
from collections.abc import Callable

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.optim import Adam
from torch import Tensor

import pyrovae as pv

A, B, S, T = 0.8, 1.3, 0.6, 0.4
X_VARIANCE = B**2 * (A**2 + S**2) + T**2


def normal(loc: Tensor, variance: float) -> dist.TorchDistribution:
    return dist.Normal(loc, math.sqrt(variance)).to_event(1)


def given(a: float, noise: float, prior_variance: float = 1.0) -> tuple[float, float]:
    """Return gain and variance of u given y = a u + noise, for a normal u of variance ``variance``."""
    variance = 1 / (1 / prior_variance + a**2 / noise)
    return variance * a / noise, variance


Z1_GIVEN_X, Z2_GIVEN_Z1 = given(B, T**2, A**2 + S**2), given(A, S**2)
Z2_GIVEN_X = given(A * B, B**2 * S**2 + T**2)


def z1_given_both(x: Tensor, z2: Tensor) -> dist.TorchDistribution:
    variance = 1 / (1 / S**2 + B**2 / T**2)
    return normal(variance * (A * z2 / S**2 + B * x / T**2), variance)


PRIORS = (lambda z2: normal(A * z2, S**2), dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))
EXACT = {
    "bottom-up": (
        lambda x: normal(Z1_GIVEN_X[0] * x, Z1_GIVEN_X[1]),
        lambda z1: normal(Z2_GIVEN_Z1[0] * z1, Z2_GIVEN_Z1[1]),
    ),
    "top-down": (z1_given_both, lambda x: normal(Z2_GIVEN_X[0] * x, Z2_GIVEN_X[1])),
}


def chain(inference: str) -> pv.HierarchicalVAE:
    return pv.HierarchicalVAE(PRIORS, lambda z1: normal(B * z1, T**2), EXACT[inference], inference=inference)


@pytest.mark.parametrize("inference", EXACT)
def test_log_weights_are_log_p_under_the_exact_posterior(inference: str) -> None:
    vae, x = chain(inference), torch.randn(9, 1).double()
    expected = dist.Normal(0.0, math.sqrt(X_VARIANCE)).log_prob(x.squeeze(-1))
    weights = pv.evaluation.log_weights(vae.model, vae.guide, x, 11, seed=0)
    torch.testing.assert_close(weights, expected.expand(11, 9), atol=1e-6, rtol=0)
    loss = pv.objectives.IWAE(3)(vae.model, vae.guide)(x)
    torch.testing.assert_close(loss, -expected.sum(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("inference", EXACT)
def test_ancestral_draws_follow_the_marginal(inference: str) -> None:
    vae = chain(inference)
    draws = vae.generate(50_000)
    assert abs(draws.var() / X_VARIANCE - 1) < 0.03
    assert vae.generate(3, mean=True).shape == (3, 1)
    x = torch.randn(5, 1).double()
    assert vae.reconstruct(x).shape == (5, 1)
    assert (vae.reconstruct(3 * x.sign(), mean=True) * x.sign() > 0).all()


def network(kind: str) -> pv.HierarchicalVAE:
    gauss, mlp, joint = pv.posteriors.DiagonalNormal, pv.networks.mlp, pv.networks.Joint
    top = pv.priors.VampPrior(4, (3, 2)) if kind == "VampPrior" else pv.priors.StandardNormal(3)
    likelihood = pv.likelihoods.Bernoulli(
        joint(mlp(5 + 3, 8, (3, 2)), event_dims=(1, 1)) if kind == "VampPrior" else mlp(5, 8, (3, 2))
    )
    posteriors = (gauss(joint(mlp(6 + 3, 8, 10), event_dims=(2, 1))), gauss(mlp((3, 2), 8, 6)))
    if kind == "bottom-up":
        posteriors = (gauss(mlp((3, 2), 8, 10)), gauss(mlp(5, 8, 6)))
    return pv.HierarchicalVAE(
        (gauss(mlp(3, 8, 10)), top),
        likelihood,
        posteriors,
        inference="bottom-up" if kind == "bottom-up" else "top-down",
        skip=kind == "VampPrior",
    )


KINDS = ["bottom-up", "top-down", "VampPrior"]


@pytest.fixture
def images() -> Tensor:
    return torch.bernoulli(torch.full((12, 3, 2), 0.4))


@pytest.mark.parametrize("kind", KINDS)
def test_the_log_weight_is_the_sum_of_all_terms(kind: str, images: Tensor) -> None:
    vae = network(kind)
    torch.manual_seed(0)
    sites = poutine.trace(vae.guide).get_trace(images)
    z1, z2 = sites.nodes["z1"]["value"], sites.nodes["z2"]["value"]
    p1, p2 = vae.priors
    q1, q2 = vae.posteriors
    bottom_up = kind == "bottom-up"
    expected = (
        vae.likelihood(*((z1, z2) if kind == "VampPrior" else (z1,))).log_prob(images)
        + p1(z2).log_prob(z1)
        + p2().log_prob(z2)
        - (q1(images) if bottom_up else q1(images, z2)).log_prob(z1)
        - (q2(z1) if bottom_up else q2(images)).log_prob(z2)
    )
    model_sites = poutine.trace(poutine.replay(vae.model, sites)).get_trace(images)
    elbo = model_sites.log_prob_sum() - sites.log_prob_sum()
    torch.testing.assert_close(elbo, expected.sum())


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_trains_under_every_trainer(kind: str, images: Tensor) -> None:
    def by_svi(vae: pv.HierarchicalVAE) -> None:
        SVI(vae.model, vae.guide, Adam({"lr": 0.01}), Trace_ELBO()).step(images)

    def by_fit(vae: pv.HierarchicalVAE) -> None:
        pv.fit(vae, images, epochs=1)

    def by_iwae(vae: pv.HierarchicalVAE) -> None:
        pv.fit(vae, images, epochs=1, objective=pv.objectives.IWAE(4))

    trainers: list[Callable[[pv.HierarchicalVAE], None]] = [by_svi, by_fit, by_iwae]
    for train in trainers:
        vae = pickle.loads(pickle.dumps(copy.deepcopy(network(kind))))
        before = {name: part.detach().clone() for name, part in vae.named_parameters()}
        train(vae)
        assert all(not part.equal(before[name]) for name, part in vae.named_parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_every_diagnostic_works(kind: str, images: Tensor) -> None:
    vae = network(kind)
    results = pv.evaluation.evaluate(vae.model, vae.guide, images, 30, seed=0)
    assert (results.elbo <= results.log_likelihood).all()
    units = pv.evaluation.active_units(vae.guide, images, seed=0)
    assert (units.z1.sizes["z1_unit"], units.z2.sizes["z2_unit"]) == (5, 3)
    assert vae.generate(4).shape == vae.reconstruct(images[:4]).shape == (4, 3, 2)
    if kind != "bottom-up":  # Pyro wants the sites of model and guide in one order
        assert TraceMeanField_ELBO().loss(vae.model, vae.guide, images) > 0


def test_the_vamp_prior_uses_the_posterior_of_the_top_layer() -> None:
    vae = network("VampPrior")
    z = torch.randn(7, 3)
    q = vae.posteriors[1](vae.priors[1].pseudo_inputs)
    expected = torch.logsumexp(q.log_prob(z.unsqueeze(-2)), -1) - math.log(4)
    torch.testing.assert_close(vae.priors[1]().log_prob(z), expected)


def test_components_are_exchanged(images: Tensor) -> None:
    vae = network("bottom-up")
    vae.likelihood = pv.likelihoods.Bernoulli(pv.networks.mlp(5, (3, 2)))
    vae.priors = (vae.priors[0], dist.StudentT(5.0, torch.zeros(3), 1.0).to_event(1))
    pv.fit(vae, images, epochs=1)
    assert isinstance(vae.priors[1]().base_dist, dist.StudentT)
    assert len(list(vae.likelihood.parameters())) == 2


def test_a_fixed_distribution_serves_as_a_conditional_prior(images: Tensor) -> None:
    vae = network("bottom-up")
    vae.priors = (dist.Normal(torch.zeros(5), 1.0).to_event(1), vae.priors[1])
    pv.fit(vae, images, epochs=1)
    assert vae.generate(3).shape == (3, 3, 2)


def test_refinement_of_several_layers_is_refused(images: Tensor) -> None:
    vae = network("bottom-up")
    vae.posteriors = (pv.posteriors.SemiAmortized(vae.posteriors[0]), vae.posteriors[1])
    with pytest.raises(ValueError, match="cannot refine several latent layers"):
        vae.guide(images)


def test_bad_components_are_named(images: Tensor) -> None:
    vae = network("bottom-up")
    with pytest.raises(ValueError, match="2 priors and 1 posteriors"):
        pv.HierarchicalVAE(vae.priors, vae.likelihood, vae.posteriors[:1])
    with pytest.raises(ValueError, match="inference='sideways' must be"):
        pv.HierarchicalVAE(vae.priors, vae.likelihood, vae.posteriors, inference="sideways")
    with pytest.raises(ValueError, match="got 1 priors for 2 latent layers"):
        vae.priors = (vae.priors[0],)
    vae.priors = (lambda z2: dist.Normal(z2, 1.0), vae.priors[1])
    with pytest.raises(ValueError, match=r"prior of z1 .*batch shape \(12, 3\).*required batch shape is \(12,\)"):
        pv.fit(vae, images, epochs=1)
    with pytest.raises(ValueError, match="n=-1"):
        network("bottom-up").generate(-1)
