"""Every formula of docs/lecture.md holds numerically, under its number on the page, and its known errors are shown."""

import copy
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor
from torch.autograd.functional import jacobian
from torch.distributions import kl_divergence

import pyrovae as pv
from tests.oracle import Oracle

PAGE = Path(__file__).parents[2] / "docs" / "lecture.md"
CHECKS: dict[int, Callable[[], None]] = {}

close = torch.testing.assert_close


def formula(*numbers: int) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Register a check of formulas of the page."""

    def register(check: Callable[[], None]) -> Callable[[], None]:
        CHECKS.update(dict.fromkeys(numbers, check))
        return check

    return register


def test_every_formula_has_its_check() -> None:
    numbers = [int(number) for number in re.findall(r"\*\*\((\d+)\)\*\*", PAGE.read_text())]
    assert numbers == list(range(1, len(numbers) + 1))
    assert sorted(CHECKS) == numbers


def normal(size: int, *shape: int) -> Tensor:
    return torch.randn(size, *shape, dtype=torch.float64)


class Grid:
    """A nonlinear VAE in float64 with one latent dimension, whose integrals are sums over a grid."""

    def __init__(self) -> None:
        self.vae = pv.VAE(
            pv.priors.StandardNormal(1),
            pv.likelihoods.Normal(pv.networks.mlp(1, 8, 3), scale=0.5),
            pv.posteriors.DiagonalNormal(pv.networks.mlp(3, 8, 2)),
        ).double()
        self.x = normal(4, 3)
        self.q = self.vae.posterior(self.x)
        self.z = torch.arange(-12, 12, 1e-3, dtype=torch.float64)[:, None, None]
        self.log_q, self.log_prior = self.q.log_prob(self.z), self.vae.prior().log_prob(self.z)
        self.log_likelihood = self.vae.likelihood(self.z).log_prob(self.x)
        self.log_joint = self.log_prior + self.log_likelihood
        self.log_px = self.integral(self.log_joint.exp()).log()
        self.log_posterior = self.log_joint - self.log_px

    def integral(self, values: Tensor) -> Tensor:
        return 1e-3 * values.sum(0)

    def mean(self, values: Tensor) -> Tensor:
        """Return an expectation under q."""
        return self.integral(self.log_q.exp() * values)

    @property
    def kl_to_prior(self) -> Tensor:
        return kl_divergence(self.q, self.vae.prior())

    @property
    def kl_to_posterior(self) -> Tensor:
        return self.mean(self.log_q - self.log_posterior)

    @property
    def elbo(self) -> Tensor:
        return self.mean(self.log_joint - self.log_q)


@formula(1, 13)
def maximum_likelihood() -> None:
    oracle = Oracle(scale=1.1)
    x = oracle.data(50)
    results = pv.evaluation.evaluate(oracle.vae.model, oracle.vae.guide, x, 2000, seed=0, progress=False)
    exact = float(oracle.log_likelihood(x).sum())
    assert float(results.log_likelihood.sum()) == pytest.approx(exact, abs=4 * float((results.mcse**2).sum() ** 0.5))


@formula(2, 14)
def jensens_inequality() -> None:
    grid = Grid()
    assert (grid.elbo < grid.log_px).all()
    close(grid.mean((grid.log_joint - grid.log_q).exp()).log(), grid.log_px)
    as_printed = grid.elbo - grid.mean(grid.log_joint) + grid.log_px  # the argument of the logarithm
    assert (as_printed < 0).any()


@formula(3, 23)
def two_forms_of_the_bound() -> None:
    grid = Grid()
    close(grid.mean(grid.log_joint - grid.log_prior) - grid.mean(grid.log_q - grid.log_prior), grid.elbo)
    close(grid.mean(grid.log_likelihood) - grid.kl_to_prior, grid.elbo)
    draws = pv.evaluation.log_weights(grid.vae.model, grid.vae.guide, grid.x, 4000, seed=0).sum(1)
    error, exact = float(draws.std()) / math.sqrt(4000), float(grid.elbo.detach().sum())
    for objective in (Trace_ELBO, TraceMeanField_ELBO):
        estimator = objective(num_particles=4000, vectorize_particles=True, max_plate_nesting=1)
        assert -estimator.loss(grid.vae.model, grid.vae.guide, grid.x) == pytest.approx(exact, abs=4 * error)


def autoencoder_and_bits() -> tuple[pv.autoencoders.Autoencoder, Tensor]:
    networks = pv.networks.mlp(6, 5, 3).double(), pv.networks.mlp(3, 5, 6).double()
    return pv.autoencoders.Autoencoder(*networks), torch.bernoulli(torch.full((7, 6), 0.4, dtype=torch.float64))


@formula(4)
def binary_cross_entropy() -> None:
    autoencoder, x = autoencoder_and_bits()
    p = autoencoder.decoder(autoencoder.encoder(x)).sigmoid()
    close(autoencoder.loss(x), -(x * p.log() + (1 - x) * (1 - p).log()).sum(1).mean())


@formula(5, 6)
def sparsity() -> None:
    autoencoder, x = autoencoder_and_bits()
    sparse = pv.autoencoders.SparseAutoencoder(autoencoder.encoder, autoencoder.decoder, weight=0.3)
    close(sparse.loss(x) - autoencoder.loss(x), 0.3 * autoencoder.encode(x).abs().sum(1).mean())


@formula(7)
def denoising() -> None:
    autoencoder, x = autoencoder_and_bits()
    torch.manual_seed(3)
    corrupted = pv.autoencoders.Masking(0.25)(x)
    torch.manual_seed(3)
    denoising = pv.autoencoders.DenoisingAutoencoder(autoencoder.encoder, autoencoder.decoder)
    close(denoising.loss(x), autoencoder.errors(x, seen=corrupted).mean())
    assert (corrupted <= x).all()


@formula(8)
def contraction() -> None:
    autoencoder, x = autoencoder_and_bits()
    contractive = pv.autoencoders.ContractiveAutoencoder(autoencoder.encoder, autoencoder.decoder, weight=0.3)
    squares = torch.stack([jacobian(autoencoder.encoder, row).square().sum() for row in x])
    close(contractive.loss(x) - autoencoder.loss(x), 0.3 * squares.mean())


@formula(9, 11)
def marginal_likelihood() -> None:
    oracle = Oracle(latent=1)
    x, z = oracle.data(5), torch.arange(-12, 12, 1e-3, dtype=torch.float64)[:, None, None]
    joint = (oracle.vae.likelihood(z).log_prob(x) + oracle.vae.prior().log_prob(z)).exp()
    close(1e-3 * joint.sum(0), oracle.log_likelihood(x).exp())


@formula(10)
def mixture() -> None:
    prior, z = pv.priors.GaussianMixture(2, components=3).double(), normal(5, 2)
    with torch.no_grad():
        prior.logits.copy_(normal(3))
        components = dist.Normal(prior.loc, prior.log_scale.exp()).to_event(1).log_prob(z[:, None]).exp()
        close(prior().log_prob(z).exp(), (prior.logits.softmax(0) * components).sum(1))


@formula(12)
def amortized_inference() -> None:
    oracle = Oracle()
    x = oracle.data(6)
    q, kl = oracle.vae.posterior(x), []
    for n, datum in enumerate(x):  # the posterior of each datum alone is what the network gives for it
        precision = oracle.w.T @ oracle.w / oracle.sigma**2 + torch.eye(2, dtype=torch.float64)
        loc = torch.linalg.solve(precision, oracle.w.T @ (datum - oracle.b) / oracle.sigma**2)
        exact = dist.MultivariateNormal(loc, precision_matrix=precision)
        amortized = dist.MultivariateNormal(q.base_dist.loc[n], torch.diag(q.base_dist.scale[n] ** 2))
        kl.append(kl_divergence(amortized, exact))
    close(torch.stack(kl), torch.zeros(6, dtype=torch.float64), atol=1e-12, rtol=0)


@formula(15)
def decomposition() -> None:
    for oracle in (Oracle(), Oracle(scale=1.5, shift=0.4)):
        x = oracle.data(4)
        log_weights = pv.evaluation.log_weights(oracle.vae.model, oracle.vae.guide, x, 40_000, seed=0)
        error = 4 * log_weights.std(0) / 200 + 1e-10
        assert ((log_weights.mean(0) - oracle.elbo(x)).abs() <= error).all()
    grid = Grid()
    close(grid.elbo + grid.kl_to_posterior, grid.log_px)
    assert (grid.kl_to_posterior > 0).all()


@formula(16)
def three_terms() -> None:
    grid = Grid()
    at_every_z = grid.log_likelihood + grid.log_prior - grid.log_posterior
    close(at_every_z, grid.log_px.expand_as(at_every_z))
    close(grid.mean(grid.log_likelihood) - grid.kl_to_prior + grid.kl_to_posterior, grid.log_px)


@formula(17)
def e_step() -> None:
    exact, other = Oracle(), Oracle(shift=0.1)
    x = exact.data(5)
    log_weights = pv.evaluation.log_weights(exact.vae.model, exact.vae.guide, x, 10, seed=0)
    close(log_weights, exact.log_likelihood(x).expand(10, 5))
    assert (other.elbo(x) < exact.log_likelihood(x)).all()


@formula(18)
def m_step() -> None:
    """Compare one M step of the decoder's mean from the exact posterior with the gain of the bound."""
    oracle = Oracle()
    x = oracle.data(200)
    q = oracle.vae.posterior(x)
    before = oracle.log_likelihood(x).sum()
    old = copy.deepcopy(oracle)
    oracle.b = (x - q.mean @ oracle.w.T).mean(0)  # maximizes E_q[log p(x, z)] in b
    gain = 0.5 * len(x) * ((old.b - oracle.b) ** 2).sum() / oracle.sigma**2  # gain of a quadratic at its maximum
    assert gain > 0
    assert oracle.log_likelihood(x).sum() - before >= gain


