"""The evaluation is right, exact under any chunking, and changes nothing."""

import math
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.evaluation import active_units, evaluate, log_weights, psis
from pyrovae.evaluation.statistics import effective_sample_size, elbo, iwae, log_likelihood
from tests.conftest import small_vae
from tests.oracle import Oracle

# --- against algebra -------------------------------------------------------------------------------------------------


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


def test_with_the_true_posterior_all_is_exact() -> None:
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
        exact = evaluate(oracle.vae.model, oracle.vae.guide, x, 4000, seed=1, k=[5]).iwae.mean().item()
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


# --- statistics of weights -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_samples", [1, 2, 3, 7, 12, 60])
def test_iwae_uses_every_draw_equally_often_and_keeps_the_order(num_samples: int) -> None:
    log_w = 3 * torch.randn(num_samples, 4, dtype=torch.float64)
    lowest, highest = elbo(log_w)[0], log_likelihood(log_w)[0]
    for k in range(1, num_samples + 1):
        by_hand = torch.stack(
            [log_w.roll(-start, 0)[:k].logsumexp(0) - math.log(k) for start in range(num_samples)]
        ).mean(0)
        bound = iwae(log_w, k)[0]
        torch.testing.assert_close(bound, by_hand)
        assert (lowest <= bound + 1e-12).all()
        assert (bound <= highest + 1e-12).all()


def test_iwae_refuses_more_draws_than_there_are() -> None:
    with pytest.raises(ValueError, match="1 <= k <= 3"):
        iwae(torch.zeros(3, 2), 4)


def test_effective_sample_size() -> None:
    log_w = torch.tensor([[0.0, 0.0], [0.0, -math.inf], [0.0, -math.inf]], dtype=torch.float64) - 1000
    torch.testing.assert_close(effective_sample_size(log_w), torch.tensor([3.0, 1.0], dtype=torch.float64))


def test_one_draw_has_no_error() -> None:
    log_w = torch.randn(1, 3)
    for statistic in (elbo, log_likelihood):
        value, error = statistic(log_w)
        torch.testing.assert_close(value, log_w[0])
        assert error.isnan().all()


def test_psis_smooths_and_normalizes() -> None:
    one = torch.ones((), dtype=torch.float64)
    pareto = torch.distributions.Pareto(one, one / 0.6).sample((4000, 5)).log()
    smoothed, pareto_k = psis(pareto)
    assert smoothed.shape == pareto.shape
    torch.testing.assert_close(smoothed.exp().sum(0), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(pareto_k, torch.full((5,), 0.6, dtype=torch.float64), atol=0.25, rtol=0)
    small = pareto < pareto.quantile(0.5, dim=0)
    spread = (smoothed - pareto)[small[:, 0].nonzero().flatten()[:2], 0]
    assert spread[0] == pytest.approx(spread[1].item())  # what is not in the tail is only normalized


def test_psis_of_few_draws_and_of_flat_tails() -> None:
    assert psis(torch.randn(20, 3))[1].tolist() == [np.inf] * 3
    assert psis(torch.zeros(1, 3))[1].tolist() == [-np.inf] * 3
    bounded = torch.randn(1000, 2).clamp(max=0.0)  # half of the weights are the largest
    smoothed, pareto_k = psis(bounded)
    assert pareto_k.tolist() == [-np.inf] * 2
    torch.testing.assert_close(smoothed, (bounded - bounded.logsumexp(0)).double())


# --- any chunking ----------------------------------------------------------------------------------------------------


class Numbered:
    """A program whose k-th draw of a datum weighs k, for as many runs as there may be."""

    def __init__(self) -> None:
        self.drawn = 0

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0).mask(False))
            pyro.sample("x", dist.Normal(x, 1.0).mask(False), obs=x)
            pyro.factor("number", z)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", _Counting(self))


