"""Every input gives a result, or an error of the package that names the problem."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

import pyrovae as pv
from tests.conftest import small_vae
from tests.refusals import answer_or_refusal, refused

SIZE = 6
FILLS = [0.0, 1.0, 0.5, -1.0, 3.0, 1e-42, 1e30, -3e38, math.inf, -math.inf, math.nan]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.complex64]


@st.composite
def tensors(draw: Any) -> Tensor:
    """Tensors, most of which are invalid as data of ``SIZE`` entries each."""
    shape = draw(st.one_of(st.tuples(st.integers(0, 6), st.just(SIZE)), st.lists(st.integers(0, 7), max_size=4)))
    values = torch.bernoulli(torch.full(tuple(shape), 0.5), generator=torch.Generator().manual_seed(0))
    if values.numel() and draw(st.booleans()):
        values.view(-1)[draw(st.integers(0, values.numel() - 1))] = draw(st.sampled_from(FILLS))
    values = values.to(draw(st.one_of(st.just(torch.float32), st.sampled_from(DTYPES))))
    return values.to_sparse() if values.ndim and draw(st.integers(0, 9)) == 0 else values


NO_DATA = [
    None,
    "x",
    (),
    [[0.0] * SIZE],
    np.zeros((3, SIZE)),
    {"x": torch.zeros(3, SIZE)},
    (torch.zeros(3, SIZE), None),
]
NO_DATA += [(torch.zeros(3, SIZE), torch.zeros(2, SIZE)), (torch.zeros(3, SIZE), torch.zeros(()))]


def normal_vae() -> pv.VAE:
    return pv.VAE(
        pv.priors.StandardNormal(1),
        pv.likelihoods.Normal(pv.networks.mlp(1, SIZE)),
        pv.posteriors.DiagonalNormal(pv.networks.mlp(SIZE, 2)),
    )


def autoencoder() -> pv.autoencoders.Autoencoder:
    return pv.autoencoders.Autoencoder(pv.networks.mlp(SIZE, 2), pv.networks.mlp(2, SIZE))


def fitted(module: nn.Module) -> Callable[[Any], list[float]]:
    return lambda x: pv.fit(module, x, epochs=1, batch_size=4, progress=False).train


def validated(module: nn.Module) -> Callable[[Any], list[float]]:
    train = torch.zeros(5, SIZE)
    return lambda x: pv.fit(module, train, x, epochs=1, batch_size=4, progress=False).valid


def evaluated(vae: pv.VAE) -> Callable[[Any], np.ndarray]:
    return lambda x: pv.evaluation.evaluate(vae.model, vae.guide, x, 3, progress=False).log_likelihood.values


def quasi(vae: pv.VAE) -> Callable[[Any], np.ndarray]:
    return lambda x: pv.evaluation.rqmc(vae.model, vae.guide, x, 8, num_replicates=2, progress=False).mcse.values


def weighed(vae: pv.VAE) -> Callable[[Any], np.ndarray]:
    return lambda x: pv.evaluation.log_weights(vae.model, vae.guide, x, 3).numpy()


READERS: dict[str, tuple[Callable[[Any], Any], Callable[[], nn.Module]]] = {
    "fit": (fitted, small_vae),
    "fit, real": (fitted, normal_vae),
    "fit, validation": (validated, small_vae),
    "fit, autoencoder": (fitted, autoencoder),
    "evaluate": (evaluated, small_vae),
    "evaluate, real": (evaluated, normal_vae),
    "log_weights": (weighed, small_vae),
    "rqmc": (quasi, small_vae),
    "reconstruct": (lambda vae: vae.reconstruct, small_vae),
}


def is_binary(x: Any) -> bool:
    dense = isinstance(x, Tensor) and x.layout == torch.strided and x.dtype == torch.float32
    return dense and x.ndim == 2 and len(x) > 0 and x.shape[1] == SIZE and bool(((x == 0) | (x == 1)).all())


@pytest.mark.filterwarnings("ignore:Encountered NaN")  # Pyro's word, before ours
@pytest.mark.filterwarnings("ignore:.*(data|x) .*(NaN|weight zero)")  # a datum that fails is a row of NaN
@pytest.mark.parametrize("name", READERS)
@given(x=tensors())
@example(x=torch.zeros(4, 0))
@example(x=torch.zeros(SIZE))  # an autoencoder took it for one datum, and failed at its dimensions
@example(x=torch.full((4, SIZE), 1e38))  # overflows in the network, and failed in torch's distributions
@example(x=torch.zeros(4, SIZE).double())  # a reconstruction failed in a linear layer
@example(x=torch.zeros(4, SIZE).to_sparse())
def test_data_are_read_or_refused(name: str, x: Tensor) -> None:
    reader, make = READERS[name]
    pyro.set_rng_seed(0)
    answer = answer_or_refusal(lambda: reader(make())(x))
    assert answer is not None or not is_binary(x)
    if answer is not None:
        may_fail = name in ("evaluate", "evaluate, real", "log_weights", "rqmc")  # single data, with a warning
        assert torch.as_tensor(answer).isfinite().all() or (may_fail and not is_binary(x))
        assert x.dtype == torch.float32
        assert x.shape[-1] == SIZE


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("x", NO_DATA, ids=lambda x: type(x).__name__)
def test_invalid_data_are_refused(name: str, x: Any) -> None:
    if name == "fit, validation" and x is None:
        return  # not a valid argument
    if isinstance(x, np.ndarray):
        return  # arrays are data, see test_data_of_any_kind
    reader, make = READERS[name]
    with refused():
        reader(make())(x)


not_whole = st.sampled_from([1.0, 2.5, math.nan, math.inf, "3", None, True, torch.tensor(3)])
too_small = st.integers(-3, 0)
X = torch.zeros(3, SIZE)
BINARY = pv.likelihoods.Bernoulli(pv.networks.mlp(2, SIZE))


def fit(**options: Any) -> Any:
    return pv.fit(small_vae(), X, X, progress=False, **({"epochs": 1} | options))


def evaluate(**options: Any) -> Any:
    vae = small_vae()
    return pv.evaluation.evaluate(vae.model, vae.guide, X, progress=False, **({"num_samples": 3} | options))


def rqmc(**options: Any) -> Any:
    vae = small_vae()
    return pv.evaluation.rqmc(vae.model, vae.guide, X, progress=False, **({"num_samples": 64} | options))


COUNTS: dict[str, Callable[[Any], Any]] = {
    "fit(epochs=)": lambda n: fit(epochs=n),
    "fit(batch_size=)": lambda n: fit(batch_size=0 if n is None else n),
    "fit(patience=)": lambda n: fit(patience=0 if n is None else n),
    "evaluate(num_samples=)": lambda n: evaluate(num_samples=n),
    "evaluate(memory=)": lambda n: evaluate(memory=0 if n is None else n),
    "evaluate(k=)": lambda n: evaluate(k=[n]),
    "rqmc(num_samples=)": lambda n: rqmc(num_samples=n),
    "rqmc(num_replicates=)": lambda n: rqmc(num_replicates=n),
    "active_units(num_samples=)": lambda n: pv.evaluation.active_units(small_vae().guide, X, num_samples=n),
    "IWAE": pv.objectives.IWAE,
    "MIWAE": lambda n: pv.objectives.MIWAE(2, num_groups=n),
    "StandardNormal": pv.priors.StandardNormal,
    "GaussianMixture": lambda n: pv.priors.GaussianMixture(2, components=n),
    "VampPrior": lambda n: pv.priors.VampPrior(n, (SIZE,)),
    "NormalizingFlow": pv.priors.NormalizingFlow,
    "Binomial": lambda n: pv.likelihoods.Binomial(BINARY.network, n),
    "Categorical": lambda n: pv.likelihoods.Categorical(BINARY.network, levels=n),
    "DiscretizedLogistic": lambda n: pv.likelihoods.DiscretizedLogistic(BINARY.network, levels=n),
    "DiscretizedLogisticMixture": lambda n: pv.likelihoods.DiscretizedLogisticMixture(BINARY.network, levels=n),
    "dequantize": lambda n: pv.data.dequantize(X, levels=n),
    "mlp, width": lambda n: pv.networks.mlp(3, n, 2),
    "mlp, event": lambda n: pv.networks.mlp(3, (2, n)),
    "gated_mlp": lambda n: pv.networks.gated_mlp(n, 2),
    "conv_encoder, channels": lambda n: pv.networks.conv_encoder((8, 8), n, out_shape=3),
    "conv_encoder, image": lambda n: pv.networks.conv_encoder((8, n), 2, out_shape=3),
    "conv_decoder, latent": lambda n: pv.networks.conv_decoder(n, 2, out_shape=(8, 8)),
    "residual_encoder, out": lambda n: pv.networks.residual_encoder((8, 8), 2, out_shape=n),
    "residual_decoder, image": lambda n: pv.networks.residual_decoder(3, 2, out_shape=(n, 8)),
}


@pytest.mark.parametrize("name", COUNTS)
@given(number=st.one_of(not_whole, too_small))
def test_invalid_counts_are_refused(name: str, number: Any) -> None:
    with refused():
        COUNTS[name](number)


@pytest.mark.parametrize("take", [lambda seed: fit(seed=seed), lambda seed: evaluate(seed=seed), pv.data.digits])
@given(seed=st.one_of(st.integers(-(2**70), -1), st.integers(2**64, 2**70), st.sampled_from([1.0, math.nan, "3"])))
def test_invalid_seeds_are_refused(take: Callable[..., Any], seed: Any) -> None:
    with refused():
        take(seed=seed)


NUMBERS: dict[str, Callable[[Any], Any]] = {
    "bin_width": lambda number: pv.evaluation.bits_per_dimension(-1.0, (2, 2), bin_width=number),
    "BetaELBO": pv.objectives.BetaELBO,
    "MMD(kernel_scale=)": lambda number: pv.objectives.MMD(1.0, kernel_scale=number),
    "Normal": lambda number: pv.likelihoods.Normal(BINARY.network, scale=number),
    "StudentT": lambda number: pv.likelihoods.StudentT(BINARY.network, df=number),
    "Poisson": lambda number: pv.likelihoods.Poisson(BINARY.network, unit=number),
    "posteriors.StudentT": lambda number: pv.posteriors.StudentT(BINARY.network, df=number),
}
WEIGHTS: dict[str, Callable[[Any], Any]] = {
    "FreeBits": pv.objectives.FreeBits,
    "MMD": pv.objectives.MMD,
    "Renyi": pv.objectives.Renyi,
    "L1": pv.autoencoders.L1,
    "Contraction": pv.autoencoders.Contraction,
    "GaussianNoise": pv.autoencoders.GaussianNoise,
    "Masking": pv.autoencoders.Masking,
}


@pytest.mark.parametrize("name", [*NUMBERS, *WEIGHTS])
@pytest.mark.parametrize("number", [0.0, -1.0, math.nan, math.inf, -math.inf])
def test_numbers_out_of_range_are_refused(name: str, number: float) -> None:
    if name in NUMBERS or not (number == 0 or (name == "Renyi" and number == -1)):
        with refused():
            (NUMBERS | WEIGHTS)[name](number)


@given(x=tensors())
@example(x=torch.zeros(4, SIZE, dtype=torch.int64))  # torch knows no draws of integers
@example(x=torch.full((4, SIZE), 2.0))  # torch stopped with an internal assertion
@example(x=torch.rand(4, SIZE).half().round())  # levels of 256 in half precision: a value could leave its level
def test_grey_values_are_drawn_or_refused(x: Tensor) -> None:
    drawn = answer_or_refusal(lambda: pv.data.binarize(x))
    if drawn is not None:
        assert drawn.dtype == x.dtype
        assert ((drawn == 0) | (drawn == 1)).all()
        assert (drawn[(x == 0) | (x == 1)] == x[(x == 0) | (x == 1)]).all()
    dequantized = answer_or_refusal(lambda: pv.data.dequantize(x))
    if dequantized is not None:
        assert ((dequantized > 0) & (dequantized < 1)).all()
        assert torch.equal((dequantized * 256).floor(), (x * 255).round())


@given(
    shape=st.lists(st.integers(0, 4), max_size=3),
    fill=st.sampled_from([0.0, -1e30, math.inf, -math.inf, math.nan]),
    dtype=st.sampled_from(DTYPES),
)
@example(shape=[3], fill=0.0, dtype=torch.float32)
@example(shape=[4, 2], fill=-math.inf, dtype=torch.float32)  # infinite weights were called equal, k-hat -inf
def test_weights_are_smoothed_or_refused(shape: list[int], fill: float, dtype: torch.dtype) -> None:
    weights = torch.zeros(shape).to(dtype)
    if weights.numel() and dtype.is_floating_point:
        weights.view(-1)[0] = fill
    result = answer_or_refusal(lambda: pv.evaluation.psis(weights))
    assert (result is None) == (
        len(shape) != 2
        or not weights.numel()
        or not dtype.is_floating_point
        or bool((weights.isnan() | (weights == math.inf)).any())
    )
    if result is not None:
        torch.testing.assert_close(result[0].exp().sum(0), torch.ones(shape[1]).double())
