"""fit of programs with latents that all data share."""

import math
from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor

import pyrovae as pv
from tests.training.programs import Declared, Shared, declared

fit = partial(pv.fit, progress=False)


class ByHand(Shared):
    by_hand = True


class Penalized(Shared):
    """A penalty on the parameters, which counts once."""

    def model(self, x: Tensor) -> None:
        pyro.factor("penalty", -self.loc.square())
        declared(x, self.size, lambda x: pyro.sample("x", dist.Normal(self.loc, 2.0), obs=x))

    def guide(self, x: Tensor) -> None: ...


class ObservedPrior(Shared):
    """A prior of a parameter, written as an observation."""

    def model(self, x: Tensor) -> None:
        pyro.sample("prior", dist.Normal(0.0, 1.0), obs=self.loc)
        declared(x, self.size, lambda x: pyro.sample("x", dist.Normal(self.loc, 2.0), obs=x))

    def guide(self, x: Tensor) -> None: ...


class Auxiliary(Shared):
    """An auxiliary latent of the guide alone."""

    def model(self, x: Tensor) -> None:
        declared(x, self.size, lambda x: pyro.sample("x", dist.Normal(self.loc, 2.0), obs=x))

    def guide(self, x: Tensor) -> None:
        pyro.sample("noise", dist.Normal(self.loc, 1.0), infer={"is_auxiliary": True})


class Normalized(Shared):
    """A loss per datum: every term is divided by the number of data, including the shared latent."""

    def model(self, x: Tensor) -> None:
        with poutine.scale(scale=1 / 1000):
            super().model(x)

    def guide(self, x: Tensor) -> None:
        with poutine.scale(scale=1 / 1000):
            super().guide(x)


@pytest.mark.parametrize(
    ("make", "site"),
    [(Shared, "mu"), (Penalized, "penalty"), (ObservedPrior, "prior"), (Auxiliary, "noise"), (Normalized, "mu")],
)
def test_a_site_outside_the_data_plate_needs_the_full_size(make: Callable[[], Shared], site: str) -> None:
    """The refusal names the site, and both of its remedies work."""
    x = torch.randn(1000) * 2 + 3
    with pytest.raises(ValueError, match=f"site '{site}' lies outside the data plate 'data'.*batch_size=1000"):
        fit(make(), x, epochs=1)
    module = make()
    module.size = 1000
    assert len(fit(module, x, epochs=1, seed=0).train) == 1
    assert len(fit(make(), x, epochs=1, batch_size=1000, seed=0).train) == 1


@pytest.mark.parametrize(
    "make", [Declared, pytest.param(ByHand, marks=pytest.mark.slow)], ids=lambda make: make.__name__
)
def test_the_posterior_of_a_shared_latent_is_that_of_all_data(make: Callable[[], Shared]) -> None:
    x = torch.randn(1000) * 2 + 3
    module = make()
    objective = Trace_ELBO(num_particles=30, vectorize_particles=True)
    schedule = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.97)
    history = fit(module, x, objective=objective, epochs=120, learning_rate=3e-2, seed=0, scheduler=schedule)
    assert module.log_scale.exp().item() == pytest.approx(2 / math.sqrt(1000), rel=0.1)
    assert history.train[-1] == pytest.approx(dist.Normal(x.mean(), 2.0).log_prob(x).mean().item(), abs=0.1)
