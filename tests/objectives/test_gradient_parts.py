"""Sticking the landing, doubly reparameterized gradients and PIWAE against formulas by hand and in expectation."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

import pyrovae as pv
from pyrovae._waist.scales import LatentScale
from pyrovae.objectives import IWAE, PIWAE
from tests.objectives.by_hand import (
    deep_draws,
    deep_logs,
    deep_vae,
    flat_draws,
    flat_logs,
    flat_vae,
    gradients,
    mlp,
    normal,
    vamp_vae,
)
from tests.oracle import Oracle

GRADIENTS = ["sticking_the_landing", "doubly_reparameterized"]


def mvn_vae() -> pv.VAE:
    vae = flat_vae()
    vae.posterior = pv.posteriors.MultivariateNormal(mlp(3, 2 + 2 * 3 // 2)).double()
    return vae


def flow_vae() -> pv.VAE:
    vae = flat_vae()
    vae.posterior = pv.posteriors.InverseAutoregressiveFlow(mlp(3, 2 * 2), 2, depth=1, hidden=(4,)).double()
    return vae


def by_hand(
    vae: Any, x: Tensor, draws: Any, logs: Any, k: int, gradient: str, t: float, in_one_run: bool
) -> dict[str, Tensor]:
    """Return gradients of minus the bound: of the model at fixed draws, and of the guide through frozen programs."""
    frozen = copy.deepcopy(vae).requires_grad_(False)
    torch.manual_seed(1)
    z = draws(vae, x, k, in_one_run)
    likelihood, prior, guide = logs(frozen, x, z)
    log_w = likelihood + t * (prior - guide)
    w = log_w.detach().softmax(0)
    c = {GRADIENTS[0]: w, GRADIENTS[1]: (1 - t) * w + t * w**2}[gradient]
    (c * log_w).sum().neg().backward()
    likelihood, prior, _ = logs(vae, x, [part.detach() for part in z])
    (w * (likelihood + t * prior)).sum().neg().backward()
    return gradients(vae)


@pytest.mark.parametrize("t", [1.0, 0.3])
@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize(
    ("make", "draws", "logs", "vectorize"),
    [
        (flat_vae, flat_draws, flat_logs, True),
        (flat_vae, flat_draws, flat_logs, False),
        (deep_vae, deep_draws, deep_logs, True),
    ],
    ids=["flat", "one by one", "deep"],
)
def test_gradients_agree_with_plain_pytorch(
    make: Any, draws: Any, logs: Any, vectorize: bool, gradient: Any, k: int, t: float
) -> None:
    vae, x = make(), torch.randn(6, 3).double()
    objective = IWAE(k, gradient=gradient, vectorize_particles=vectorize)
    torch.manual_seed(1)
    with LatentScale(t) if t < 1 else nullcontext():
        objective(vae.model, vae.guide)(x).backward()
    found = gradients(vae)
    expected = by_hand(vae, x, draws, logs, k, gradient, t, vectorize)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=lambda message, name=name: f"{name}: {message}")


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("make", [flat_vae, deep_vae, vamp_vae, mvn_vae, flow_vae])
def test_the_value_is_that_of_the_bound(make: Callable[[], Any], gradient: Any) -> None:
    vae, x = make(), torch.randn(6, 3).double()
    losses = []
    for objective in (IWAE(5, max_plate_nesting=1), IWAE(5, gradient=gradient), IWAE(5, gradient=gradient)):
        torch.manual_seed(0)
        losses.append(objective.loss_and_grads(vae.model, vae.guide, x))
    torch.manual_seed(0)
    losses.append(IWAE(5, gradient=gradient).loss(vae.model, vae.guide, x))
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-9)


@pytest.mark.parametrize("k", [1, 8])
def test_at_the_exact_posterior_the_guide_has_no_gradient(k: int) -> None:
    oracle = Oracle()
    x, guide = oracle.data(20), list(oracle.vae.guide.parameters())
    for gradient in GRADIENTS:
        loss = IWAE(k, gradient=gradient)(oracle.vae.model, oracle.vae.guide)(x)
        for slope in torch.autograd.grad(loss, guide):
            torch.testing.assert_close(slope, torch.zeros_like(slope), atol=1e-11, rtol=0)
    loss = IWAE(k)(oracle.vae.model, oracle.vae.guide)(x)
    assert max(slope.abs().max() for slope in torch.autograd.grad(loss, guide)) > 0.1


def means(vae: Any, objective: Any, x: Tensor, t: float, calls: int = 50, copies: int = 300) -> tuple[Tensor, Tensor]:
    """Return the mean gradient of one datum's loss over many draws, with its standard error, in one vector."""
    batch = x.expand(copies, -1)
    found = []
    for _ in range(calls):
        with LatentScale(t) if t < 1 else nullcontext():
            objective(vae.model, vae.guide)(batch).backward()
        found.append(torch.cat([slope.flatten() for slope in gradients(vae).values()]) / copies)
    stacked = torch.stack(found)
    return stacked.mean(0), stacked.std(0) / calls**0.5


