"""The inference gap of the oracle has a closed form, and is split at the best posterior of a family."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.evaluation.diagnostics.local_posteriors import LocalFlow, LocalNormal
from tests.oracle import Oracle
from tests.scripts import SCRIPTS, GammaPoisson


def correlated(scale: float = 1.0) -> tuple[pv.VAE, Tensor, Tensor]:
    """A linear-Gaussian VAE whose posterior precision is full, data, and their log p(x).

    With a precision matrix P the best mean-field normal has scales ``diag(P) ** -0.5`` and
    ``KL(q* || p) = (sum(log(diag(P))) - log(det(P))) / 2``.
    """
    weight = torch.tensor([[1.0, 0.8], [0.5, 1.0], [0.3, 0.9]], dtype=torch.float64)
    decoder, encoder = pv.networks.mlp(2, 3), pv.networks.mlp(3, 2 * 2)
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Normal(decoder, scale=0.5),
        pv.posteriors.DiagonalNormal(encoder),
    ).double()
    vae.likelihood.log_scale.fill_(math.log(0.5))
    precision = torch.eye(2) + weight.T @ weight / 0.25
    with torch.no_grad():
        decoder[0].weight.copy_(weight)
        decoder[0].bias.zero_()
        encoder[0].weight.copy_(torch.cat([torch.linalg.solve(precision, weight.T) / 0.25, torch.zeros(2, 3)]))
        encoder[0].bias.copy_(torch.cat([torch.zeros(2), -0.5 * precision.diagonal().log() + math.log(scale)]))
    x = torch.randn(60, 2, dtype=torch.float64) @ weight.T + 0.5 * torch.randn(60, 3, dtype=torch.float64)
    covariance = weight @ weight.T + 0.25 * torch.eye(3)
    return vae, x, torch.distributions.MultivariateNormal(torch.zeros(3).double(), covariance).log_prob(x)


def gaps_of(vae: pv.VAE, x: Tensor, **options: object) -> object:
    reference = pv.evaluation.ais(vae.model, vae.guide, x, 64, num_temperatures=50, seed=0)
    return pv.evaluation.inference_gaps(vae.model, vae.guide, x, reference, seed=0, num_samples=4000, **options)


def test_both_gaps_are_those_of_the_closed_form() -> None:
    vae, x, log_p = correlated(scale=0.5)
    weight = vae.likelihood.network[0].weight
    precision = torch.eye(2) + weight.T @ weight / 0.25
    approximation = 0.5 * (precision.diagonal().log().sum() - precision.logdet()).item()
    amortization = 2 * (0.5 * (0.25 - 1) - math.log(0.5))  # scales half the best, locations right
    gaps = gaps_of(vae, x)
    assert abs(gaps.elbo - (log_p.numpy() - approximation - amortization)).mean() < 0.02
    assert float((gaps.local_elbo - (log_p.numpy() - approximation)).mean()) == pytest.approx(0, abs=0.01)
    assert float(gaps.approximation_gap.mean()) == pytest.approx(approximation, abs=0.03)
    assert float(gaps.amortization_gap.mean()) == pytest.approx(amortization, abs=0.03)
    assert abs(gaps.inference_gap - gaps.approximation_gap - gaps.amortization_gap).max() < 1e-12


@pytest.mark.slow
def test_the_flow_closes_the_approximation_gap() -> None:
    vae, x, log_p = correlated()
    x, log_p = x[:20], log_p[:20]
    normal, flow = (gaps_of(vae, x, family=family, num_steps=400) for family in ("normal", "flow"))
    assert normal.approximation_gap.mean() > 0.2
    assert abs((flow.local_elbo - log_p.numpy()).mean()) < 0.05


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: type(script).__name__)
def test_any_program(script: GammaPoisson) -> None:
    x = script.data(40)
    reference = pv.evaluation.evaluate(script.model, script.guide, x, 5000, seed=0)
    gaps = pv.evaluation.inference_gaps(script.model, script.guide, x, reference, seed=0, memory=2**20)
    assert gaps.amortization_gap.mean() > 0.005
    options = {"family": "flow", "num_steps": 1, "learning_rate": 1e-9, "num_samples": 10_000, "seed": 0}
    at_start = pv.evaluation.inference_gaps(script.model, script.guide, x, reference, **options)
    assert abs(at_start.amortization_gap).mean() < 0.05  # the flow starts as the guide
    assert (gaps.approximation_gap > -4 * (gaps.mcse + gaps.local_elbo_mcse)).all()
    torch.testing.assert_close(torch.as_tensor(gaps.log_likelihood.values), script.log_likelihood(x), atol=0.1, rtol=0)


class Draws:
    """A target whose guide always returns the same draws."""

    def __init__(self, draws: Tensor) -> None:
        self.draws = draws

    def draw(self, num_samples: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        more = 2 * torch.randn(num_samples, *self.draws.shape[1:], dtype=torch.float64, generator=generator)
        u = torch.cat([self.draws, more])[:num_samples]
        return u, torch.distributions.Normal(0.0, 2.0).log_prob(u).sum(-1)


def perturbed(local: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in local.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return local


def test_the_local_normal_is_a_density() -> None:
    local = perturbed(LocalNormal(Draws(torch.randn(3, 4, 2, dtype=torch.float64))))
    u, log_q = local(1000)
    scale = local.unit * local.log_scale.exp()
    expected = torch.distributions.Normal(local.loc + local.unit * local.shift, scale)
    torch.testing.assert_close(log_q, expected.log_prob(u).sum(-1))
    torch.testing.assert_close(u.std(0), scale, rtol=0.15, atol=0)


def test_the_local_flow_is_a_density_of_the_moved_draws() -> None:
    draws = torch.randn(3, 1, 2, dtype=torch.float64)
    local = perturbed(LocalFlow(Draws(draws)))
    _, log_q = local(3)
    for i in range(3):

        def moved(u: Tensor) -> Tensor:
            local.target = Draws(u[None, None])
            return local(1)[0][0, 0]

        jacobian = torch.autograd.functional.jacobian(moved, draws[i, 0])
        expected = Draws(draws).draw(3)[1][i, 0] - torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(log_q[i, 0], expected)


def test_each_datum_has_a_flow_of_its_own() -> None:
    local = LocalFlow(Draws(torch.randn(4, 1, 2, dtype=torch.float64).expand(4, 3, 2)))
    before = local(4)[0].detach()
    with torch.no_grad():
        for parameter in local.stacked.values():
            parameter[1].add_(0.5)
    moved = (local(4)[0].detach() - before).abs().amax((0, 2)) > 1e-3
    assert moved.tolist() == [False, True, False]


@pytest.mark.slow
def test_the_flow_starts_at_a_guide_that_is_no_normal() -> None:
    torch.manual_seed(1)
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Normal(pv.networks.mlp(2, 5), scale=0.5),
        pv.posteriors.NormalizingFlow(
            pv.posteriors.DiagonalNormal(pv.networks.mlp(5, 2 * 2)), pv.flows.coupling(2, hidden=(8,))
        ),
    ).double()
    perturbed(vae.posterior.flow)
    x = torch.randn(30, 5, dtype=torch.float64)
    reference = pv.evaluation.evaluate(vae.model, vae.guide, x, 1000, seed=0)
    args = vae.model, vae.guide, x, reference
    options = {"num_steps": 1, "learning_rate": 1e-9, "num_samples": 10_000}
    gaps = pv.evaluation.inference_gaps(*args, family="flow", seed=0, **options)
    error = np.hypot(gaps.elbo_mcse, gaps.local_elbo_mcse)
    assert (
        abs(gaps.amortization_gap) < 5 * error + 0.1 * abs(gaps.inference_gap)
    ).all()  # the flow starts near the identity
    gaps = pv.evaluation.inference_gaps(*args, family="flow", num_steps=200, seed=0)
    assert (gaps.amortization_gap > -4 * (gaps.elbo_mcse + gaps.local_elbo_mcse)).all()
    assert gaps.amortization_gap.mean() > 0.5


def test_a_reference_of_other_data_is_refused(vae: pv.VAE, x: Tensor) -> None:
    reference = pv.evaluation.evaluate(vae.model, vae.guide, 1 - x, 50)
    with pytest.raises(ValueError, match="the reference is a result for other data than x"):
        pv.evaluation.inference_gaps(vae.model, vae.guide, x, reference)
    reference = pv.evaluation.evaluate(vae.model, vae.guide, x, 50).assign_attrs(model="script")
    for changed in (reference.isel(datum=slice(5)), reference.sortby("elbo")):
        with pytest.raises(ValueError, match="differ in number or order of the data"):
            pv.evaluation.inference_gaps(vae.model, vae.guide, x, changed)
    with pytest.raises(ValueError, match="a result for another model"):
        pv.evaluation.inference_gaps(vae.model, vae.guide, x, reference)
    with pytest.raises(ValueError, match="family must be 'normal' or 'flow', got 'gaussian'"):
        pv.evaluation.inference_gaps(vae.model, vae.guide, x, reference, family="gaussian")


def test_parameters_and_generator_are_left_alone(vae: pv.VAE, x: Tensor) -> None:
    reference = pv.evaluation.evaluate(vae.model, vae.guide, x, 50)
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    state = torch.get_rng_state()
    options = {"num_steps": 3, "num_samples": 10, "family": "flow"}
    first, again = (
        pv.evaluation.inference_gaps(vae.model, vae.guide, x, reference, seed=0, **options) for _ in range(2)
    )
    assert first.equals(again)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    assert all(parameter.grad is None for parameter in vae.parameters())


def test_oracle_with_the_exact_posterior_has_no_gap() -> None:
    oracle = Oracle()
    gaps = gaps_of(oracle.vae, oracle.data(20), num_steps=300)
    assert abs(gaps.inference_gap).max() < 1e-9
    assert float(gaps.amortization_gap.mean()) == pytest.approx(0, abs=0.01)