class _Counting(pyro.distributions.TorchDistribution):
    """Counts its draws per datum."""

    has_rsample = True
    support = torch.distributions.constraints.real

    def __init__(self, owner: Numbered, batch_shape: tuple[int, ...] = ()) -> None:
        self.owner = owner
        super().__init__(torch.Size(batch_shape), validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "_Counting":
        return _Counting(self.owner, batch_shape)

    def rsample(self, sample_shape: tuple[int, ...] = ()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        draws = shape[0] if len(shape) == 2 else 1
        numbers = self.owner.drawn + torch.arange(draws, dtype=torch.float32)
        self.owner.drawn += draws
        return numbers[:, None].expand(draws, shape[-1]).reshape(shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return torch.zeros_like(value)


@pytest.mark.parametrize("num_samples", [1, 2, 7, 100])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 11])
@pytest.mark.parametrize("memory", [1, 150, 1000, 10**9])
def test_no_draw_and_no_datum_is_lost(num_samples: int, size: int, memory: int) -> None:
    program = Numbered()
    weights = log_weights(program.model, program.guide, torch.zeros(size), num_samples, memory=memory)
    assert weights.shape == (num_samples, size)
    numbered = weights - weights[0]
    torch.testing.assert_close(numbered, torch.arange(num_samples, dtype=torch.float32)[:, None].expand(-1, size))


@pytest.mark.parametrize("memory", [1, 10_000, 10**9])
@pytest.mark.parametrize("vectorize", [True, False])
def test_chunks_belong_to_their_data(memory: int, vectorize: bool) -> None:
    oracle = Oracle()  # every weight is the datum's own log p(x), so a datum out of place would show
    x = oracle.data(11)
    weights = log_weights(oracle.vae.model, oracle.vae.guide, x, 9, memory=memory, vectorize=vectorize)
    torch.testing.assert_close(weights, oracle.log_likelihood(x).expand(9, 11))


def test_the_same_seed_gives_the_same_draws(vae: pv.VAE, x: Tensor) -> None:
    first, second, other = (log_weights(vae.model, vae.guide, x, 5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    unseeded = evaluate(vae.model, vae.guide, x, 5)
    again = evaluate(vae.model, vae.guide, x, 5, seed=unseeded.attrs["seed"])
    xr.testing.assert_equal(unseeded, again)


@pytest.mark.slow
def test_memory_is_flat_in_the_number_of_data() -> None:
    code = """
import torch, pyrovae as pv
torch.set_num_threads(1)
vae = pv.VAE(
    pv.priors.StandardNormal(50),
    pv.likelihoods.Bernoulli(pv.networks.mlp(50, 200, 200, 784)),
    pv.posteriors.DiagonalNormal(pv.networks.mlp(784, 200, 200, 100)),
)
x = torch.bernoulli(torch.full((300, 784), 0.2))
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
pv.evaluation.evaluate(vae.model, vae.guide, x[:20], 5000)
before = resident()
pv.evaluation.evaluate(vae.model, vae.guide, x, 5000)
print(resident() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2**27, "the heap grows with the number of data"


def test_memory_bound_holds() -> None:
    oracle = Oracle(size=500)
    x = oracle.data(200)
    largest = 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(
            self, func: object, types: object, args: tuple = (), kwargs: dict | None = None
        ) -> object:
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            largest = max(largest, result.nbytes if isinstance(result, Tensor) else 0)
            return result

    memory = 2**20
    with Watch():
        evaluate(oracle.vae.model, oracle.vae.guide, x, 200, seed=0, memory=memory)
    assert largest <= max(memory, x.nbytes)


# --- any program -----------------------------------------------------------------------------------------------------


def script(subsample_size: int | None, size: int) -> tuple[Callable[[Tensor], None], Callable[[Tensor], None]]:
    """A plain Pyro script; its posterior is exact, so every weight is log p(x)."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", size, subsample_size=subsample_size) as indices:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[indices])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", size, subsample_size=subsample_size) as indices:
            pyro.sample("z", dist.Normal(x[indices] / 2, math.sqrt(0.5)))

    return model, guide


@pytest.mark.parametrize("size", [2, 3, 7, 10])
@pytest.mark.parametrize("subsample_size", [None, 1, 2, 3, 5])
def test_programs_with_a_plate_of_their_own(size: int, subsample_size: int | None) -> None:
    x = torch.randn(size, dtype=torch.float64)
    model, guide = script(subsample_size and min(subsample_size, size), size)
    exact = dist.Normal(torch.zeros((), dtype=torch.float64), math.sqrt(2)).log_prob(x)
    for memory in (1, 10**9):
        weights = log_weights(model, guide, x, 6, memory=memory)
        torch.testing.assert_close(weights, exact.expand(6, size))


@pytest.mark.parametrize("memory", [2000, 10**9])
def test_a_plate_that_takes_a_part_of_many_data_loses_none(memory: int) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=min(10, len(x))) as i:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[i])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=min(10, len(x))) as i:
            pyro.sample("z", dist.Normal(x[i] / 2, math.sqrt(0.5)))

    x = torch.randn(53, dtype=torch.float64)
    exact = dist.Normal(torch.zeros((), dtype=torch.float64), math.sqrt(2)).log_prob(x)
    torch.testing.assert_close(log_weights(model, guide, x, 4, memory=memory), exact.expand(4, 53))


