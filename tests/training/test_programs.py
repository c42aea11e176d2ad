"""fit of programs as people write them: pairs, autoguides, shared latents, plates and scales of all kinds."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoIAFNormal,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from torch import Tensor, nn

import pyrovae as pv
from tests.conftest import small_vae

fit = partial(pv.fit, progress=False)


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


class Encoder(nn.Module):
    """The amortized guide of ``model``; the best slope is 1/2."""

    def __init__(self, slope: float = 0.1, scale: float = 0.8) -> None:
        super().__init__()
        self.slope, self.scale = nn.Parameter(torch.tensor(slope)), scale

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.slope * x, self.scale))


class Script:
    """Model and guide as methods of an object that is no module, with parameters in Pyro's store."""

    def __init__(self) -> None:
        self.encoder = Encoder()

    def model(self, x: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(3.0), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, scale), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        self.encoder(x)


def test_a_pair_trains_as_its_module_does(x: Tensor) -> None:
    runs = []
    for as_pair in (False, True):
        torch.manual_seed(0)
        vae = small_vae()
        history = fit((vae.model, vae.guide) if as_pair else vae, x, x, epochs=3, batch_size=5, seed=0)
        runs.append((vae.state_dict(), history.train, history.valid))
    assert runs[0][1:] == runs[1][1:]
    assert all(torch.equal(tensor, runs[1][0][name]) for name, tensor in runs[0][0].items())


def test_pairs_of_functions_methods_and_conditioned_programs(tmp_path: Any) -> None:
    x, script = 2 * torch.randn(300), Script()
    options: dict[str, Any] = {"learning_rate": 0.05, "seed": 0}
    fit((script.model, script.guide), x, epochs=30, checkpoint=tmp_path, **options)
    assert abs(float(pyro.param("scale").detach()) - math.sqrt(3)) < 0.5
    assert abs(float(script.encoder.slope.detach()) - 0.1) > 0.02

    def shared(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide = Encoder()
    fit((pyro.condition(shared, {"loc": torch.tensor(0.0)}), guide), torch.randn(400) * 2**0.5, epochs=60, **options)
    assert guide.slope.item() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("pair", [(model,), (model, 3), (model, Encoder(), 1)], ids=["one", "number", "three"])
def test_what_is_no_pair_is_refused(pair: Any) -> None:
    with pytest.raises(TypeError, match=r"fit trains a pair \(model, guide\) of Pyro programs, got \("):
        fit(pair, torch.randn(5))


MEANS = {
    "AutoNormal": AutoNormal,
    "AutoDiagonalNormal": AutoDiagonalNormal,
    "AutoMultivariateNormal": AutoMultivariateNormal,
    "AutoLowRankMultivariateNormal": AutoLowRankMultivariateNormal,
    "AutoDelta": AutoDelta,
}


@pytest.mark.parametrize("name", MEANS)
def test_autoguides_of_latents_per_datum_find_the_posterior_mean(name: str) -> None:
    """Data keep their order, so that each has parameters of its own."""
    x = torch.randn(20)
    guide = MEANS[name](model)
    objective, decay = Trace_ELBO(num_particles=5), partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.985)
    options: dict[str, Any] = {"batch_size": 20, "learning_rate": 5e-2, "scheduler": decay, "seed": 0}
    fit((model, guide), x, epochs=300, objective=objective, **options)
    torch.testing.assert_close(guide.median(x)["z"].detach(), x / 2, atol=0.15, rtol=0)


def test_a_list_of_autoguides_and_a_flow_train() -> None:
    def both(x: Tensor) -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.1))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, scale), obs=x)

    x = torch.randn(20)
    parts = AutoGuideList(both)
    parts.append(AutoDelta(poutine.block(both, expose=["scale"])))
    parts.append(AutoNormal(poutine.block(both, expose=["z"])))
    for guide in (parts, AutoIAFNormal(both), AutoLaplaceApproximation(both)):
        history = fit((both, guide), x, epochs=100, batch_size=20, learning_rate=2e-2, seed=0)
        assert history.train[-1] > history.train[0]


def test_a_flow_is_not_begun_alike_under_all_seeds() -> None:
    runs = []
    for seed in (0, 1, 0):
        guide = AutoIAFNormal(model)
        runs.append(
            fit((model, guide), torch.linspace(-1, 1, 8), epochs=1, batch_size=8, learning_rate=1e-30, seed=seed)
        )
    assert runs[0].train == runs[2].train != runs[1].train


@pytest.mark.parametrize("make", [AutoNormal, AutoDelta, AutoMultivariateNormal], ids=lambda make: make.__name__)
def test_autoguides_of_latents_per_datum_are_refused_on_mini_batches(make: Any) -> None:
    with pytest.raises(ValueError, match=r"has parameters for each datum of site 'z'.*batch_size=30"):
        fit((model, make(model)), torch.randn(30), batch_size=10)


