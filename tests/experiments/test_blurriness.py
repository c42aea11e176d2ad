"""The blurriness experiment: divergences against quadrature and algebra, measures on sharp and blurred images."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from torch import Tensor, nn

import pyrovae as pv
from experiments.blurriness import known_densities, lower_bound, measures
from experiments.blurriness.autoregressive import Autoregressive
from experiments.blurriness.divergences import DIVERGENCES, JENSEN_SHANNON, KL, REVERSE_KL, Divergence
from experiments.blurriness.experiment import main
from experiments.blurriness.features import Classifier, FeatureConsistent, train_classifier
from experiments.blurriness.setting import Options
from experiments.blurriness.vdm import Schedule, minimize_divergence

GRID = torch.linspace(-12, 12, 4801, dtype=torch.float64)
P, Q = dist.Normal(GRID.new_tensor(0.5), 1.0), dist.Normal(GRID.new_tensor(-0.4), 1.3)
TOY = {
    "epochs": 1, "kl_warmup": 0, "batch_size": 1000, "hidden": (16,), "latent": 3, "num_samples": 4, "test_size": 60,
    "num_particles": 2, "components": 5, "context": 3, "adversarial_epochs": 1, "classifier_epochs": 1,
    "toy_steps": 10,
}  # fmt: skip

each = pytest.mark.parametrize("divergence", DIVERGENCES, ids=lambda divergence: divergence.name)


def integrate(values: Tensor) -> float:
    return float(torch.trapezoid(values, GRID))


def exact_bound(divergence: Divergence, critic: Tensor) -> float:
    """Return E_P[g_f(V)] - E_Q[f*(g_f(V))] of a critic's values on the grid."""
    data = P.log_prob(GRID).exp() * divergence.activation(critic)
    model = Q.log_prob(GRID).exp() * divergence.conjugate(divergence.activation(critic))
    return integrate(data - model)


def best_critic(divergence: Divergence) -> Tensor:
    return P.log_prob(GRID) - Q.log_prob(GRID) + (1.0 if divergence is KL else 0.0)


