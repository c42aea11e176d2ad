"""Autoencoders: losses, penalties, corruptions against independent computations; training; and what they have not."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.autoencoders import (
    L1,
    Autoencoder,
    Contraction,
    ContractiveAutoencoder,
    DenoisingAutoencoder,
    GaussianNoise,
    KLSparsity,
    Masking,
    SparseAutoencoder,
    squared_jacobian_norm,
)
from pyrovae.precision import products
from tests.test_compiled_runs import assert_same_run, fitted

fit = partial(pv.fit, progress=False)
mlp = partial(pv.networks.mlp, activation=nn.Tanh)


def encoder(code: int = 3) -> nn.Module:
    return mlp(6, 8, code)


def bounded_encoder(code: int = 3) -> nn.Module:
    return nn.Sequential(mlp(6, 8, code), nn.Sigmoid())


def decoder(code: int = 3) -> nn.Module:
    return mlp(code, 8, 6)


@dataclass(frozen=True)
class Summed:
    """A penalty of one's own."""

    penalties: tuple[Any, ...]

    def __call__(self, *arguments: Any) -> Any:
        return sum(penalty(*arguments) for penalty in self.penalties)


KINDS: dict[str, Callable[[], Autoencoder]] = {
    "Autoencoder": lambda: Autoencoder(encoder(), decoder()),
    "Autoencoder, overcomplete": lambda: Autoencoder(encoder(9), decoder(9)),
    "Autoencoder, squared": lambda: Autoencoder(encoder(), decoder(), error="squared"),
    "SparseAutoencoder": lambda: SparseAutoencoder(encoder(), decoder()),
    "SparseAutoencoder, KL": lambda: SparseAutoencoder(bounded_encoder(), decoder(), weight=0.3, sparsity="kl"),
    "DenoisingAutoencoder": lambda: DenoisingAutoencoder(encoder(), decoder()),
    "DenoisingAutoencoder, Gaussian": lambda: DenoisingAutoencoder(
        encoder(), decoder(), corruption=GaussianNoise(0.3), error="squared"
    ),
    "ContractiveAutoencoder": lambda: ContractiveAutoencoder(encoder(), decoder()),
    "all at once": lambda: Autoencoder(
        bounded_encoder(),
        decoder(),
        corruption=Masking(0.3),
        penalty=Summed((L1(0.1), KLSparsity(0.2), Contraction(0.3))),
    ),
}


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def autoencoder(request: pytest.FixtureRequest) -> Autoencoder:
    made: Autoencoder = request.param().double()
    return made


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def test_the_cross_entropy_is_that_of_bernoulli_bits(x: Tensor) -> None:
    autoencoder, x = Autoencoder(encoder(), decoder()).double(), x.double()
    bits, found = array(x), array(autoencoder.decode(autoencoder.encode(x)))
    expected = -(bits * np.log(found) + (1 - bits) * np.log(1 - found)).sum(1)
    np.testing.assert_allclose(array(autoencoder.errors(x)), expected, rtol=1e-12)
    np.testing.assert_allclose(autoencoder.loss(x).item(), expected.mean(), rtol=1e-12)
    likelihood = pv.likelihoods.Bernoulli(autoencoder.decoder)
    np.testing.assert_allclose(array(likelihood(autoencoder.encode(x)).log_prob(x)), -expected, rtol=1e-12)


def test_the_squared_error_is_summed_over_an_image() -> None:
    autoencoder = Autoencoder(mlp((4, 5), 3), mlp(3, (4, 5)), error="squared").double()
    x = torch.randn(7, 4, 5, dtype=torch.float64)
    expected = ((array(x) - array(autoencoder.decode(autoencoder.encode(x)))) ** 2).sum((1, 2))
    np.testing.assert_allclose(array(autoencoder.errors(x)), expected, rtol=1e-12)
    np.testing.assert_allclose(autoencoder.loss(x).item(), expected.mean(), rtol=1e-12)
    assert torch.equal(autoencoder.reconstruct(x), autoencoder.decoder(autoencoder.encoder(x)))


def penalty_of(autoencoder: Autoencoder, x: Tensor) -> float:
    """What the loss has beside the error."""
    return (autoencoder.loss(x) - autoencoder.errors(x).mean()).item()


def test_l1_is_the_sum_of_absolute_values(x: Tensor) -> None:
    autoencoder, x = SparseAutoencoder(encoder(), decoder(), weight=0.7).double(), x.double()
    expected = 0.7 * np.abs(array(autoencoder.encode(x))).sum(1).mean()
    assert penalty_of(autoencoder, x) == pytest.approx(expected, rel=1e-12)