def test_an_autoguide_that_has_seen_no_data_is_refused(vae: pv.VAE, x: Tensor) -> None:
    guide = AutoNormal(vae.model)
    with pytest.raises(ValueError, match="autoguide has not seen data"):
        log_weights(vae.model, guide, x, 3)
    guide(x)
    assert log_weights(vae.model, guide, x, 3).shape == (3, 12)


def test_a_plate_of_another_size_is_refused() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:4])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 4):
            pyro.sample("z", dist.Normal(x[:4], 1.0))

    with pytest.raises(ValueError, match="plate 'data' has size 4 but x has 9 data"):
        log_weights(model, guide, torch.zeros(9), 3)


class Convolutional(nn.Module):
    """A program as Pyro's tutorials write them: pyro.module, and a network that takes one batch dimension only."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 1, 3, padding=1), nn.Flatten(1))

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 4), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(x, 1.0).to_event(1))


def test_a_program_that_takes_no_further_dimension() -> None:
    program, x = Convolutional(), torch.randn(5, 4)
    with pytest.raises(RuntimeError) as error:
        log_weights(program.model, program.guide, x, 3)
    assert "vectorize=False" in "".join(error.value.__notes__)
    weights = log_weights(program.model, program.guide, x, 3, vectorize=False, seed=0)
    assert weights.shape == (3, 5)
    assert not torch.equal(weights[0], weights[1])


def test_tuples_are_passed_on() -> None:
    def model(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(y.to(x.dtype), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x + y) / 2, math.sqrt(0.5)))

    x, y = torch.randn(7, dtype=torch.float64), torch.arange(7)
    exact = dist.Normal(y.double(), math.sqrt(2)).log_prob(x)
    torch.testing.assert_close(log_weights(model, guide, (x, y), 4, memory=1), exact.expand(4, 7))


# --- leaving no trace ------------------------------------------------------------------------------------------------


class Counter(nn.Module):
    """A network with state: batch normalization, dropout, and a buffer that counts calls even in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.Dropout(0.5))
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(()))

    def forward(self, z: Tensor) -> Tensor:
        self.calls += 1
        self.last = self.last + z.sum()  # puts another tensor in the buffer's place
        return self.layers(z.reshape(-1, 2)).reshape(*z.shape[:-1], 6)


def test_evaluation_changes_nothing(x: Tensor) -> None:
    vae = small_vae()
    vae.likelihood = pv.likelihoods.Bernoulli(Counter())
    vae.train()
    vae.guide.eval()
    state = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    modes = [module.training for module in vae.modules()]
    generators = torch.get_rng_state(), np.random.get_state()[1].copy()
    settings = pyro.infer.util.is_validation_enabled(), torch.is_grad_enabled()
    for _ in range(2):
        evaluate(vae.model, pyro.poutine.scale(vae.guide, 1.0), x, 5)
        log_weights(vae.model, vae.guide, x, 5, seed=1)
        active_units(vae.guide, x)
        with pytest.raises(ValueError, match="Bernoulli"):
            evaluate(vae.model, vae.guide, x / 2, 5)
    assert all(torch.equal(tensor, state[name]) for name, tensor in vae.state_dict().items())
    assert all(parameter.grad is None for parameter in vae.parameters())
    assert [module.training for module in vae.modules()] == modes
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert (np.random.get_state()[1] == generators[1]).all()
    assert (pyro.infer.util.is_validation_enabled(), torch.is_grad_enabled()) == settings


