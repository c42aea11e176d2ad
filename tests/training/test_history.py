"""History of a run: bounds in nats per datum, the epoch of the kept weights, and the reason for the end."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn

import pyrovae as pv
from tests.conftest import small_vae
from tests.oracle import Oracle

fit = partial(pv.fit, progress=False)


@pytest.mark.parametrize("batch_size", [1, 5, 12, 100])
def test_history_is_in_nats_per_datum_for_any_batch_size(batch_size: int) -> None:
    oracle = Oracle()
    x = oracle.data(12)
    history = fit(oracle.vae, x, x, epochs=1, batch_size=batch_size, learning_rate=1e-300)
    exact = oracle.log_likelihood(x).mean().item()  # with the true posterior the ELBO has no variance
    assert history.train[0] == pytest.approx(exact, rel=1e-9)
    assert history.valid[0] == pytest.approx(exact, rel=1e-9)


def test_history_is_in_nats_per_datum_where_the_plate_is_larger_than_the_batch() -> None:
    oracle = Oracle()

    class Subsampled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vae = oracle.vae

        def model(self, x: Tensor) -> None:
            with pyro.plate("data", 1000, subsample_size=len(x)):
                z = pyro.sample("z", self.vae.prior())
                pyro.sample("x", self.vae.likelihood(z), obs=x)

        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", 1000, subsample_size=len(x)):
                pyro.sample("z", self.vae.posterior(x))

    x = oracle.data(12)
    history = fit(Subsampled(), x, x, epochs=1, batch_size=5, learning_rate=1e-300)
    exact = oracle.log_likelihood(x).mean().item()
    assert (history.train[0], history.valid[0]) == pytest.approx((exact, exact), rel=1e-9)


def test_history_is_right_where_a_batch_is_as_large_as_the_plate() -> None:
    class Plated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Parameter(torch.zeros((), dtype=torch.float64))

        def model(self, x: Tensor) -> None:
            with pyro.plate("data", 100, subsample_size=len(x)):
                pyro.sample("x", dist.Normal(self.loc, 1.0), obs=x)

        def guide(self, x: Tensor) -> None: ...

    x = torch.randn(100, dtype=torch.float64)
    exact = dist.Normal(torch.zeros((), dtype=torch.float64), 1.0).log_prob(x)
    history = fit(Plated(), x[:50], x, epochs=1, batch_size=100, learning_rate=1e-300)
    assert history.train[0] == pytest.approx(exact[:50].mean().item())
    assert history.valid[0] == pytest.approx(exact.mean().item())


def test_validation_uses_the_same_noise_every_epoch(vae: pv.VAE, x: Tensor) -> None:
    history = fit(vae, x, x, epochs=3, learning_rate=1e-30)
    assert history.valid[0] == history.valid[1] == history.valid[2]
    assert history.train[0] != history.train[1]


def test_kl_warmup(vae: pv.VAE, x: Tensor) -> None:
    history = fit(vae, x, x, epochs=4, batch_size=6, kl_warmup=2)
    assert history.kl_weight == [0.5, 1.0, 1.0, 1.0]


@pytest.mark.filterwarnings("ignore:the KL warm-up does not end within")  # four epochs, of which there is one
def test_kl_warmup_weighs_the_kl_term_of_training_alone() -> None:
    oracle = Oracle(scale=1.5)
    x = oracle.data(10)
    q = oracle.vae.posterior(x).base_dist
    kl = 0.5 * (q.scale**2 + q.loc**2 - 1 - 2 * q.scale.log()).sum(-1).mean().item()
    plain, warm = (
        fit(oracle.vae, x, x, objective=TraceMeanField_ELBO(), epochs=1, kl_warmup=epochs, learning_rate=1e-300, seed=0)
        for epochs in (0, 4)
    )
    assert warm.kl_weight == [0.25]
    assert warm.train[0] - plain.train[0] == pytest.approx(0.75 * kl)
    assert warm.valid == plain.valid


def test_best_weights_are_restored_and_training_stops_early(x: Tensor) -> None:
    vae = small_vae()
    states = []

    class Record(torch.optim.lr_scheduler.LambdaLR):
        def step(self, epoch: int | None = None) -> None:
            super().step(epoch)
            states.append({name: tensor.clone() for name, tensor in vae.state_dict().items()})

    schedule = partial(Record, lr_lambda=lambda epoch: 1.0)
    history = fit(vae, x[:6], 1 - x[:6], epochs=500, batch_size=3, learning_rate=0.05, patience=4, scheduler=schedule)
    assert history.best_epoch == max(range(len(history.valid)), key=history.valid.__getitem__)
    assert len(history.train) == history.best_epoch + 5 < 500
    best = states[history.best_epoch + 1]  # a schedule makes a first step when it is built
    assert all(torch.equal(tensor, best[name]) for name, tensor in vae.state_dict().items())


@pytest.mark.slow
def test_buffers_are_those_of_the_best_epoch(x: Tensor) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 6)
            self.register_buffer("steps", torch.zeros(()))

        def forward(self, z: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                self.steps = self.steps + 1
            return self.linear(z)

    vae = small_vae()
    vae.likelihood = pv.likelihoods.Bernoulli(Counting())
    history = fit(vae, x[:6], 1 - x[:6], epochs=60, batch_size=3, learning_rate=0.05)
    assert 0 < history.best_epoch < 59
    assert vae.likelihood.network.steps == 2 * (history.best_epoch + 1)


def test_ctrl_c_returns_what_was_trained(vae: pv.VAE, x: Tensor) -> None:
    steps = 0

    def interrupt(x: Tensor) -> Tensor:
        nonlocal steps
        steps += 1
        if steps == 3 + 3 * 2 + 2:  # the check, two epochs, and one more step
            raise KeyboardInterrupt
        return x

    history = fit(vae, x, x, epochs=100, batch_size=4, transform=interrupt)
    assert history.interrupted
    assert len(history.train) == len(history.valid) == len(history.seconds) == 2
    assert history.best_epoch in (0, 1)
    steps = 0
    assert fit(vae, x, epochs=100, batch_size=4, transform=interrupt).best_epoch is None


def test_history_plots_itself(vae: pv.VAE, x: Tensor) -> None:
    ax = fit(vae, x, x, epochs=3).plot()
    assert [line.get_label() for line in ax.lines] == ["Trace_ELBO, train", "Trace_ELBO, valid"]