def test_kl_sparsity_compares_the_mean_activity_with_the_target(x: Tensor) -> None:
    autoencoder = SparseAutoencoder(bounded_encoder(), decoder(), weight=0.7, sparsity="kl", target=0.1).double()
    x = x.double()
    activity = array(autoencoder.encode(x)).mean(0)
    expected = 0.7 * (0.1 * np.log(0.1 / activity) + 0.9 * np.log(0.9 / (1 - activity))).sum()
    assert penalty_of(autoencoder, x) == pytest.approx(expected, rel=1e-12)
    at_target = torch.full((5, 3), 0.1, dtype=torch.float64)
    torch.testing.assert_close(KLSparsity(0.7, 0.1)(None, None, at_target), torch.zeros(5, dtype=torch.float64))


def test_the_contraction_of_a_sigmoid_layer_is_its_closed_form(x: Tensor) -> None:
    layer = nn.Linear(6, 3)
    autoencoder = ContractiveAutoencoder(nn.Sequential(layer, nn.Sigmoid()), decoder(), weight=0.7).double()
    x = x.double()
    h, w = array(autoencoder.encode(x)), array(layer.weight)
    expected = ((h * (1 - h)) ** 2 * (w**2).sum(1)).sum(1)
    np.testing.assert_allclose(array(squared_jacobian_norm(autoencoder.encoder, x)), expected, rtol=1e-12)
    assert penalty_of(autoencoder, x) == pytest.approx(0.7 * expected.mean(), rel=1e-12)


DEEP: dict[str, Callable[[], nn.Module]] = {
    "dense": lambda: mlp((4, 6), 8, 7, 3),
    "overcomplete": lambda: mlp((4, 6), 8, 30),
    "convolutional": lambda: pv.networks.conv_encoder((4, 6), 2, out_shape=3),
    "layer norm": lambda: nn.Sequential(mlp((4, 6), 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3)),
    "batch norm, trained": lambda: nn.Sequential(mlp((4, 6), 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).eval(),
    "posterior mean": lambda: PosteriorMean(pv.posteriors.DiagonalNormal(mlp((4, 6), 8, 2 * 3))),
}


class PosteriorMean(nn.Module):
    def __init__(self, posterior: nn.Module) -> None:
        super().__init__()
        self.posterior = posterior

    def forward(self, x: Tensor) -> Tensor:
        return self.posterior(x).mean


@pytest.mark.parametrize("make", DEEP.values(), ids=DEEP)
def test_the_contraction_of_a_deep_network_is_that_of_finite_differences(make: Callable[[], nn.Module]) -> None:
    network, x = make().double(), torch.rand(3, 4, 6, dtype=torch.float64)
    expected, step = torch.zeros(3, dtype=torch.float64), 1e-5
    with torch.no_grad():
        for direction in torch.eye(24, dtype=torch.float64).reshape(24, 4, 6):
            slope = (network(x + step * direction) - network(x - step * direction)) / (2 * step)
            expected += slope.square().sum(1)
        torch.testing.assert_close(squared_jacobian_norm(network, x), expected, rtol=1e-7, atol=1e-9)


def test_the_gradient_of_the_contraction_is_that_of_finite_differences(x: Tensor) -> None:
    layers = [nn.Linear(6, 4).double(), nn.Linear(4, 2).double()]
    x = x.double()[:3]

    def penalty(*parameters: Tensor) -> Tensor:
        w1, b1, w2, b2 = parameters
        return Contraction(1.0)(lambda x: (x @ w1.T + b1).tanh() @ w2.T + b2, x, None)

    parameters = [parameter for layer in layers for parameter in (layer.weight, layer.bias)]
    assert torch.autograd.gradcheck(penalty, parameters)


def test_the_contraction_has_a_gradient_where_the_jacobian_is_zero(x: Tensor) -> None:
    network = nn.Linear(6, 3)
    nn.init.zeros_(network.weight)
    Contraction(1.0)(network, x, None).sum().backward()
    assert torch.equal(network.weight.grad, torch.zeros(3, 6))


def test_dropout_is_drawn_in_the_jacobian_for_each_datum() -> None:
    network = nn.Sequential(nn.Dropout(0.5), nn.Linear(40, 1, bias=False))
    nn.init.ones_(network[1].weight)
    found = squared_jacobian_norm(network, torch.ones(500, 40))
    assert torch.equal(found / 4, (found / 4).round())  # the number of entries kept, each with a slope of 2
    assert len(found.unique()) > 5
    assert (found / 4).mean().item() == pytest.approx(20, abs=5 * 10**0.5 / 500**0.5)
    torch.testing.assert_close(squared_jacobian_norm(network.eval(), torch.ones(5, 40)), torch.full((5,), 40.0))


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False).eval()], ids=repr)
def test_batch_statistics_have_no_jacobian_of_a_datum(layer: nn.Module, x: Tensor) -> None:
    network = nn.Sequential(nn.Linear(6, 3), layer)
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(ValueError, match=r"BatchNorm1d makes the code of a datum depend on all others.*LayerNorm"):
        squared_jacobian_norm(network, x)
    autoencoder = ContractiveAutoencoder(network.train(), decoder())
    with pytest.raises(ValueError, match="BatchNorm1d makes the code"):
        fit(autoencoder, x, epochs=1)
    assert all(torch.equal(before[name], parameter) for name, parameter in network.named_parameters())