def worst(vae: Any, first: Any, second: Any, x: Tensor, t: float = 1.0) -> float:
    """Return the largest difference of two mean gradients in standard errors."""
    (a, of_a), (b, of_b) = means(vae, first, x, t), means(vae, second, x, t)
    noise = (of_a**2 + of_b**2).sqrt()
    return float(((a - b) / noise)[noise > 1e-12].abs().max())


@pytest.mark.parametrize("t", [1.0, pytest.param(0.4, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "make",
    [flat_vae, *(pytest.param(make, marks=pytest.mark.slow) for make in (deep_vae, vamp_vae, mvn_vae, flow_vae))],
)
def test_doubly_reparameterized_gradients_are_unbiased(make: Callable[[], Any], t: float) -> None:
    vae, x = make(), torch.tensor([[1.5, -1.0, 2.0]]).double()
    assert worst(vae, IWAE(3, gradient="doubly_reparameterized"), IWAE(3), x, t) < 4.5


@pytest.mark.slow
@pytest.mark.parametrize("make", [flat_vae, deep_vae, vamp_vae])
def test_sticking_the_landing_is_unbiased_for_one_particle_only(make: Callable[[], Any]) -> None:
    vae, x = make(), torch.tensor([[1.5, -1.0, 2.0]]).double()
    assert worst(vae, IWAE(1, gradient="sticking_the_landing"), Trace_ELBO(), x) < 4.5
    assert worst(vae, IWAE(3, gradient="sticking_the_landing"), IWAE(3), x) > 10


def test_doubly_reparameterized_gradients_have_less_variance() -> None:
    vae, x = flat_vae(), torch.tensor([[1.5, -1.0, 2.0]]).double()
    inside = [name.startswith("guide") for name, p in vae.named_parameters() for _ in range(p.numel())]
    of_guide = torch.tensor(inside)
    errors = [means(vae, IWAE(30, gradient=name), x, 1.0)[1][of_guide] for name in ("reparameterized", GRADIENTS[1])]
    assert errors[1].mean() < 0.5 * errors[0].mean()


def test_the_guide_runs_once() -> None:
    vae, x = flat_vae(), torch.randn(4, 3).double()
    vae.posterior = normal(nn.Sequential(mlp(3, 8), nn.Dropout(0.5), mlp(8, 2 * 2))).double()
    losses = []
    for gradient in ("reparameterized", *GRADIENTS):
        torch.manual_seed(0)
        losses.append(IWAE(3, gradient=gradient, max_plate_nesting=1)(vae.model, vae.guide)(x).item())
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-12)  # the same dropout in draws and densities


@pytest.mark.parametrize("vectorize", [True, False])
def test_a_subsample_with_plates_inside_and_a_parameter_that_model_and_guide_share(vectorize: bool) -> None:
    x, k = torch.randn(1, 3).double().expand(4, 3), 3  # whichever two data a batch takes
    a = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def model(x: Tensor) -> None:
        with pyro.plate("data", 4, subsample_size=2, dim=-2) as i:
            z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
            with pyro.plate("pixels", 3, dim=-1):
                y = pyro.sample("y", dist.Normal(z, 1.0))
                pyro.sample("x", dist.Normal(a + y, 1.0), obs=x[i])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 4, subsample_size=2, dim=-2) as i:
            z = pyro.sample("z", dist.Normal(a * x[i].mean(1, keepdim=True), 0.8))
            with pyro.plate("pixels", 3, dim=-1):
                pyro.sample("y", dist.Normal(a * (x[i] - z), 0.7))

    def log_w(a_of_p: Tensor, a_of_q: Tensor, z: Tensor, y: Tensor) -> Tensor:
        n, batch = torch.distributions.Normal, x[:2]
        p = n(0.0, 1.0).log_prob(z) + (n(z, 1.0).log_prob(y) + n(a_of_p + y, 1.0).log_prob(batch)).sum(-1, keepdim=True)
        q = n(a_of_q * batch.mean(1, keepdim=True), 0.8).log_prob(z)
        return (p - q - n(a_of_q * (batch - z), 0.7).log_prob(y).sum(-1, keepdim=True)).squeeze(-1)

    objective = IWAE(k, gradient="doubly_reparameterized", vectorize_particles=vectorize, max_plate_nesting=2)
    torch.manual_seed(1)
    objective.loss_and_grads(model, guide, x)
    torch.manual_seed(1)
    torch.randperm(4)
    draws = []
    for size in [k] if vectorize else [1] * k:
        z = a * x[:2].mean(1, keepdim=True) + 0.8 * torch.randn(size, 2, 1, dtype=torch.float64)
        draws.append((z, a * (x[:2] - z) + 0.7 * torch.randn(size, 2, 3, dtype=torch.float64)))
    z, y = (torch.cat(parts) for parts in zip(*draws, strict=True))
    fixed = a.detach()
    path = log_w(fixed, fixed, z, y)
    w = path.detach().softmax(0)
    surrogate = (w * log_w(a, fixed, z.detach(), y.detach()) + w**2 * path).sum()
    (expected,) = torch.autograd.grad(-4 / 2 * surrogate, a)
    torch.testing.assert_close(a.grad, expected)


