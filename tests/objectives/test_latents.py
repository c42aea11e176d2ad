"""Free bits, total correlation and the maximum mean discrepancy against closed forms and plain PyTorch."""

import math
from itertools import combinations
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor

import pyrovae as pv
from pyrovae._waist.scales import LatentScale
from pyrovae.objectives import IWAE, MMD, BetaTC, FreeBits
from pyrovae.objectives.mmd import mmd_squared
from tests.objectives.by_hand import flat_vae, vamp_vae
from tests.objectives.correlated import Correlated, OneDraw
from tests.oracle import Oracle


def kl_by_hand(oracle: Oracle, x: Tensor) -> Tensor:
    """KL(q(z_j | x) || N(0, 1)), shape ``(N, latent)``."""
    loc, log_scale = oracle.vae.posterior.network(x).chunk(2, -1)
    return 0.5 * (loc**2 + (2 * log_scale).exp() - 1) - log_scale


def reconstruction_by_hand(oracle: Oracle, x: Tensor, k: int = 1) -> Tensor:
    """Mean of log p(x | z) over k draws, shape ``(N,)``."""
    loc, log_scale = oracle.vae.posterior.network(x).chunk(2, -1)
    z = torch.distributions.Normal(loc, log_scale.exp()).rsample((k,))
    likelihood = oracle.vae.likelihood
    p = torch.distributions.Normal(likelihood.network(z), likelihood.log_scale.exp())
    return p.log_prob(x).sum(-1).mean(0)


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("t", [1.0, 0.3])
def test_free_bits_agree_with_plain_pytorch(k: int, vectorize: bool, t: float) -> None:
    oracle = Oracle(scale=1.5, shift=0.4)
    x, parameters = oracle.data(10), list(oracle.vae.parameters())
    nats = kl_by_hand(oracle, x).mean(0).mean().item()  # between the two dimensions
    objective = FreeBits(nats, k, vectorize_particles=vectorize)
    scale = torch.linspace(0.5, 2.0, 10).double() if t == 1 else torch.full((10,), 2.0).double()
    weight = scale if t == 1 else 2.0

    def scaled(program: Any) -> Any:
        return pyro.poutine.scale(program, weight)

    objective.loss(oracle.vae.model, oracle.vae.guide, x)
    torch.manual_seed(3)
    if t == 1:
        loss = objective(scaled(oracle.vae.model), scaled(oracle.vae.guide))(x)
    else:
        scale = scale / 2
        with LatentScale(t):
            loss = objective(oracle.vae.model, oracle.vae.guide)(x)
    found = torch.autograd.grad(loss, parameters)
    torch.manual_seed(3)
    if vectorize or k == 1:
        reconstruction = reconstruction_by_hand(oracle, x, k)
    else:
        reconstruction = torch.stack([reconstruction_by_hand(oracle, x) for _ in range(k)]).mean(0)
    of_batch = (scale[:, None] * kl_by_hand(oracle, x)).sum(0) / scale.sum()
    assert (of_batch < nats).sum() == 1
    floored = of_batch[of_batch > nats].sum() + nats
    expected = t * scale.sum() * floored - (scale * reconstruction).sum()
    torch.testing.assert_close(loss, expected)
    for slope, by_torch in zip(found, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(slope, by_torch)


def test_no_free_bits_are_the_elbo() -> None:
    oracle = Oracle(scale=1.5, shift=0.4)
    x = oracle.data(10)
    losses = []
    for objective in (FreeBits(0.0, max_plate_nesting=1), TraceMeanField_ELBO()):
        torch.manual_seed(0)
        losses.append(objective.loss_and_grads(oracle.vae.model, oracle.vae.guide, x))
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


def test_free_bits_of_a_hierarchy_from_the_bottom_up_are_unbiased() -> None:
    """The model draws z2 before z1, and the guide after it. KL(q(z1 | x) || p(z1 | z2)) at a z2 near z1 is wrong."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros(()).double(), 1.0))
            pyro.sample("x", dist.Normal(pyro.sample("z1", dist.Normal(z2, 1.0)), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z2", dist.Normal(pyro.sample("z1", dist.Normal(x / 2, 0.5)), 0.1))

    losses = [FreeBits(0.0, 10).loss(model, guide, torch.ones(1000).double()) / 1000 for _ in range(10)]
    half = 0.5 * math.log(2 * math.pi)
    of_z1 = (half + 0.5 * 0.1**2) - (half + 0.5 + math.log(0.5))
    of_z2 = (half + 0.5 * (0.5**2 + 0.5**2 + 0.1**2)) - (half + 0.5 + math.log(0.1))
    exact = half + 0.5 * (0.5**2 + 0.5**2) + of_z1 + of_z2
    assert min(of_z1, of_z2) > 0.1  # above the floor
    assert torch.tensor(losses).mean().item() == pytest.approx(exact, abs=0.02)


def test_free_bits_of_a_hierarchy_from_the_top_down_are_exact_layer_by_layer() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros(()).double(), 1.0))
            pyro.sample("x", dist.Normal(pyro.sample("z1", dist.Normal(z2, 1.0)), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(x / 3, 0.8))
            pyro.sample("z1", dist.Normal((x + z2) / 2, 0.7))

    losses = []
    for objective in (FreeBits(0.0, max_plate_nesting=1), TraceMeanField_ELBO()):
        torch.manual_seed(0)
        losses.append(objective.loss(model, guide, torch.linspace(-2, 2, 9).double()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


def test_a_dimension_under_the_floor_has_no_gradient() -> None:
    oracle = Oracle()
    x = oracle.data(10)
    torch.manual_seed(0)
    floored = FreeBits(100.0, max_plate_nesting=1)(oracle.vae.model, oracle.vae.guide)(x)
    torch.manual_seed(0)
    expected = -reconstruction_by_hand(oracle, x).sum()
    assert floored.item() == pytest.approx(expected.item() + 10 * 2 * 100)
    guide = list(oracle.vae.guide.parameters())
    for slope, by_torch in zip(torch.autograd.grad(floored, guide), torch.autograd.grad(expected, guide), strict=True):
        torch.testing.assert_close(slope, by_torch)


def test_a_site_that_does_not_factorize_is_one_group() -> None:
    x = torch.randn(10, 3).double()
    for vae, groups in ((flat_vae(), 2), (vamp_vae(), 1)):
        losses = []
        for nats in (1000.0, 1001.0):
            torch.manual_seed(0)
            losses.append(FreeBits(nats, max_plate_nesting=1).loss(vae.model, vae.guide, x))
        assert losses[1] - losses[0] == pytest.approx(groups * 10)


def test_free_bits_of_masked_data_count_for_nothing() -> None:
    vae, x = flat_vae(), torch.randn(6, 3).double()
    mask = torch.tensor([True] * 4 + [False] * 2)
    torch.manual_seed(0)
    masked = FreeBits(0.0, max_plate_nesting=1)
    loss = masked.loss(pyro.poutine.mask(vae.model, mask=mask), pyro.poutine.mask(vae.guide, mask=mask), x)
    torch.manual_seed(0)
    loc, log_scale = vae.posterior.network(x).chunk(2, -1)
    z = torch.distributions.Normal(loc, log_scale.exp()).rsample()
    kl = (0.5 * (loc**2 + (2 * log_scale).exp() - 1) - log_scale).sum(-1)
    p = torch.distributions.Normal(vae.likelihood.network(z), vae.likelihood.log_scale.exp()).log_prob(x).sum(-1)
    assert loss == pytest.approx((kl - p)[:4].sum().item())


def test_the_parts_of_the_divergence_have_their_closed_forms() -> None:
    toy, x = Correlated(), torch.randn(3000, 2).double()
    terms = BetaTC(data_size=3000).terms(toy.model, toy.guide, x)
    covariance = toy.gain @ toy.gain.T + toy.scale.square().diag()
    variance = covariance.diagonal()
    exact = {
        "mutual_information": 0.5 * (covariance.logdet() - toy.scale.square().log().sum()),
        "total_correlation": 0.5 * (variance.log().sum() - covariance.logdet()),
        "dimension_wise_kl": 0.5 * (variance - 1 - variance.log()).sum(),
    }
    assert min(exact.values()) > 0.1
    for name, value in exact.items():
        found = getattr(terms, name)
        assert found.mean() == pytest.approx(value.item(), abs=4 * found.std().item() / 3000**0.5), name


def test_minibatches_estimate_the_aggregate_without_bias() -> None:
    """exp(log q(z | x) - mutual information) is q(z) at the draw: its mean over all batches is that of all data."""
    toy, x = Correlated(), torch.randn(6, 2).double()
    z = torch.randn(2).double()

    def guide(batch: Tensor) -> None:
        with pyro.plate("data", len(batch)):
            pyro.sample("z", OneDraw(batch @ toy.gain.T, toy.scale, z))

    densities = []
    for others in combinations(range(1, 6), 2):
        terms = BetaTC(data_size=6).terms(toy.model, guide, x[[0, *others]])
        own = torch.distributions.Normal(x[0] @ toy.gain.T, toy.scale).log_prob(z).sum()
        densities.append((own - terms.mutual_information[0]).exp())
    of_all = torch.distributions.Normal(x @ toy.gain.T, toy.scale).log_prob(z).sum(-1).exp().mean()
    torch.testing.assert_close(torch.stack(densities).mean(), of_all)
    assert torch.stack(densities).std() > 0.01 * of_all


@pytest.mark.parametrize("t", [1.0, 0.3])
def test_beta_tc_agrees_with_plain_pytorch(t: float) -> None:
    oracle = Oracle(scale=1.5, shift=0.4)
    n, size = 5, 20
    x, parameters = oracle.data(n), list(oracle.vae.parameters())
    torch.manual_seed(0)
    objective = BetaTC(0.5, 4.0, 2.0, data_size=size)
    if t < 1:
        with LatentScale(t):
            loss = objective(oracle.vae.model, oracle.vae.guide)(x)
    else:
        loss = objective(oracle.vae.model, oracle.vae.guide)(x)
    found = torch.autograd.grad(loss, parameters)
    torch.manual_seed(0)
    loc, log_scale = oracle.vae.posterior.network(x).chunk(2, -1)
    q = torch.distributions.Normal(loc, log_scale.exp())
    z = q.rsample()
    likelihood = oracle.vae.likelihood
    recon = torch.distributions.Normal(likelihood.network(z), likelihood.log_scale.exp()).log_prob(x).sum(-1)
    expected = -recon.sum()
    for i in range(n):
        density = q.log_prob(z[i]).exp()
        share = torch.full((n,), (size - 1) / size / (n - 1)).double()
        share[i] = 1 / size
        joint, apart = (share * density.prod(-1)).sum().log(), (share[:, None] * density).sum(0).log().sum()
        prior = torch.distributions.Normal(0.0, 1.0).log_prob(z[i]).sum()
        penalty = 0.5 * (density[i].prod().log() - joint) + 4 * (joint - apart) + 2 * (apart - prior)
        expected = expected + t * penalty
    torch.testing.assert_close(loss, expected)
    for slope, by_torch in zip(found, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(slope, by_torch)


def test_beta_tc_with_all_weights_one_is_the_elbo() -> None:
    vae, x = flat_vae(), torch.randn(6, 3).double()
    losses = []
    for objective in (BetaTC(1, 1, 1, data_size=50), IWAE(1, max_plate_nesting=1)):
        torch.manual_seed(0)
        losses.append(objective.loss(vae.model, vae.guide, x))
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


def mmd_by_hand(a: Tensor, b: Tensor, c: float) -> float:
    def k(x: Tensor, y: Tensor) -> float:
        return c / (c + float((x - y) @ (x - y)))

    n = len(a)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    within = sum(k(a[i], a[j]) + k(b[i], b[j]) for i, j in pairs) / len(pairs)
    return within - 2 * sum(k(u, v) for u in a for v in b) / n**2


def test_the_discrepancy_agrees_with_its_definition() -> None:
    a, b = torch.randn(6, 3).double(), 1 + torch.randn(6, 3).double()
    assert mmd_squared(a, b, 0.7).item() == pytest.approx(mmd_by_hand(a, b, 2 * 3 * 0.7**2))


def test_the_discrepancy_is_unbiased() -> None:
    """The mean is zero for equal distributions, and does not depend on the sample size for others."""
    equal = torch.stack([mmd_squared(torch.randn(4, 2).double(), torch.randn(4, 2).double()) for _ in range(1000)])
    assert equal.mean() == pytest.approx(0.0, abs=4 * equal.std().item() / 1000**0.5)
    apart = torch.stack([mmd_squared(torch.randn(4, 2).double(), torch.randn(4, 2).double() + 1) for _ in range(1000)])
    exact = mmd_squared(torch.randn(1000, 2).double(), torch.randn(1000, 2).double() + 1).item()
    assert exact > 0.1
    assert apart.mean() == pytest.approx(exact, abs=4 * apart.std().item() / 1000**0.5 + 0.01)


def test_the_exact_posterior_aggregates_to_the_prior() -> None:
    for oracle, low, high in ((Oracle(), -0.005, 0.005), (Oracle(shift=1.5), 0.05, 1.0)):
        x = oracle.data(2000)
        found = []
        for weight in (0.0, 1.0):
            torch.manual_seed(0)
            found.append(MMD(weight).loss(oracle.vae.model, oracle.vae.guide, x) / 2000)
        assert low < found[1] - found[0] < high


@pytest.mark.parametrize(("alpha", "t"), [(1.0, 1.0), (-0.5, 1.0), (-0.5, 0.3)])
def test_mmd_agrees_with_plain_pytorch(alpha: float, t: float) -> None:
    oracle = Oracle(scale=1.5, shift=0.4)
    x, parameters = oracle.data(5), list(oracle.vae.parameters())
    torch.manual_seed(0)
    objective = MMD(3.0, alpha=alpha, kernel_scale=0.5)
    if t < 1:
        with LatentScale(t):
            loss = objective(oracle.vae.model, oracle.vae.guide)(x)
    else:
        loss = objective(oracle.vae.model, oracle.vae.guide)(x)
    found = torch.autograd.grad(loss, parameters)
    torch.manual_seed(0)
    n = torch.distributions.Normal
    loc, log_scale = oracle.vae.posterior.network(x).chunk(2, -1)
    q, p, likelihood = n(loc, log_scale.exp()), n(torch.zeros(5, 2).double(), 1.0), oracle.vae.likelihood
    z = q.rsample()
    prior_draw = p.rsample()
    recon = n(likelihood.network(z), likelihood.log_scale.exp()).log_prob(x).sum()
    kl = (q.log_prob(z) - p.log_prob(z)).sum()
    c = 2 * 2 * 0.5**2
    off = ~torch.eye(5, dtype=torch.bool)

    def k(a: Tensor, b: Tensor) -> Tensor:
        return c / (c + (a[:, None] - b[None]).pow(2).sum(-1))

    distance = k(z, z)[off].mean() + k(prior_draw, prior_draw)[off].mean() - 2 * k(z, prior_draw).mean()
    expected = -recon + t * (1 - alpha) * kl + t * 3.0 * 5 * distance
    torch.testing.assert_close(loss, expected)
    for slope, by_torch in zip(found, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(slope, by_torch)


def test_a_hierarchy_is_compared_as_a_whole() -> None:
    """Both marginals equal the prior's, but the layers are independent in the guide and equal in the model."""

    def program(noise: float) -> Any:
        def run(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z2 = pyro.sample("z2", dist.Normal(torch.zeros(()).double(), 1.0))
                z1 = pyro.sample("z1", dist.Normal((1 - noise**2) ** 0.5 * z2, noise))
                if noise < 1:
                    pyro.sample("x", dist.Normal(z1, 1.0), obs=x)

        return run

    x = torch.zeros(2000).double()
    losses = []
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        losses.append(MMD(weight).loss(program(0.1), program(1.0), x) / 2000)
    assert losses[1] - losses[0] > 0.01
    assert math.isfinite(losses[1])


@pytest.mark.parametrize("objective", [FreeBits(0.1), BetaTC(data_size=12)], ids=["FreeBits", "BetaTC"])
def test_scales_of_one_of_the_two_are_refused(objective: Any, vae: pv.VAE, x: Tensor) -> None:
    def annealed(x: Tensor) -> None:
        with LatentScale(0.5):
            vae.model(x)

    with pytest.raises(ValueError, match=r"scaled by 1.0 in the guide but by 0.5 in the model"):
        objective.differentiable_loss(annealed, vae.guide, x)