def gradients(loc: float, draws: int) -> dict[str, tuple[float, float]]:
    """Return means and standard errors of three gradient estimators of -KL(N(loc, 1) || N(1, 1)), exactly 1 - loc."""
    noise = normal(draws).numpy()
    z = loc + noise
    f = -0.5 * (z - 1) ** 2 + 0.5 * (z - loc) ** 2
    estimates = {"as printed": -(z - loc), "score": f * (z - loc), "path": 1 - z}
    return {name: (values.mean(), values.std() / math.sqrt(draws)) for name, values in estimates.items()}


@formula(19)
def score_function() -> None:
    found = gradients(0.3, 200_000)
    assert abs(found["score"][0] - 0.7) < 4 * found["score"][1]
    assert abs(found["path"][0] - 0.7) < 4 * found["path"][1] < 4 * found["score"][1]
    assert abs(found["as printed"][0]) < 4 * found["as printed"][1] < 0.05  # its mean is 0, not 0.7


@formula(20, 21)
def reparameterization() -> None:
    grid = Grid()
    encoder = grid.vae.posterior.network

    def gradient(of: Callable[[], Tensor]) -> Tensor:
        return torch.cat([slope.flatten() for slope in torch.autograd.grad(of(), list(encoder.parameters()))])

    def bound() -> Tensor:
        log_q = grid.vae.posterior(grid.x).log_prob(grid.z)
        return (1e-3 * log_q.exp() * (grid.log_joint.detach() - log_q)).sum()

    exact = gradient(bound)
    objective = Trace_ELBO(num_particles=200, vectorize_particles=True, max_plate_nesting=1)
    programs = grid.vae.model, grid.vae.guide
    stacked = torch.stack([gradient(lambda: -objective.differentiable_loss(*programs, grid.x)) for _ in range(50)])
    error = stacked.std(0) / math.sqrt(50)  # 0 for the weights of units that are off for all data
    assert ((stacked.mean(0) - exact).abs() <= 4.5 * error + 1e-12).all()
    assert exact.norm() > 0.1