def test_masking_sets_a_random_subset_to_zero() -> None:
    x, u = torch.randn(2000, 7, 5), 0.3
    seen = Masking(u)(x)
    kept = seen != 0
    assert torch.equal(seen[kept], x[kept])
    error = 5 * (u * (1 - u)) ** 0.5
    shares = 1 - kept.double()
    assert abs(shares.mean() - u) < error / x.numel() ** 0.5
    assert ((shares.mean(0) - u).abs() < error / 2000**0.5).all()  # at every place
    counts = shares.sum((1, 2))
    assert counts.var().item() == pytest.approx(35 * u * (1 - u), rel=0.2)  # each entry by itself
    assert torch.equal(Masking(0.0)(x), x)
    assert not Masking(1.0)(x).any()


def test_gaussian_noise_has_its_scale() -> None:
    x = torch.full((4000, 10), 2.0)
    noise = GaussianNoise(0.5)(x) - x
    assert abs(noise.mean()) < 5 * 0.5 / 200
    assert noise.std().item() == pytest.approx(0.5, abs=5 * 0.5 / 2**0.5 / 200)
    assert abs(torch.corrcoef(noise.T)[0, 1]) < 5 / 4000**0.5


@pytest.mark.parametrize("training", [True, False])
def test_the_loss_compares_the_clean_data_with_what_is_made_of_the_corrupted(x: Tensor, training: bool) -> None:
    seen = 1 - x
    autoencoder = DenoisingAutoencoder(encoder(), decoder(), corruption=lambda x: 1 - x).double().train(training)
    x, seen = x.double(), seen.double()
    found = array(autoencoder.decode(autoencoder.encode(seen)))
    expected = -(array(x) * np.log(found) + (1 - array(x)) * np.log(1 - found)).sum(1)
    assert autoencoder.loss(x).item() == pytest.approx(expected.mean(), rel=1e-12)
    np.testing.assert_allclose(array(autoencoder.errors(x, seen=seen)), expected, rtol=1e-12)
    assert (autoencoder.errors(x) - autoencoder.errors(x, seen=seen)).abs().min() > 1e-6


def test_the_penalty_is_that_of_what_the_encoder_sees(x: Tensor) -> None:
    given: list[Any] = []

    def watch(*arguments: Any) -> Tensor:
        given.extend(arguments)
        return torch.full((len(x),), 2.5)

    autoencoder = Autoencoder(encoder(), decoder(), corruption=torch.zeros_like, penalty=watch)
    loss = autoencoder.loss(x)
    assert given[0] is autoencoder.encoder
    assert torch.equal(given[1], torch.zeros_like(x))
    torch.testing.assert_close(given[2], autoencoder.encode(torch.zeros_like(x)))
    torch.testing.assert_close(loss, autoencoder.errors(x, seen=torch.zeros_like(x)).mean() + 2.5)


def test_parts_are_exchanged_by_assignment(x: Tensor) -> None:
    autoencoder = DenoisingAutoencoder(encoder(), decoder())
    autoencoder.corruption, autoencoder.penalty = None, Contraction(0.5)
    expected = autoencoder.errors(x).mean() + 0.5 * squared_jacobian_norm(autoencoder.encoder, x).mean()
    torch.testing.assert_close(autoencoder.loss(x), expected)
    autoencoder.penalty = lambda encoder, x, code: code.sum(1)
    torch.testing.assert_close(autoencoder.loss(x), (autoencoder.errors(x) + autoencoder.encode(x).sum(1)).mean())


