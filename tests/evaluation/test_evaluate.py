"""The evaluation agrees with algebra, records its settings, and refuses invalid programs."""

import math
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from torch import Tensor

import pyrovae as pv
from pyrovae.evaluation import active_units, evaluate, log_weights
from tests.oracle import Oracle


def test_bounds_of_the_oracle() -> None:
    oracle = Oracle(scale=1.5, shift=0.5)
    x = oracle.data(400)
    result = evaluate(oracle.vae.model, oracle.vae.guide, x, 1000, seed=0)
    np.testing.assert_allclose(result.log_likelihood, oracle.log_likelihood(x), atol=0.2)
    np.testing.assert_allclose(result.elbo, oracle.elbo(x), atol=0.4)
    assert abs(float((result.log_likelihood - oracle.log_likelihood(x).numpy()).mean())) < 0.01
    assert abs(float((result.elbo - oracle.elbo(x).numpy()).mean())) < 0.01
    np.testing.assert_array_equal(result.iwae.sel(k=1000), result.log_likelihood)
    np.testing.assert_allclose(result.iwae.sel(k=1), result.elbo)
    steps = result.iwae.diff("k")
    assert float(steps.min()) > -1e-12  # 1, 5, 50, 500, 1000 divide each other, so the order is exact


def test_with_the_true_posterior_every_bound_is_exact() -> None:
    oracle = Oracle()
    x = oracle.data(20)
    result = evaluate(oracle.vae.model, oracle.vae.guide, x, 100, seed=0)
    for bound in (result.elbo, result.log_likelihood, *result.iwae.transpose("k", "datum")):
        np.testing.assert_allclose(bound, oracle.log_likelihood(x), rtol=1e-12)
    np.testing.assert_allclose(result.ess, 100)
    np.testing.assert_allclose(result.mcse, 0, atol=1e-6)
    assert (result.pareto_k == -np.inf).all()


def test_pareto_k_orders_exact_wide_and_narrow_proposals() -> None:
    pareto_k = {}
    for scale in (0.4, 1.0, 1.5):
        oracle = Oracle(scale)
        result = evaluate(oracle.vae.model, oracle.vae.guide, oracle.data(100), 2000, seed=0)
        pareto_k[scale] = float(result.pareto_k.mean())
    assert pareto_k[1.0] < pareto_k[1.5] < 0.2
    assert pareto_k[0.4] > 0.7  # the weights of a narrow normal have a tail of index 1 - 0.4^2 = 0.84


@pytest.mark.parametrize("estimate", ["elbo", "iwae_5", "log_likelihood"])
def test_standard_errors_cover(estimate: str) -> None:
    oracle = Oracle(scale=1.3, shift=0.3)
    x = oracle.data(1).expand(2000, -1)  # 2000 repeats of one datum
    result = evaluate(oracle.vae.model, oracle.vae.guide, x, 400, seed=0, k=[5])
    if estimate == "elbo":
        value, error, exact = result.elbo, result.elbo_mcse, oracle.elbo(x)[0].item()
    elif estimate == "iwae_5":
        value, error = result.iwae.sel(k=5), result.iwae_mcse.sel(k=5)
        exact = evaluate(oracle.vae.model, oracle.vae.guide, x[:400], 4000, seed=1, k=[5]).iwae.mean().item()
    else:
        value, error, exact = result.log_likelihood, result.mcse, oracle.log_likelihood(x)[0].item()
    covered = float((abs(value - exact) < 1.96 * error).mean())
    assert 0.93 < covered < 0.97
    assert float(error.mean()) == pytest.approx(float(value.std()), rel=0.06)


