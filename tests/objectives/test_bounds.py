"""Bounds that are a function of the log-weights, and beta, against plain PyTorch and closed forms."""

import math
from collections.abc import Callable

import pytest
import torch
from pyro import poutine
from pyro.infer import ReweightedWakeSleep, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor

import pyrovae as pv
from pyrovae.objectives import CIWAE, IWAE, MIWAE, BetaELBO, Renyi
from tests.oracle import Oracle


def log_weights_by_hand(oracle: Oracle, x: Tensor, k: int) -> Tensor:
    """log p(x, z) - log q(z | x) of k draws, in plain PyTorch, shape ``(k, N)``."""
    n, vae = torch.distributions.Normal, oracle.vae
    loc, log_scale = vae.posterior.network(x).chunk(2, -1)
    q = n(loc, log_scale.exp())
    z = q.rsample((k,))
    p = n(torch.zeros(2).double(), 1.0).log_prob(z).sum(-1)
    likelihood = n(vae.likelihood.network(z), vae.likelihood.log_scale.exp()).log_prob(x).sum(-1)
    return likelihood + p - q.log_prob(z).sum(-1)


def renyi(alpha: float) -> Callable[[Tensor], Tensor]:
    return lambda log_w: (log_w.exp() ** (1 - alpha)).mean(0).log() / (1 - alpha)


BOUNDS = {
    "renyi -1.5": (Renyi(-1.5, 6), renyi(-1.5)),
    "renyi 0": (Renyi(0, 6), renyi(0)),
    "renyi 0.5": (Renyi(0.5, 6), renyi(0.5)),
    "renyi 1": (Renyi(1, 6), lambda log_w: log_w.mean(0)),
    "renyi 3": (Renyi(3, 6), renyi(3)),
    "miwae": (MIWAE(3, 2), lambda log_w: (log_w[:3].exp().mean(0).log() + log_w[3:].exp().mean(0).log()) / 2),
    "ciwae": (CIWAE(6, 0.3), lambda log_w: 0.3 * log_w.mean(0) + 0.7 * log_w.exp().mean(0).log()),
}