def declared(x: Tensor, size: int | None, inside: Callable[[Tensor], None], scale: float | None = None) -> None:
    plate = pyro.plate("data", size or len(x), subsample=torch.arange(len(x)))
    with plate, poutine.scale(scale=scale or 1.0):
        inside(x)


class Shared(nn.Module):
    """A mean that all data share; with 1000 data of scale 2 its posterior has scale 0.063."""

    size: int | None = None
    by_hand = False

    def __init__(self) -> None:
        super().__init__()
        self.loc, self.log_scale = nn.Parameter(torch.tensor(0.0)), nn.Parameter(torch.tensor(-2.0))

    def model(self, x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        scale = 1000 / len(x) if self.by_hand else None
        declared(x, self.size, lambda x: pyro.sample("x", dist.Normal(mu, 2.0), obs=x), scale)

    def guide(self, x: Tensor) -> None:
        pyro.sample("mu", dist.Normal(self.loc, self.log_scale.exp()))


class Declared(Shared):
    size = 1000


class ByHand(Shared):
    by_hand = True


class Penalized(Shared):
    """A penalty of the parameters, which counts once."""

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
    """A loss per datum: everything is divided by the number of data, the shared latent too."""

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


@pytest.mark.parametrize("make", [Declared, ByHand], ids=lambda make: make.__name__)
def test_the_posterior_of_a_shared_latent_is_that_of_all_data(make: Callable[[], Shared]) -> None:
    x = torch.randn(1000) * 2 + 3
    module = make()
    objective = Trace_ELBO(num_particles=30, vectorize_particles=True)
    schedule = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.97)
    history = fit(module, x, objective=objective, epochs=120, learning_rate=3e-2, seed=0, scheduler=schedule)
    assert module.log_scale.exp().item() == pytest.approx(2 / math.sqrt(1000), rel=0.1)
    assert history.train[-1] == pytest.approx(dist.Normal(x.mean(), 2.0).log_prob(x).mean().item(), abs=0.1)


def test_other_names_of_the_plate_in_the_guide_are_no_shared_latent() -> None:
    class Other(Encoder):
        def forward(self, x: Tensor) -> None:
            with pyro.plate("encoded", len(x)):
                pyro.sample("z", dist.Normal(self.slope * x, 0.8))

    assert len(fit((model, Other()), torch.randn(30), epochs=1, batch_size=10).train) == 1


def plain(inside: Callable[[], None], x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        inside()


def without_size(inside: Callable[[], None], x: Tensor) -> None:
    with pyro.plate("data"):
        inside()


def subsampled(inside: Callable[[], None], x: Tensor) -> None:
    with pyro.plate("data", 600, subsample_size=len(x)):
        inside()


def scaled(inside: Callable[[], None], x: Tensor) -> None:
    with pyro.plate("data", len(x)), poutine.scale(scale=600 / len(x)):
        inside()


def divided(inside: Callable[[], None], x: Tensor) -> None:
    with poutine.scale(scale=1 / len(x)), pyro.plate("data", len(x)):
        inside()


def scaled_by_a_tensor(inside: Callable[[], None], x: Tensor) -> None:
    with pyro.plate("data", len(x)), poutine.scale(scale=torch.tensor([7.0])):
        inside()


def in_two(inside: Callable[[], None], x: Tensor) -> None:
    with poutine.scale(scale=0.1), pyro.plate("data", 600, subsample_size=len(x)), poutine.scale(scale=3.0):
        inside()


PLATES = [plain, without_size, subsampled, scaled, divided, scaled_by_a_tensor, in_two]


class Plated(nn.Module):
    """The exact posterior of a conjugate model in some kind of plate, so that every bound is log p(x)."""

    def __init__(self, plate: Callable[[Callable[[], None], Tensor], None], beta: float = 1.0) -> None:
        super().__init__()
        self.plate, self.beta = plate, beta
        self.slope = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def model(self, x: Tensor) -> None:
        def inside() -> None:
            with poutine.scale(scale=self.beta):
                z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        self.plate(inside, x)

    def guide(self, x: Tensor) -> None:
        def inside() -> None:
            with poutine.scale(scale=self.beta):
                pyro.sample("z", dist.Normal(self.slope * x, 0.5**0.5))

        self.plate(inside, x)


@pytest.mark.parametrize("plate", PLATES, ids=lambda plate: plate.__name__)
@pytest.mark.parametrize("objective", [None, pv.objectives.IWAE(2)], ids=["Trace_ELBO", "IWAE"])
def test_a_history_is_in_nats_per_datum_whatever_the_scale(plate: Any, objective: Any) -> None:
    x = torch.randn(50, dtype=torch.float64)
    exact = dist.Normal(torch.zeros(()).double(), 2**0.5).log_prob(x)
    history = fit(Plated(plate), x, x[:30], objective=objective, epochs=1, batch_size=20, learning_rate=1e-300, seed=0)
    assert history.train == pytest.approx([exact.mean().item()], rel=1e-9)
    assert history.valid == pytest.approx([exact[:30].mean().item()], rel=1e-9)


@pytest.mark.parametrize("plate", [plain, scaled, subsampled], ids=lambda plate: plate.__name__)
def test_the_likelihood_counts_in_full_where_latents_are_scaled(plate: Any) -> None:
    """Beta times the KL divergence, whose mean is known in closed form for the exact posterior."""
    x = torch.randn(400, dtype=torch.float64)
    kl = 0.5 * (0.25 * x.square() + 0.5 - 1 - math.log(0.5))
    exact = dist.Normal(torch.zeros(()).double(), 2**0.5).log_prob(x) + 0.75 * kl
    with pytest.warns(UserWarning, match="no bound on log p"):
        history = fit(Plated(plate, 0.25), x, epochs=1, batch_size=200, learning_rate=1e-300, seed=0)
    noise = 0.75 * math.sqrt(kl.var().item() + 1) / math.sqrt(400)  # of the log-ratio of guide and prior
    assert history.train[0] == pytest.approx(exact.mean().item(), abs=5 * noise)


def test_an_inner_plate_that_is_subsampled_is_not_counted_as_data() -> None:
    class Pixels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(()).double())

        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x), dim=-2), pyro.plate("pixels", 8, subsample=torch.arange(4), dim=-1):
                pyro.sample("x", dist.Normal(self.loc, 1.0), obs=x[:, :4])

        def guide(self, x: Tensor) -> None: ...

    x = torch.randn(20, 4, dtype=torch.float64).repeat(1, 2)
    exact = dist.Normal(torch.zeros(()).double(), 1.0).log_prob(x).sum(-1).mean().item()
    assert fit(Pixels(), x, epochs=1, batch_size=7, learning_rate=1e-300).train == pytest.approx([exact], rel=1e-9)