def test_the_printed_bounds_agree_with_plain_pytorch(vae: pv.VAE, x: Tensor) -> None:
    pv.fit(vae, x, epochs=20, learning_rate=0.02, progress=False)
    result = evaluate(vae.model, vae.guide, x, 20_000, seed=0)
    with torch.no_grad():
        loc, log_scale = vae.guide.posterior.network(x).double().chunk(2, -1)
        noise = torch.randn(20_000, *loc.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
        z = loc + log_scale.exp() * noise
        log_posterior = (-0.5 * noise**2 - log_scale - 0.5 * math.log(2 * math.pi)).sum(-1)
        log_prior = (-0.5 * z**2 - 0.5 * math.log(2 * math.pi)).sum(-1)
        p = vae.model.likelihood.network(z.float()).double().sigmoid()
        log_weights = (x * p.log() + (1 - x) * (1 - p).log()).sum(-1) + log_prior - log_posterior
    by_hand = {
        "elbo": log_weights.mean(0),
        "iwae": log_weights.reshape(-1, 5, 12).logsumexp(1).mean(0) - math.log(5),
        "log_likelihood": log_weights.logsumexp(0) - math.log(20_000),
    }
    ours = {"elbo": result.elbo, "iwae": result.iwae.sel(k=5), "log_likelihood": result.log_likelihood}
    errors = {"elbo": result.elbo_mcse, "iwae": result.iwae_mcse.sel(k=5), "log_likelihood": result.mcse}
    for name, expected in by_hand.items():
        z_scores = (ours[name] - expected.numpy()) / (math.sqrt(2) * errors[name])
        assert abs(z_scores).max() < 4, name
        assert errors[name].max() < 0.02, name


def test_the_dataset_records_its_settings(vae: pv.VAE, x: Tensor, tmp_path: object) -> None:
    result = evaluate(vae.model, vae.guide, x, 60, seed=3, binarization="static")
    assert dict(result.sizes) == {"datum": 12, "k": 4}
    assert result.k.values.tolist() == [1, 5, 50, 60]
    assert set(result) == {
        "elbo", "elbo_mcse", "iwae", "iwae_mcse", "log_likelihood", "mcse", "ess", "pareto_k",
    }  # fmt: skip
    attrs = result.attrs
    assert attrs["model"] == "Model(prior=StandardNormal, likelihood=Bernoulli)"
    assert (attrs["num_samples"], attrs["seed"], attrs["binarization"]) == (60, 3, "static")
    assert attrs["torch_version"] == torch.__version__.split("+")[0] or attrs["torch_version"] == torch.__version__
    assert attrs["data_sha1"] != evaluate(vae.model, vae.guide, 1 - x, 60, seed=3).attrs["data_sha1"]
    result.to_netcdf(tmp_path / "result.nc")
    with xr.open_dataset(tmp_path / "result.nc") as again:
        xr.testing.assert_identical(again.load(), result)


def test_active_units() -> None:
    oracle = Oracle(latent=3, size=6)
    with torch.no_grad():
        oracle.vae.posterior.network[0].weight[1] = 0  # the posterior mean of the second unit is constant
    active = active_units(oracle.vae.guide, oracle.data(500), seed=0)
    assert active["z"].values.tolist() == [True, False, True]
    collapsed = Oracle(latent=3, size=6)
    with torch.no_grad():
        collapsed.vae.posterior.network[0].weight.zero_()
    assert not active_units(collapsed.vae.guide, oracle.data(500), seed=0)["z"].any()


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(0, 6), ValueError, r"x is empty, shape \(0, 6\)"),
        (torch.zeros(()), ValueError, "must share a first dimension"),
        (torch.zeros(4, 6, dtype=torch.long), ValueError, "posterior cannot take .* torch.int64"),
        (["image"], TypeError, r"must be a tensor, a NumPy array.*a list of \['str'\]"),
        (torch.zeros(4, 6, dtype=torch.bfloat16), ValueError, "half precision"),
        (
            torch.full((4, 6), math.nan),
            ValueError,
            "4 of 4 data in x hold NaN or infinite values, the first at index 0",
        ),
        (torch.full((4, 6), 0.3), ValueError, "binariz"),
        (torch.cat([torch.zeros(50, 6), torch.full((1, 6), 0.3)]), ValueError, "values from 0 to 0.3.*binariz"),
        (torch.zeros(4, 5), ValueError, r"posterior cannot take a tensor of shape \(4, 5\)"),
        ((torch.zeros(4, 6), torch.zeros(3)), ValueError, r"share a first dimension.*\(4, 6\), \(3,\)"),
    ],
)
def test_bad_data(vae: pv.VAE, x: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        evaluate(vae.model, vae.guide, x, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 0}, "num_samples.*at least 1, got 0"),
        ({"memory": 0}, "positive number of bytes, got 0"),
        ({"num_samples": 5, "k": [1, 6]}, r"between 1 and num_samples=5, got \[1, 6\]"),
        ({"num_samples": 5, "k": []}, "between 1 and num_samples=5"),
    ],
)
def test_bad_arguments(vae: pv.VAE, x: Tensor, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(vae.model, vae.guide, x, **arguments)


def test_a_diverged_model_raises_an_error(vae: pv.VAE, x: Tensor) -> None:
    with torch.no_grad():
        vae.model.likelihood.network[0].bias.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="has diverged: logits of a Bernoulli is NaN"):
        evaluate(vae.model, vae.guide, x, 5)


def test_weights_that_are_not_finite_raise_an_error(vae: pv.VAE, x: Tensor) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", vae.prior())
            pyro.sample("x", vae.likelihood(z), obs=x)
            pyro.factor("zero", torch.where(x[:, 0] == 1, -math.inf, 0.0))

    x[:, 0] = 0
    x[1, 0] = 1
    with pytest.warns(UserWarning, match=r"all draws of data \[1\] \(1 of 12\) have weight zero"):
        results = evaluate(model, vae.guide, x, 5)
    assert results.log_likelihood.values[1] == -math.inf
    assert np.isfinite(np.delete(results.log_likelihood.values, 1)).all()


def test_active_units_of_scalar_latents() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    assert active_units(guide, torch.randn(50), seed=0)["z"].values.tolist() == [True]


def test_active_units_subtracts_the_variance_of_the_draws() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc = torch.stack([torch.zeros(len(x)), 0.15 * x], -1)  # activity 0 and 0.0225
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    x = torch.randn(4000)
    assert active_units(guide, x, num_samples=10, seed=0)["z"].values.tolist() == [False, True]
    assert active_units(guide, x, num_samples=10, threshold=0.05, seed=0)["z"].values.tolist() == [False, False]


def test_active_units_needs_two_data(vae: pv.VAE, x: Tensor) -> None:
    with pytest.raises(ValueError, match="at least two data and two draws per datum, got 1 data and num_samples=50"):
        active_units(vae.guide, x[:1])


@pytest.mark.cuda
def test_cuda_gives_the_same_weights() -> None:
    oracle = Oracle()
    x = oracle.data(50)
    vae = oracle.vae.cuda()
    weights = log_weights(vae.model, vae.guide, x, 20)
    assert weights.is_cuda
    torch.testing.assert_close(weights.cpu(), oracle.log_likelihood(x).expand(20, 50))


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_few_data_show_that_a_program_cannot_take_many_draws(size: int) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(torch.zeros(5), z.exp()[:, None]).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    x = torch.randn(size, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = pv.evaluation.evaluate(model, guide, x, 200, seed=0, progress=False)
    single = pv.evaluation.evaluate(model, guide, x, 200, seed=0, progress=False, vectorize=False)
    np.testing.assert_allclose(found.log_likelihood, single.log_likelihood, atol=4.5 * float(single.mcse.max()))
