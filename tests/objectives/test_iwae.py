"""IWAE is the importance-weighted bound per datum, in every way of calling it and with all scales."""

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, RenyiELBO, Trace_ELBO
from torch import Tensor

import pyrovae as pv
from pyrovae._waist.scales import LatentScale
from pyrovae._waist.weights import importance_weights
from pyrovae.objectives import IWAE
from tests.oracle import Oracle


def bound_by_hand(vae: pv.VAE, x: Tensor, k: int, weight: float = 1.0) -> Tensor:
    """Sum over the data of IWAE_k, in plain PyTorch, with latent sites tempered by ``weight``."""
    loc, scale = vae.posterior.network(x).chunk(2, -1)
    q = torch.distributions.Normal(loc, scale.exp())
    z = q.rsample((k,))
    log_prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    logits = vae.likelihood.network(z)
    log_likelihood = -torch.nn.functional.binary_cross_entropy_with_logits(
        logits, x.expand_as(logits), reduction="none"
    ).sum(-1)
    log_weights = log_likelihood + weight * (log_prior - q.log_prob(z).sum(-1))
    return (log_weights.logsumexp(0) - math.log(k)).sum()


@pytest.mark.parametrize("k", [1, 2, 7])
def test_bound_and_gradient_agree_with_plain_pytorch(vae: pv.VAE, x: Tensor, k: int) -> None:
    objective = IWAE(k, max_plate_nesting=1 + (k > 1))
    torch.manual_seed(1)
    loss = objective(vae.model, vae.guide)(x)
    loss.backward()
    gradients = [parameter.grad.clone() for parameter in vae.parameters()]
    vae.zero_grad()
    torch.manual_seed(1)
    by_hand = -bound_by_hand(vae, x, k)
    by_hand.backward()
    torch.testing.assert_close(loss, by_hand)
    for gradient, parameter in zip(gradients, vae.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


@pytest.mark.parametrize("vectorize", [True, False])
def test_all_ways_to_call_it_agree(vae: pv.VAE, x: Tensor, vectorize: bool) -> None:
    objective = IWAE(3, vectorize_particles=vectorize)
    objective.loss(vae.model, vae.guide, x)  # finds the depth of the plates
    losses = []
    for call in (objective.loss, objective.differentiable_loss, objective.loss_and_grads):
        torch.manual_seed(0)
        losses.append(torch.as_tensor(call(vae.model, vae.guide, x)).item())
    torch.manual_seed(0)
    losses.append(SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), objective).evaluate_loss(x))
    assert losses == pytest.approx([losses[0]] * 4)


@pytest.mark.slow
def test_svi_trains_with_it(vae: pv.VAE, x: Tensor) -> None:
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.02}), IWAE(3))
    losses = [svi.step(x) for _ in range(200)]
    assert sum(losses[-20:]) / 20 < sum(losses[:20]) / 20 - 2