def bits(n: int = 25) -> Tensor:
    """Six bits, of which two decide all."""
    return torch.bernoulli(torch.full((n, 2), 0.5)).repeat_interleave(3, dim=1)


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_every_kind_trains(make: Callable[[], Autoencoder]) -> None:
    autoencoder, x = make(), bits(60)
    before = autoencoder.errors(x).mean().item()
    history = fit(autoencoder, x, x, epochs=60, batch_size=25, learning_rate=0.02, seed=0)
    assert history.objective == type(autoencoder).__name__
    assert history.train[-1] > history.train[0]
    assert autoencoder.errors(x).mean().item() < 0.6 * before


@pytest.mark.parametrize("name", ["Autoencoder", "SparseAutoencoder", "ContractiveAutoencoder"])
def test_a_history_is_minus_the_loss_of_a_datum_whatever_the_batches(name: str) -> None:
    autoencoder, x = KINDS[name]().double(), bits(11).double()
    exact = -autoencoder.loss(x).item()
    for size in (11, 4):
        history = fit(autoencoder, x, x, epochs=1, batch_size=size, learning_rate=1e-300)
        assert (*history.train, *history.valid) == pytest.approx((exact, exact), rel=1e-12)


def test_validation_is_corrupted_by_the_same_noise_every_epoch() -> None:
    autoencoder, x = DenoisingAutoencoder(encoder(), decoder()), bits()
    history = fit(autoencoder, x, x, epochs=3, learning_rate=1e-30, seed=0)
    assert history.valid[0] == history.valid[1] == history.valid[2] != -autoencoder.errors(x).mean().item()
    assert history.train[0] != history.train[1]


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_a_seeded_run_repeats_bit_for_bit(make: Callable[[], Autoencoder]) -> None:
    x = bits()
    runs = [fitted(make, x, epochs=3, batch_size=10) for _ in range(2)]
    assert_same_run(*runs, tolerance=0)
    autoencoder = make()
    torch.manual_seed(0)
    first = autoencoder.loss(x)
    torch.manual_seed(0)
    assert torch.equal(autoencoder.loss(x), first)
    assert torch.equal(autoencoder.loss(x), first) == (autoencoder.corruption is None)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_the_graph_of_every_kind_is_the_run(make: Callable[[], Autoencoder]) -> None:
    assert_compiled_is_the_run(lambda: make().double())


def test_a_compiled_run_is_the_run() -> None:
    assert_compiled_is_the_run(lambda: KINDS["all at once"]().double())


def assert_compiled_is_the_run(make: Callable[[], Autoencoder]) -> None:
    options = {"train": 0.8 * bits(20).double() + 0.1, "epochs": 3, "batch_size": 10, "transform": pv.data.binarize}
    plain, compiled = (fitted(make, compile=is_compiled, **options) for is_compiled in (False, True))
    assert compiled.history.compile_seconds > 0
    assert_same_run(compiled, plain, tolerance=1e-9)


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_products_in_bfloat16_round_the_gradient(make: Callable[[], Autoencoder]) -> None:
    autoencoder, x, slopes = make(), bits(), []
    for precision in (None, "bfloat16"):
        torch.manual_seed(0)
        autoencoder.zero_grad()
        with products(precision):
            autoencoder.loss(x).backward()
        slopes.append(torch.cat([parameter.grad.flatten() for parameter in autoencoder.parameters()]))
    assert 2**-12 < (slopes[1] - slopes[0]).norm() / slopes[0].norm() < 2**-5
    assert np.isfinite(fit(autoencoder, x, epochs=2, precision="bfloat16").train).all()


def test_copies_train_by_themselves(autoencoder: Autoencoder) -> None:
    x = bits().double()
    before = autoencoder.encode(x)
    for copied in (copy.deepcopy(autoencoder), pickle.loads(pickle.dumps(autoencoder))):
        fit(copied, x, epochs=2)
        assert torch.equal(autoencoder.encode(x), before)
        assert not torch.equal(copied.encode(x), before)


NOT_THERE = "Autoencoder has no '{}': an autoencoder has no density p\\(x\\), hence no ELBO, no likelihood and no draws"


@pytest.mark.parametrize("name", ["model", "guide", "prior", "likelihood", "posterior", "generate"])
def test_what_only_a_density_has_says_why_it_is_missing(autoencoder: Autoencoder, name: str) -> None:
    assert not hasattr(autoencoder, name)
    with pytest.raises(AttributeError, match=NOT_THERE.format(name)):
        getattr(autoencoder, name)