@each
def test_the_conjugate_is_the_supremum(divergence: Divergence) -> None:
    v = torch.linspace(-3, 3, 13, dtype=torch.float64)
    t = divergence.activation(v)
    u = torch.logspace(-6, 6, 240_001, dtype=torch.float64)
    supremum = (u * t[:, None] - divergence.f(u)).max(-1).values
    torch.testing.assert_close(divergence.conjugate(t), supremum, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(divergence.cost(v), divergence.conjugate(t), atol=1e-12, rtol=1e-12)


@each
def test_f_is_convex_and_zero_at_one_and_its_derivative_is_the_best_critic(divergence: Divergence) -> None:
    u = torch.linspace(0.1, 4.0, 40, dtype=torch.float64, requires_grad=True)
    assert float(divergence.f(torch.ones((), dtype=torch.float64))) == pytest.approx(0, abs=1e-15)
    (slope,) = torch.autograd.grad(divergence.f(u).sum(), u)
    assert (slope.diff() > 0).all()
    critic = u.log() + (1.0 if divergence is KL else 0.0)
    torch.testing.assert_close(divergence.activation(critic), slope)


def test_the_bound_at_the_best_critic_is_the_divergence_of_two_normal_densities() -> None:
    def kl(p: dist.Normal, q: dist.Normal) -> float:
        return float(torch.distributions.kl_divergence(p, q))

    middle = torch.logaddexp(P.log_prob(GRID), Q.log_prob(GRID)) - math.log(2)
    to_middle = [integrate(d.log_prob(GRID).exp() * (d.log_prob(GRID) - middle)) for d in (P, Q)]
    for divergence, value in ((KL, kl(P, Q)), (REVERSE_KL, kl(Q, P)), (JENSEN_SHANNON, sum(to_middle))):
        assert exact_bound(divergence, best_critic(divergence)) == pytest.approx(value, abs=1e-9)
        assert known_densities.integral(divergence, P, Q) == pytest.approx(value, abs=1e-9)


@each
def test_no_other_critic_reaches_the_divergence(divergence: Divergence) -> None:
    best = best_critic(divergence)
    for other in (best + 0.3, best - 0.3, 0.8 * best, best + 0.2 * GRID.sin()):
        assert exact_bound(divergence, other) < exact_bound(divergence, best) - 1e-4


@each
def test_the_bound_of_draws_estimates_that_of_densities(divergence: Divergence) -> None:
    critic = (0.7 * GRID).tanh()
    x, y = (0.7 * d.sample((400_000,)) for d in (P, Q))
    estimate = divergence.bound(x.tanh(), y.tanh())
    assert float(estimate) == pytest.approx(exact_bound(divergence, critic), abs=0.01)


def test_maximum_likelihood_matches_moments_and_the_reverse_keeps_to_a_mode() -> None:
    p = known_densities.mixture()
    loc, scale = known_densities.optimum(KL)
    assert (loc, scale) == pytest.approx((float(p.mean), float(p.variance.sqrt())), abs=1e-4)
    loc, scale = known_densities.optimum(REVERSE_KL)
    assert loc == pytest.approx(-0.87, abs=0.01)
    assert scale == pytest.approx(0.73, abs=0.01)


@each
def test_draws_lead_to_the_numerical_optimum(divergence: Divergence) -> None:
    (loc, scale), found = (
        known_densities.optimum(divergence),
        known_densities.fit(divergence, 900, seed=0, batch_size=256),
    )
    assert found[:2] == pytest.approx((loc, scale), abs=0.05)


def test_a_step_trains_the_model_by_its_own_gradient_and_leaves_other_parameters_alone() -> None:
    loc, bystander = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
    critic = nn.Sequential(nn.Linear(1, 1), nn.Flatten(0))
    bounds = minimize_divergence(
        KL, lambda: 3 + torch.randn(50, 1), lambda: loc + bystander + torch.randn(50, 1), [loc], critic,
        Schedule(50, model_rate=0.05, critic_rate=0.05),
    )  # fmt: skip
    assert len(bounds) == 50
    assert loc.item() > 0.5
    assert bystander.item() == 0
    assert bystander.grad is None


def test_the_laplacian_of_white_noise_and_of_planes() -> None:
    noise = 0.3 * torch.randn(50, 40, 40, dtype=torch.float64)
    assert float(measures.laplacian_variance(noise).mean()) == pytest.approx(20 * 0.3**2, rel=0.05)
    plane = torch.arange(8.0)[:, None] + 2 * torch.arange(8.0)
    torch.testing.assert_close(measures.laplacian_variance(plane[None]), torch.zeros(1))


def test_blur_lowers_sharpness_and_high_frequencies_and_raises_grey() -> None:
    sharp = torch.bernoulli(torch.full((20, 28, 28), 0.3))
    blurred = nn.functional.avg_pool2d(sharp[:, None], 3, stride=1, padding=1)[:, 0]
    assert (measures.laplacian_variance(blurred) < 0.5 * measures.laplacian_variance(sharp)).all()
    assert (measures.grey_ink(sharp) == 0).all()
    assert (measures.grey_ink(blurred) > 0.3).all()
    frequency, power = measures.power_spectrum(blurred)
    ratio = power / measures.power_spectrum(sharp)[1]
    assert frequency[0] == 1 / 28
    assert frequency[-1] == 0.5
    assert ratio[0] > 0.8
    assert ratio[-1] < 0.2
    assert measures.grey_ink(torch.zeros(2, 4, 4)).tolist() == [0, 0]


def test_the_power_of_a_wave_is_at_its_frequency() -> None:
    wave = (2 * math.pi * 5 * torch.arange(28) / 28).cos().expand(1, 28, 28)
    frequency, power = measures.power_spectrum(wave)
    assert frequency[power.argmax()] == pytest.approx(5 / 28)


def test_distance_and_coverage_tell_a_missing_mode_from_a_second_sample() -> None:
    modes = torch.tensor([[4.0, 0.0], [-4.0, 0.0]])
    real, second = (modes[torch.randint(2, (300,))] + torch.randn(300, 2) for _ in range(2))
    collapsed = modes[0] + torch.randn(300, 2)
    assert measures.kernel_distance(real, collapsed) > 20 * abs(measures.kernel_distance(real, second))
    assert measures.coverage(real, second) == pytest.approx(1 - 2**-5, abs=0.05)
    assert measures.coverage(real, collapsed) == pytest.approx(0.5, abs=0.1)


def test_coverage_counts_the_balls_of_the_kth_neighbour() -> None:
    real, generated = torch.arange(10.0)[:, None], torch.tensor([[1.5]])
    assert measures.coverage(real, generated, k=1) == 0.2  # 1 and 2, within 1
    assert measures.coverage(real, generated, k=2) == pytest.approx(0.3)  # and 0, whose second neighbour is at 2
    assert measures.coverage(real, generated, k=3) == pytest.approx(0.4)  # and 3; further neighbours of these are at 2


def test_the_kernel_distance_is_unbiased() -> None:
    a, b = torch.randn(200, 40, 3, dtype=torch.float64), torch.randn(200, 40, 3, dtype=torch.float64)
    distances = [measures.kernel_distance(*pair) for pair in zip(a, b, strict=True)]
    assert abs(np.mean(distances)) < 3 * np.std(distances) / 200**0.5


def test_the_autoregressive_likelihood_sums_to_one_and_draws_what_it_scores() -> None:
    likelihood = Autoregressive(pv.networks.mlp(2, (2, 4)), levels=2, hidden=4).double().requires_grad_(False)
    nn.init.normal_(likelihood.neighbours.output.weight)
    p = likelihood(torch.randn(2, dtype=torch.float64))
    images = torch.cartesian_prod(*4 * [torch.tensor([0.0, 1.0], dtype=torch.float64)]).reshape(16, 2, 2)
    probabilities = p.log_prob(images).exp()
    assert float(probabilities.sum()) == pytest.approx(1, abs=1e-12)
    draws = p.sample((20_000,)).flatten(1) @ torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=torch.float64)
    shares = torch.bincount(draws.long(), minlength=16) / 20_000
    torch.testing.assert_close(shares.double(), probabilities, atol=0.015, rtol=0)