def test_retain_graph(vae: pv.VAE, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    options = []
    monkeypatch.setattr(Tensor, "backward", lambda self, **given: options.append(given))
    for retain_graph in (None, True):
        IWAE(2, retain_graph=retain_graph).loss_and_grads(vae.model, vae.guide, x)
    assert options == [{"retain_graph": None}, {"retain_graph": True}]


def test_one_particle_is_the_elbo(vae: pv.VAE, x: Tensor) -> None:
    losses = []
    for objective in (IWAE(1, max_plate_nesting=1), Trace_ELBO()):
        torch.manual_seed(0)
        losses.append(objective.loss(vae.model, vae.guide, x))
    assert losses[0] == pytest.approx(losses[1])


def test_bounds_rise_with_k_up_to_log_p() -> None:
    oracle = Oracle(scale=1.6, shift=0.5)
    x = oracle.data(2000)
    bounds = [-IWAE(k).loss(oracle.vae.model, oracle.vae.guide, x) / 2000 for k in (1, 5, 100)]
    log_p = oracle.log_likelihood(x).mean().item()
    assert bounds[0] == pytest.approx(oracle.elbo(x).mean().item(), abs=0.1)
    assert bounds[0] + 0.3 < bounds[1]
    assert bounds[1] + 0.05 < bounds[2]
    assert bounds[2] == pytest.approx(log_p, abs=0.05)


def test_with_the_true_posterior_every_bound_is_log_p() -> None:
    oracle = Oracle()
    x = oracle.data(10)
    for k in (1, 2, 50):
        loss = IWAE(k).loss(oracle.vae.model, oracle.vae.guide, x)
        assert loss == pytest.approx(-oracle.log_likelihood(x).sum().item(), rel=1e-12)


class Toy:
    """A plain Pyro program with a data plate of size 1000, from which each batch is a subsample."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", 1000, subsample_size=len(x)), poutine.scale(scale=self.scale):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", 1000, subsample_size=len(x)), poutine.scale(scale=self.scale):
            pyro.sample("z", dist.Normal(0.5 * x, 1.5))


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_scales_common_to_all_sites_stand_outside_the_logarithm(scale: float) -> None:
    x = torch.linspace(-2, 2, 10, dtype=torch.float64)
    losses = []
    for toy in (Toy(scale), Toy()):
        torch.manual_seed(0)
        losses.append(IWAE(7, max_plate_nesting=2).loss(toy.model, toy.guide, x))
    torch.manual_seed(0)
    weights = pv.evaluation.log_weights(Toy().model, Toy().guide, x, 20_000, seed=0)
    exact = torch.distributions.Normal(0.0, math.sqrt(2)).log_prob(x)
    torch.testing.assert_close(weights.logsumexp(0) - math.log(20_000), exact, atol=0.03, rtol=0)
    assert losses[0] == pytest.approx(scale * losses[1])
    assert -losses[1] / 100 == pytest.approx(exact.sum().item(), abs=1.5)  # 1000 / 10, the plate's scale


@pytest.mark.parametrize("vectorize", [True, False])
def test_all_draws_of_a_bound_are_of_the_same_subsample(vectorize: bool) -> None:
    data = torch.tensor([0.0, 6.0], dtype=torch.float64)

    def model(x: Tensor) -> None:
        with pyro.plate("data", 2, subsample_size=1) as i:
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x[i])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 2, subsample_size=1) as i:
            pyro.sample("z", dist.Normal(x[i] / 2, math.sqrt(0.5)))

    exact = -2 * dist.Normal(torch.zeros((), dtype=torch.float64), math.sqrt(2)).log_prob(data)
    losses = [IWAE(10, vectorize_particles=vectorize).loss(model, guide, data) for _ in range(20)]
    assert all(min(abs(loss - exact)) < 1e-9 for loss in losses)  # each loss belongs to a single datum
    assert len({round(loss, 6) for loss in losses}) == 2


def test_a_scale_per_datum_where_the_data_plate_is_not_the_last() -> None:
    x = torch.randn(5, 3, dtype=torch.float64)
    scale = torch.linspace(0.5, 2.0, 5, dtype=torch.float64)

    def model(x: Tensor) -> None:
        with pyro.plate("data", 5, dim=-2), poutine.scale(scale=scale[:, None]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("pixels", 3, dim=-1):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 5, dim=-2), poutine.scale(scale=scale[:, None]):
            pyro.sample("z", dist.Normal(x.sum(1, keepdim=True) / 4, 0.5))  # exact

    exact = torch.distributions.MultivariateNormal(torch.zeros(3).double(), 1 + torch.eye(3).double()).log_prob(x)
    assert IWAE(4).loss(model, guide, x) == pytest.approx(-(scale * exact).sum().item())


def test_renyi_elbo_of_pyro_gets_the_scale_wrong() -> None:
    x = torch.linspace(-2, 2, 10, dtype=torch.float64)
    renyi = RenyiELBO(alpha=0, num_particles=20_000, vectorize_particles=True).loss(Toy().model, Toy().guide, x)
    ours = IWAE(20_000).loss(Toy().model, Toy().guide, x)
    exact = 100 * torch.distributions.Normal(0.0, math.sqrt(2)).log_prob(x).sum().item()
    assert -ours == pytest.approx(exact, rel=0.01)
    assert abs(-renyi - exact) > 10 * abs(-ours - exact)  # the reason for a class of our own


def test_annealing_of_latent_sites_stays_inside(vae: pv.VAE, x: Tensor) -> None:
    weight = 0.3

    def annealed(program: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
        def run(x: Tensor) -> None:
            with LatentScale(weight):
                program(x)

        return run

    torch.manual_seed(0)
    loss = IWAE(4, max_plate_nesting=2).loss(annealed(vae.model), annealed(vae.guide), x)
    torch.manual_seed(0)
    assert loss == pytest.approx(-bound_by_hand(vae, x, 4, weight).item(), rel=1e-5)


def test_per_datum_scales_weigh_the_data(vae: pv.VAE, x: Tensor) -> None:
    scale = torch.linspace(0.1, 2.0, len(x))
    torch.manual_seed(0)
    weighted = IWAE(4, max_plate_nesting=2).loss(poutine.scale(vae.model, scale), poutine.scale(vae.guide, scale), x)
    torch.manual_seed(0)
    weights = importance_weights(vae.model, vae.guide, (x,), 4, nesting=1).log_weights
    assert weighted == pytest.approx(-(scale * (weights.logsumexp(0) - math.log(4))).sum().item(), rel=1e-5)


def test_a_discrete_latent_is_refused() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(x.sigmoid()))

    with pytest.raises(ValueError, match=r"'z' has no reparameterized draws.*TraceEnum_ELBO"):
        IWAE(3).loss(model, guide, torch.zeros(4))


def test_a_site_outside_the_plate_is_refused(vae: pv.VAE, x: Tensor) -> None:
    def model(x: Tensor) -> None:
        pyro.factor("penalty", torch.tensor(-1.0))
        vae.model(x)

    with pytest.raises(ValueError, match=r"'penalty' lies outside the data plate 'data'.*Trace_ELBO"):
        IWAE(3).loss(model, vae.guide, x)


def test_no_particles() -> None:
    with pytest.raises(ValueError, match="num_particles=0"):
        IWAE(0)