@pytest.mark.parametrize(
    "ask",
    [
        lambda ae, x: pv.evaluation.evaluate(ae.model, ae.guide, x),
        lambda ae, x: pv.evaluation.log_weights(ae.model, ae.guide, x, 5),
        lambda ae, x: Trace_ELBO().loss(ae.model, ae.guide, x),
        lambda ae, x: pyro.infer.SVI(ae.model, ae.guide, pyro.optim.Adam({}), Trace_ELBO()),
    ],
)
def test_there_is_no_elbo(ask: Callable[[Any, Tensor], Any], x: Tensor) -> None:
    with pytest.raises(AttributeError, match=NOT_THERE.format("model")):
        ask(KINDS["ContractiveAutoencoder"](), x)


def test_other_attributes_are_missed_as_ever(autoencoder: Autoencoder) -> None:
    with pytest.raises(AttributeError, match="has no attribute 'densities'"):
        _ = autoencoder.densities


X = torch.zeros(12, 6)
SQUARED = {"error": "squared"}


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        (
            lambda: Autoencoder(encoder(), decoder(), error="mse"),
            ValueError,
            r"\('cross_entropy', 'squared'\), got 'ms",
        ),
        (lambda: SparseAutoencoder(encoder(), decoder(), sparsity="l0"), ValueError, "'l1' or 'kl', got 'l0'"),
        (
            lambda: SparseAutoencoder(encoder(), decoder(), weight=-1.0),
            ValueError,
            "finite and not negative, got weight=-1.0",
        ),
        (lambda: Contraction(float("nan")), ValueError, "finite and not negative, got weight=nan"),
        (lambda: KLSparsity(1.0, target=1.0), ValueError, "strictly between 0 and 1, got target=1.0"),
        (lambda: KLSparsity(-1.0), ValueError, "finite and not negative, got weight=-1.0"),
        (lambda: Masking(1.5), ValueError, "between 0 and 1, got u=1.5"),
        (lambda: GaussianNoise(-0.1), ValueError, "finite and not negative, got scale=-0.1"),
        (lambda: fit(KINDS["Autoencoder"](), X + 2), ValueError, "between 0 and 1, got values from 2 to 2.*'squared'"),
        (lambda: KINDS["Autoencoder"]().loss(X - 1), ValueError, "got values from -1 to -1"),
        (lambda: fit(KINDS["Autoencoder"](), X, X - 1), ValueError, "got values from -1 to -1"),
        (
            lambda: fit(SparseAutoencoder(encoder(), decoder(), sparsity="kl"), torch.rand(12, 6)),
            ValueError,
            r"codes from -.* to .*; let the encoder end in torch.nn.Sigmoid\(\)",
        ),
        (
            lambda: fit(KINDS["Autoencoder"](), X[:, :5]),
            ValueError,
            r"the encoder cannot take a tensor of shape \(12, 5\), torch.float32 \(.*that its network takes",
        ),
        (
            lambda: fit(Autoencoder(encoder(), decoder(4)), X),
            ValueError,
            r"the decoder cannot take a tensor of shape \(12, 3\)",
        ),
        (
            lambda: fit(Autoencoder(encoder(), mlp(3, (2, 3))), X),
            ValueError,
            r"the decoder gives shape \(12, 2, 3\) for data of shape \(12, 6\); .* event shape \(6,\)",
        ),
        (
            lambda: fit(Autoencoder(nn.Unflatten(1, (2, 3)), decoder()), X),
            ValueError,
            r"the encoder gives shape \(12, 2, 3\) for data of shape \(12, 6\); .* shape \(12, code\)",
        ),
        (lambda: KINDS["Autoencoder"]().encode(X.double()), ValueError, "the encoder cannot take .* torch.float64"),
        (
            lambda: fit(Autoencoder(pv.posteriors.DiagonalNormal(encoder(6)), decoder()), X),
            TypeError,
            "the encoder returned a Independent, not a tensor",
        ),
        (lambda: fit(KINDS["Autoencoder"](), X, objective=Trace_ELBO()), ValueError, "leave out objective= and kl_war"),
        (lambda: fit(KINDS["Autoencoder"](), X, kl_warmup=1), ValueError, "leave out objective= and kl_warmup="),
        (lambda: fit(KINDS["Autoencoder"]().requires_grad_(False), X), ValueError, "has no parameter to train"),
        (lambda: fit(KINDS["Autoencoder"](), X / 0), ValueError, "12 of 12 data in train hold NaN"),
    ],
)
def test_bad_input_is_an_error(ask: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ask()


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    with pytest.raises(FloatingPointError, match=r"Autoencoder objective became (nan|-?inf)"):
        fit(KINDS["Autoencoder, squared"](), bits(), epochs=50, learning_rate=1e30, optimizer=torch.optim.SGD)