class WithMissing(nn.Module):
    """A program that takes NaN for missing, or does not."""

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
    """A loss of its own, which is NaN where a datum is."""

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


def test_enumerated_sites_of_both_programs_train() -> None:
    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.locs = nn.Parameter(torch.tensor([-1.0, 1.0]))

        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                y = pyro.sample("y", dist.Categorical(torch.ones(2) / 2), infer={"enumerate": "parallel"})
                pyro.sample("x", dist.Normal(self.locs[y], 0.5), obs=x)

        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                logits = torch.stack([-x, x], -1)
                pyro.sample("y", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})

    x = torch.cat([torch.randn(50) - 3, torch.randn(50) + 3])
    module = Mixture()
    fit(module, x, objective=TraceEnum_ELBO(max_plate_nesting=1), epochs=100, learning_rate=0.1, batch_size=50, seed=0)
    torch.testing.assert_close(module.locs.detach(), torch.tensor([-3.0, 3.0]), atol=0.4, rtol=0)


@pytest.mark.parametrize("factor", [1e4, 1e6, 1e20])
def test_data_that_are_too_large_are_no_diverged_model(factor: float) -> None:
    with pytest.raises((ValueError, FloatingPointError)) as error:
        fit(small_vae_of_reals(), torch.randn(100, 6) * factor, epochs=1, learning_rate=1e-6, seed=0)
    assert "diverged" not in str(error.value)
    assert "checkpoint" not in str(error.value)
    assert "rescale the data" in str(error.value).lower()


def small_vae_of_reals() -> pv.VAE:
    return pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Normal(pv.networks.mlp(2, 8, 6)),
        pv.posteriors.DiagonalNormal(pv.networks.mlp(6, 8, 4)),
    )


def test_validation_noise_does_not_depend_on_data_of_a_small_seed() -> None:
    """Noise of seed 0 would be the data themselves, and the best slope on validation data would be -0.3."""
    torch.manual_seed(0)
    x = torch.randn(500)
    slopes = torch.linspace(-0.5, 1.0, 16)
    bounds = [fit((model, Encoder(float(s), 0.7)), x, x, epochs=1, learning_rate=1e-30).valid[0] for s in slopes]
    assert slopes[bounds.index(max(bounds))].item() == pytest.approx(0.5, abs=0.11)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_losses_of_half_precision_are_added_up_in_full(dtype: torch.dtype) -> None:
    """More nats than float16 can hold, in a batch and in an epoch."""

    class Means(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(784))

        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(self.loc, 1.0).to_event(1), obs=x)

        def guide(self, x: Tensor) -> None: ...

    x = torch.randn(600, 784)
    full = fit(Means(), x, x, epochs=1, learning_rate=1e-30).train[0]
    half = fit(Means().to(dtype), x.to(dtype), x.to(dtype), epochs=1, learning_rate=0.0, seed=0, objective=Trace_ELBO())
    assert half.train[0] == pytest.approx(full, rel=2e-3)
    assert half.valid[0] == pytest.approx(full, rel=2e-3)