def test_dropout_and_batch_norm_are_in_evaluation_mode(x: Tensor) -> None:
    vae = small_vae()
    vae.likelihood = pv.likelihoods.Bernoulli(Counter())
    torch.testing.assert_close(
        log_weights(vae.model, vae.guide, x, 5, seed=1), log_weights(vae.model.eval(), vae.guide.eval(), x, 5, seed=1)
    )


# --- results ---------------------------------------------------------------------------------------------------------


def test_the_dataset_says_what_it_is(vae: pv.VAE, x: Tensor, tmp_path: object) -> None:
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
    assert active["z"].tolist() == [True, False, True]
    collapsed = Oracle(latent=3, size=6)
    with torch.no_grad():
        collapsed.vae.posterior.network[0].weight.zero_()
    assert not active_units(collapsed.vae.guide, oracle.data(500), seed=0)["z"].any()


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(0, 6), ValueError, r"x is empty, shape \(0, 6\)"),
        (torch.zeros(()), ValueError, "must share a first dimension"),
        (torch.zeros(4, 6, dtype=torch.long), TypeError, "must be floating-point, got torch.int64"),
        (np.zeros((4, 6)), TypeError, r"must be a tensor or a tuple of tensors, got \['ndarray'\]"),
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
        ({"num_samples": 5, "k": [1, 6]}, r"from 1 to num_samples=5, got \[1, 6\]"),
        ({"num_samples": 5, "k": []}, "from 1 to num_samples=5"),
    ],
)
def test_bad_arguments(vae: pv.VAE, x: Tensor, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(vae.model, vae.guide, x, **arguments)


def test_a_diverged_model_says_so(vae: pv.VAE, x: Tensor) -> None:
    with torch.no_grad():
        vae.model.likelihood.network[0].bias.fill_(math.nan)
    with pytest.raises(ValueError, match="nan"):
        evaluate(vae.model, vae.guide, x, 5)


def test_weights_that_are_not_finite_say_so(vae: pv.VAE, x: Tensor) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", vae.prior())
            pyro.sample("x", vae.likelihood(z), obs=x)
            pyro.factor("zero", torch.where(x[:, 0] == 1, -math.inf, 0.0))

    x[:, 0] = 0
    x[1, 0] = 1
    with pytest.raises(FloatingPointError, match=r"1 of \d+ data .* diverged, or gives these data zero probability"):
        evaluate(model, vae.guide, x, 5)


def test_active_units_of_scalar_latents() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    assert active_units(guide, torch.randn(50), seed=0)["z"].tolist() == [True]


def test_active_units_takes_off_what_the_draws_add() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc = torch.stack([torch.zeros(len(x)), 0.15 * x], -1)  # activity 0 and 0.0225
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    x = torch.randn(4000)
    assert active_units(guide, x, num_samples=10, seed=0)["z"].tolist() == [False, True]
    assert active_units(guide, x, num_samples=10, threshold=0.05, seed=0)["z"].tolist() == [False, False]


def test_active_units_needs_two_data(vae: pv.VAE, x: Tensor) -> None:
    with pytest.raises(ValueError, match="two or more data and draws, got 1 and 50"):
        active_units(vae.guide, x[:1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_cuda_gives_the_same_weights() -> None:
    oracle = Oracle()
    x = oracle.data(50)
    vae = oracle.vae.cuda()
    weights = log_weights(vae.model, vae.guide, x, 20)
    assert weights.is_cuda
    torch.testing.assert_close(weights.cpu(), oracle.log_likelihood(x).expand(20, 50))
