"""Training of every kind of autoencoder: histories, seeds, compilation, precision, copies."""

import copy
import pickle
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch

import pyrovae as pv
from pyrovae._compilation.precision import products
from pyrovae.autoencoders import (
    Autoencoder,
    DenoisingAutoencoder,
)
from tests.autoencoding import KINDS, bits, decoder, encoder
from tests.training.runs import assert_same_run, fitted

fit = partial(pv.fit, progress=False)


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_every_kind_trains(make: Callable[[], Autoencoder]) -> None:
    autoencoder, x = make(), bits(60)
    before = autoencoder.errors(x).mean().item()
    history = fit(autoencoder, x, x, epochs=60, batch_size=25, learning_rate=0.02, seed=0)
    assert history.objective == type(autoencoder).__name__
    assert history.train[-1] > history.train[0]
    assert autoencoder.errors(x).mean().item() < 0.6 * before


@pytest.mark.parametrize("name", ["Autoencoder", "SparseAutoencoder", "ContractiveAutoencoder"])
def test_a_history_is_minus_the_loss_of_a_datum_for_any_batches(name: str) -> None:
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


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_copies_train_by_themselves(make: Callable[[], Autoencoder]) -> None:
    autoencoder, x = make(), bits()
    before = autoencoder.encode(x)
    for copied in (copy.deepcopy(autoencoder), pickle.loads(pickle.dumps(autoencoder))):
        fit(copied, x, epochs=2)
        assert torch.equal(autoencoder.encode(x), before)
        assert not torch.equal(copied.encode(x), before)


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    with pytest.raises(FloatingPointError, match=r"Autoencoder objective became (nan|-?inf)"):
        fit(KINDS["Autoencoder, squared"](), bits(), epochs=50, learning_rate=1e30, optimizer=torch.optim.SGD)