def test_the_autoregressive_likelihood_starts_from_independent_pixels() -> None:
    network = pv.networks.mlp(2, (4, 10))
    z, x = torch.randn(3, 2), torch.randint(256, (3, 4, 5)) / 255
    independent = pv.likelihoods.DiscretizedLogistic(network, 256, unit=1 / 255)
    torch.testing.assert_close(Autoregressive(network)(z).log_prob(x), independent(z).log_prob(x))


def test_the_exact_likelihood_of_a_linear_vae_is_a_maximum_and_its_elbo() -> None:
    x = torch.randn(300, 1, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64)
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Normal(pv.networks.mlp(2, (1, 6)), 0.5, learn_scale=True),
        pv.posteriors.DiagonalNormal(pv.networks.mlp((1, 6), 4)),
    ).double()
    lower_bound.maximize_likelihood(vae, x)
    weight, bias = vae.likelihood.network[0].weight, vae.likelihood.network[0].bias
    covariance = weight @ weight.T + (2 * vae.likelihood.log_scale).exp() * torch.eye(6, dtype=torch.float64)
    log_likelihood = dist.MultivariateNormal(bias, covariance).log_prob(x.flatten(1))
    elbo = pv.evaluation.evaluate(vae.model, vae.guide, x, 3, seed=0).elbo
    np.testing.assert_allclose(elbo, log_likelihood.detach(), atol=1e-9)
    gradients = torch.autograd.grad(log_likelihood.mean(), [weight, bias, vae.likelihood.log_scale])
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e-9


def test_feature_consistency_is_the_density_of_features_and_trains_the_vae_alone() -> None:
    classifier = Classifier((8, 8), 3, channels=4, hidden=16).requires_grad_(False)
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Normal(nn.Sequential(pv.networks.mlp(2, (8, 8)), nn.Sigmoid())),
        pv.posteriors.DiagonalNormal(pv.networks.mlp((8, 8), 4)),
    )
    module, x, z = FeatureConsistent(vae, classifier, 0.5), torch.rand(5, 8, 8), torch.randn(5, 2)
    trace = pyro.poutine.trace(pyro.poutine.condition(module.model, {"z": z})).get_trace(x)
    trace.compute_log_prob()
    for i in range(2):
        error = (classifier.features(x)[i] - classifier.features(vae.likelihood(z).mean)[i]).flatten(1)
        expected = -(error**2).sum(-1) / (2 * 0.5**2) - error.shape[1] * math.log(0.5 * (2 * math.pi) ** 0.5)
        torch.testing.assert_close(trace.nodes[f"features_{i}"]["log_prob"], expected)
    assert all(float(layer.detach().std()) > 0 for layer in classifier.features(x))
    before = [parameter.clone() for parameter in classifier.parameters()]
    bias = vae.likelihood.network[0][0].bias.clone()
    pv.fit(module, x, epochs=1)
    assert all(torch.equal(*pair) for pair in zip(before, classifier.parameters(), strict=True))
    assert not torch.equal(bias, vae.likelihood.network[0][0].bias)


def test_data_without_labels_are_refused() -> None:
    bare = pv.data.Splits("bare", *3 * [torch.rand(4, 8, 8)], "none")
    with pytest.raises(ValueError, match="bare has no labels to train a classifier with"):
        train_classifier(bare, Options(), 1, seed=0)


@pytest.mark.slow
def test_the_table_has_a_row_for_every_method_and_empty_cells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = main(Options(**TOY, out=tmp_path))
    assert table.index[0] == "real, training data"
    assert set(table.explanation) == {"", "criterion", "family", "bound"}
    assert len(table) == 17
    assert table.to_string() in capsys.readouterr().out
    assert table.loc["feature consistency", ["bits/dim", "sharpness: draw"]].tolist() == ["", ""]
    assert table.loc["autoregressive", ["sharpness: mean", "sharpness: reconstruction"]].tolist() == ["", ""]
    assert float(table.loc["linear, exact likelihood", "ELBO gap"]) == pytest.approx(0, abs=0.05)
    assert float(table.loc["real, training data", "sharpness: draw"].split()[0]) == pytest.approx(1, abs=0.2)
    with xr.open_dataset(tmp_path / "evaluation.nc") as results:
        for name, level in (("VAE", 8.0), ("autoregressive", 0.0)):  # a level is 2^-8 wide where values are dequantized
            own = results.sel(model=name)
            np.testing.assert_allclose(own.bits, level - own.log_likelihood / (784 * math.log(2)), rtol=1e-5)
    toy = pd.read_csv(tmp_path / "divergences.csv", index_col=0)
    assert list(toy.index) == ["KL", "reverse KL", "Jensen-Shannon"]


@pytest.mark.slow
def test_only_the_requested_models_are_trained(tmp_path: Path) -> None:
    table = main(Options(**TOY, models=("f-GAN, KL",), out=tmp_path))
    assert list(table.index) == ["real, training data", "f-GAN, KL"]
    assert (tmp_path / "results.json").stat().st_size
    assert list(tmp_path.glob("*.png"))
