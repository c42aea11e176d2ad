"""fit checks data and programs before the first step."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import (
    Trace_ELBO,
)
from torch import Tensor, nn

import pyrovae as pv
from tests.conftest import small_vae
from tests.training.programs import Broken

fit = partial(pv.fit, progress=False)


class WithMissing(nn.Module):
    """A program that accepts NaN as a missing value, or does not."""

    def __init__(self, handles: bool) -> None:
        super().__init__()
        self.handles, self.slope = handles, nn.Parameter(torch.tensor(0.1))

    def model(self, x: Tensor) -> None:
        seen = ~x.isnan()
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            p = dist.Normal(z[..., None], 1.0)
            pyro.sample(
                "x", (p.mask(seen) if self.handles else p).to_event(1), obs=x.nan_to_num() if self.handles else x
            )

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.slope * x.nan_to_num().sum(-1), 0.7))


class NanMasked(WithMissing):
    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.NanMaskedNormal(z[..., None].expand(x.shape), 1.0).to_event(1), obs=x)


class Reconstruction(nn.Module):
    """A loss that is NaN for a datum that is NaN."""

    def __init__(self, handles: bool) -> None:
        super().__init__()
        self.handles, self.loc = handles, nn.Parameter(torch.zeros(()))

    def loss(self, x: Tensor) -> Tensor:
        return (x.nan_to_num() if self.handles else x).sub(self.loc).square().mean()


@pytest.mark.parametrize(
    ("module", "passes"),
    [
        (WithMissing(True), True),
        (NanMasked(True), True),
        (Reconstruction(True), True),
        (WithMissing(False), False),
        (Reconstruction(False), False),
        (small_vae(3), False),
    ],
    ids=["masked", "NanMasked", "own loss", "not masked", "own loss, NaN", "VAE"],
)
def test_nan_may_mean_missing_where_the_program_says_so(module: nn.Module, passes: bool) -> None:
    x = torch.randn(100, 3)
    x[torch.rand(100, 3) < 0.3] = torch.nan
    if passes:
        assert math.isfinite(fit(module, x, x, epochs=2, batch_size=30, seed=0).train[-1])
    else:
        with pytest.raises(ValueError, match="of 100 data in train hold NaN or infinite values, the first at index"):
            fit(module, x, epochs=2, seed=0)


def test_integers_are_data() -> None:
    class Topics(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits, self.encoder = nn.Parameter(torch.zeros(2, 10)), nn.Linear(10, 4)

        def model(self, words: Tensor) -> None:
            with pyro.plate("data", len(words)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                logits = (z @ self.logits)[..., None, :].expand(*z.shape[:-1], words.shape[-1], 10)
                pyro.sample("words", dist.Categorical(logits=logits).to_event(1), obs=words)

        def guide(self, words: Tensor) -> None:
            loc, log_scale = self.encoder(nn.functional.one_hot(words, 10).float().sum(-2)).chunk(2, -1)
            with pyro.plate("data", len(words)):
                pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    assert len(fit(Topics(), torch.randint(0, 10, (50, 6)), epochs=2, batch_size=20).train) == 2


@pytest.mark.parametrize("factor", [1e4, 1e6, 1e20])
def test_data_that_are_too_large_are_no_diverged_model(factor: float) -> None:
    with pytest.raises((ValueError, FloatingPointError)) as error:
        fit(small_vae_of_reals(), torch.randn(100, 6) * factor, epochs=1, learning_rate=1e-6, seed=0)
    assert "diverged" not in str(error.value)
    assert "checkpoint" not in str(error.value)
    assert "Rescale the data" in str(error.value)


def small_vae_of_reals() -> pv.VAE:
    return pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Normal(pv.networks.mlp(2, 8, 6)),
        pv.posteriors.DiagonalNormal(pv.networks.mlp(6, 8, 4)),
    )


def empty(x: Tensor) -> None: ...


class BrokenLoss(nn.Module):
    def __init__(self, loss: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.loss, self.parameter = loss, nn.Parameter(torch.zeros(()))


def no_plate(x: Tensor) -> None:
    pyro.sample("x", dist.Normal(0.0, 1.0).expand(x.shape).to_event(2), obs=x)


def only_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(6), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


X = torch.zeros(12, 6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"train": X[:0]}, ValueError, r"train is empty, shape \(0, 6\)"),
        ({"train": X.long()}, TypeError, "train must be floating-point"),
        ({"train": [X.numpy()]}, TypeError, r"train must be a tensor.*a list of \['ndarray'\]"),
        ({"train": X / 0}, ValueError, "12 of 12 data in train hold NaN or infinite"),
        ({"valid": X / 0}, ValueError, "data in valid hold NaN or infinite"),
        ({"train": X + 0.5}, ValueError, "site 'x': values from 0.5 to 0.5.*binariz"),
        ({"train": torch.cat([X, X[:1] + 0.5]), "batch_size": 4}, ValueError, "binariz"),
        ({"valid": X + 0.5}, ValueError, "binariz"),
        ({"train": torch.zeros(12, 2, 3)}, ValueError, r"posterior cannot take a tensor of shape \(12, 2, 3\)"),
        ({"epochs": 0}, ValueError, "epochs must be at least 1, got 0"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"patience": 0, "valid": X}, ValueError, "patience must be at least 1, got 0"),
        ({"patience": 3}, ValueError, "patience needs validation data"),
        ({"kl_warmup": -1}, ValueError, "kl_warmup, a number of epochs.*got -1"),
        ({"clip_norm": 0.0}, ValueError, "clip_norm, the largest norm of a gradient, must be positive, got 0.0"),
        ({"on_nonfinite": "ignore"}, ValueError, r"on_nonfinite must be one of \('raise', 'skip'\), got 'ignore'"),
        ({"checkpoint_every": 0}, ValueError, "checkpoint_every must be at least 1, got 0"),
        ({"device": "cuda:99"}, ValueError, "device 'cuda:99' is not available.*device='cpu'"),
        ({"device": "tpu"}, ValueError, "device 'tpu' is not available"),
        ({"module": nn.Linear(2, 2)}, TypeError, "Linear has none of them"),
        ({"module": nn.ModuleDict({"model": nn.Linear(2, 2)})}, TypeError, "ModuleDict has only model"),
        ({"module": BrokenLoss(lambda x: x.sum(1))}, TypeError, r"loss of BrokenLoss must be .* got shape \(12,\)"),
        ({"module": BrokenLoss(lambda x: 0.0)}, TypeError, r"shape \(\), a mean over the data, got float"),
        ({"module": BrokenLoss(torch.mean)}, ValueError, "no parameter of BrokenLoss gets a gradient from BrokenLoss"),
        ({"module": BrokenLoss(torch.mean), "objective": Trace_ELBO()}, ValueError, "Omit objective= and kl_war"),
        ({"module": BrokenLoss(torch.mean), "kl_warmup": 2}, ValueError, "BrokenLoss has its own loss"),
        ({"module": small_vae().requires_grad_(False)}, ValueError, "VAE has no trainable parameter"),
        ({"objective": pv.objectives.IWAE}, TypeError, "a Pyro ELBO such as Trace_ELBO"),
        ({"module": Broken(empty, empty)}, ValueError, "observes nothing"),
        ({"module": Broken(no_plate, empty)}, ValueError, "no data plate"),
        ({"module": Broken(only_model, empty)}, ValueError, "'z' is in the model but not in the guide"),
        ({"module": Broken(only_model, only_model)}, ValueError, "no parameter .* gradient"),
    ],
)
def test_bad_input_is_an_error_before_any_training(
    vae: pv.VAE, arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    before = [parameter.detach().clone() for parameter in vae.parameters()]
    with pytest.raises(error, match=message):
        fit(**{"module": vae, "train": X, **arguments})
    assert all(torch.equal(old, new) for old, new in zip(before, vae.parameters(), strict=True))
    assert pyro.infer.util.is_validation_enabled()