@pytest.mark.parametrize(("objective", "by_hand"), BOUNDS.values(), ids=BOUNDS)
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_bound_and_gradient_agree_with_plain_pytorch(
    objective: IWAE, by_hand: Callable[[Tensor], Tensor], scale: float
) -> None:
    oracle = Oracle(scale=1.3, shift=0.4)
    x, parameters = oracle.data(5), list(oracle.vae.parameters())
    model, guide = (poutine.scale(program, scale) for program in (oracle.vae.model, oracle.vae.guide))
    objective.loss(model, guide, x)  # finds the depth of the plates
    torch.manual_seed(2)
    loss = objective(model, guide)(x)
    found = torch.autograd.grad(loss, parameters)
    torch.manual_seed(2)
    expected = -scale * by_hand(log_weights_by_hand(oracle, x, 6)).sum()
    torch.testing.assert_close(loss, expected)
    for slope, by_torch in zip(found, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(slope, by_torch)


def test_renyi_bounds_fall_from_iwae_to_the_elbo_and_beyond() -> None:
    oracle = Oracle(scale=1.5, shift=0.6)
    x = oracle.data(50)
    losses = {}
    for alpha in (-1, 0, 0.5, 0.999999, 1, 1.000001, 2):
        torch.manual_seed(0)
        losses[alpha] = Renyi(alpha, 7, max_plate_nesting=1).loss(oracle.vae.model, oracle.vae.guide, x)
    torch.manual_seed(0)
    assert losses[0] == pytest.approx(IWAE(7, max_plate_nesting=1).loss(oracle.vae.model, oracle.vae.guide, x))
    assert sorted(losses.values()) == list(losses.values())
    assert losses[0.999999] == pytest.approx(losses[1], abs=1e-3)
    assert -Renyi(1, 2000).loss(oracle.vae.model, oracle.vae.guide, x) == pytest.approx(
        oracle.elbo(x).sum().item(), abs=0.5
    )


def test_renyi_between_has_its_own_closed_form() -> None:
    oracle = Oracle(scale=0.8, shift=0.3)
    x, alpha = oracle.data(4), 0.5
    # E_q[w^(1 - a)] = p(x)^(1 - a) * integral of q^a p(z | x)^(1 - a), a product of two normals, per latent dimension.
    variance = alpha / 0.8**2 + (1 - alpha)
    overlap = 0.8**-alpha * variance**-0.5 * math.exp(-0.5 * alpha * (1 - alpha) / 0.8**2 * 0.3**2 / variance)
    exact = oracle.log_likelihood(x).sum() + 4 * 2 * math.log(overlap) / (1 - alpha)
    found = -Renyi(alpha, 200_000).loss(oracle.vae.model, oracle.vae.guide, x)
    assert found == pytest.approx(exact.item(), abs=0.01)


@pytest.mark.parametrize("inner", [None, TraceMeanField_ELBO(), IWAE(4)], ids=["default", "mean field", "IWAE"])
def test_beta_weighs_the_latent_sites(inner: Trace_ELBO | None) -> None:
    oracle = Oracle(scale=1.3, shift=0.4)
    x, beta = oracle.data(5), 3.0
    parameters = list(oracle.vae.parameters())
    objective = BetaELBO(beta, inner)
    objective.loss(oracle.vae.model, oracle.vae.guide, x)
    torch.manual_seed(2)
    loss = objective(oracle.vae.model, oracle.vae.guide)(x)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)

    n, vae = torch.distributions.Normal, oracle.vae
    torch.manual_seed(2)
    loc, log_scale = vae.posterior.network(x).chunk(2, -1)
    q, p = n(loc, log_scale.exp()), n(torch.zeros(2).double(), 1.0)
    z = q.rsample((4,) if isinstance(inner, IWAE) else (1,))
    likelihood = n(vae.likelihood.network(z), vae.likelihood.log_scale.exp()).log_prob(x).sum(-1)
    kl = torch.distributions.kl_divergence(q, p).sum(-1)
    if not isinstance(inner, TraceMeanField_ELBO):
        kl = (q.log_prob(z) - p.log_prob(z)).sum(-1)
    expected = -((likelihood - beta * kl).logsumexp(0) - math.log(len(z))).sum()
    torch.testing.assert_close(loss, expected)
    for slope, by_torch in zip(found, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(slope, by_torch)
    torch.manual_seed(2)
    assert objective.loss_and_grads(vae.model, vae.guide, x) == pytest.approx(expected.item())
    torch.testing.assert_close(parameters[0].grad, found[0])


def test_beta_has_a_differentiable_loss_where_its_objective_has_one() -> None:
    assert hasattr(BetaELBO(2.0), "differentiable_loss")
    assert not hasattr(BetaELBO(2.0, ReweightedWakeSleep()), "differentiable_loss")
    with pytest.raises(AttributeError, match="BetaELBO has no attribute 'losss'"):
        _ = BetaELBO(2.0).losss


@pytest.mark.filterwarnings("ignore:the KL warm-up does not end")
def test_beta_and_kl_warmup_multiply() -> None:
    oracle = Oracle(scale=1.3)
    x = oracle.data(200)
    kl = (
        (oracle.log_likelihood(x) - oracle.elbo(x)).mean().item()
    )  # divergence from the posterior; that from the prior is larger
    bounds = {}
    for beta in (1.0, 2.0):
        objective = BetaELBO(beta, TraceMeanField_ELBO())
        history = pv.fit(
            oracle.vae, x, objective=objective, epochs=1, batch_size=200, kl_warmup=4, learning_rate=1e-300, seed=0
        )
        bounds[beta] = history.train[0]
    with torch.no_grad():
        loc, log_scale = oracle.vae.posterior.network(x).chunk(2, -1)
    to_prior = 0.5 * (loc**2 + (2 * log_scale).exp() - 1).sum(-1) - log_scale.sum(-1)
    assert to_prior.mean() > kl
    assert bounds[1.0] - bounds[2.0] == pytest.approx(0.25 * to_prior.mean().item(), rel=1e-9)