def test_sites_annealed_apart_are_refused() -> None:
    vae, x = deep_vae(), torch.randn(4, 3).double()

    def guide(x: Tensor) -> None:
        with pyro.poutine.scale(scale=0.5):
            vae.guide(x)

    def model(x: Tensor) -> None:
        with pyro.poutine.scale(scale=0.5):
            vae.model(x)

    class OfOne(LatentScale):
        def _process_message(self, msg: Any) -> None:
            if msg["name"] == "z1":
                super()._process_message(msg)

    IWAE(3, gradient="doubly_reparameterized").loss_and_grads(model, guide, x)  # common to all
    with OfOne(0.5), pytest.raises(ValueError, match=r"have different scales, \{'z1': 0.5, 'z2': 1.0\}"):
        IWAE(3, gradient="doubly_reparameterized").loss_and_grads(vae.model, vae.guide, x)
    with OfOne(0.5):
        IWAE(3, gradient="sticking_the_landing").loss_and_grads(vae.model, vae.guide, x)


@pytest.mark.parametrize("vectorize", [True, False])
def test_piwae_has_two_targets(vectorize: bool) -> None:
    vae, x = flat_vae(), torch.randn(6, 3).double()
    torch.manual_seed(1)
    loss = PIWAE(3, 2, vectorize_particles=vectorize)(vae.model, vae.guide)(x)
    loss.backward()
    found = gradients(vae)
    torch.manual_seed(1)
    (z,) = flat_draws(vae, x, 6, vectorize)
    likelihood, prior, guide = flat_logs(vae, x, [z])
    log_w = likelihood + prior - guide
    of_all = log_w.logsumexp(0) - torch.tensor(6.0).log()
    of_groups = (log_w[:3].logsumexp(0) + log_w[3:].logsumexp(0)) / 2
    assert loss.item() == pytest.approx(-of_all.sum().item())
    for owner, bound in (("model", of_all), ("guide", of_groups)):
        parameters = {name: p for name, p in vae.named_parameters() if name.startswith(owner)}
        expected = torch.autograd.grad(-bound.sum(), list(parameters.values()), retain_graph=True)
        for name, value in zip(parameters, expected, strict=True):
            torch.testing.assert_close(found[name], value)


def test_piwae_with_one_group_is_iwae_also_where_model_and_guide_share() -> None:
    vae, x = vamp_vae(), torch.randn(6, 3).double()
    found = []
    for objective in (PIWAE(5, 1, max_plate_nesting=1), IWAE(5, max_plate_nesting=1)):
        torch.manual_seed(1)
        objective(vae.model, vae.guide)(x).backward()
        found.append(gradients(vae))
    assert found[0].keys() == found[1].keys()
    for name, value in found[1].items():
        torch.testing.assert_close(found[0][name], value)