@formula(22)
def univariate_gaussian() -> None:
    mu, sigma = 0.5, 2.0
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)  # quadrature for exp(-epsilon^2 / 2)
    by_epsilon = (weights * np.cos(mu + sigma * nodes)).sum() / math.sqrt(2 * math.pi)
    assert by_epsilon == pytest.approx(math.cos(mu) * math.exp(-(sigma**2) / 2), abs=1e-10)
    draws = np.cos(mu + sigma * normal(200_000).numpy())
    assert draws.mean() == pytest.approx(by_epsilon, abs=4 * draws.std() / math.sqrt(len(draws)))


@formula(24)
def closed_form_kl() -> None:
    grid = Grid()
    loc, scale = grid.q.base_dist.loc, grid.q.base_dist.scale
    closed = 0.5 * (1 + (scale**2).log() - loc**2 - scale**2).sum(1)
    close(grid.mean(grid.log_prior - grid.log_q), closed)
    close(-grid.kl_to_prior, closed)
    as_printed = 0.5 * (1 + (scale**4).log() - loc**2 - scale**4).sum(1)
    assert ((as_printed - closed).abs() > 1e-3).all()


@formula(25, 26)
def gaussian_cost() -> None:
    grid = Grid()
    z = normal(4, 1)
    tape = poutine.trace(poutine.condition(grid.vae.model, {"z": z})).get_trace(grid.x)
    tape.compute_log_prob()
    mean, variance = grid.vae.likelihood.network(z), torch.full((4, 3), 0.25, dtype=torch.float64)
    as_printed = (0.5 * variance.log() + (grid.x - mean) ** 2 / (2 * variance)).sum(1)
    close(-tape.nodes["x"]["log_prob"], as_printed + 1.5 * math.log(2 * math.pi), rtol=1e-6, atol=0)
    least_squares = ((grid.x - mean) ** 2).sum(1) / (2 * 0.25)
    constant = -tape.nodes["x"]["log_prob"] - least_squares
    close(constant, constant[:1].expand(4), rtol=1e-6, atol=0)


@pytest.mark.parametrize("number", sorted(CHECKS))
def test_formula(number: int) -> None:
    CHECKS[number]()
