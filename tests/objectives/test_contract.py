"""Every objective trains a VAE in every way of calling it, keeps the generators, and refuses invalid programs."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import ELBO, SVI
from torch import Tensor

import pyrovae as pv
from pyrovae import objectives
from pyrovae.objectives import (
    CIWAE,
    IWAE,
    MIWAE,
    MMD,
    PIWAE,
    BetaELBO,
    BetaTC,
    FreeBits,
    Renyi,
)
from tests.conftest import small_vae
from tests.objectives.by_hand import deep_vae, gradients
from tests.objectives.examples import MAKERS

PLAIN = {name: make for name, make in MAKERS.items() if not name.startswith("Beta")}
TRAINED = ("IWAE", "doubly", "ReweightedWakeSleep", "MMD")  # in every run of the tests, the others in the slow ones
OURS = {name: make for name, make in MAKERS.items() if not name.startswith("BetaELBO")}


def test_all_public_names_are_tried() -> None:
    tried = {type(make()).__name__ for make in MAKERS.values()}
    assert tried - {"Truncated"} | {"WeightObjective"} == set(objectives.__all__)


@pytest.mark.parametrize(
    "make",
    [pytest.param(make, marks=() if name in TRAINED else pytest.mark.slow) for name, make in MAKERS.items()],
    ids=MAKERS,
)
def test_fit_trains_with_it(make: Callable[[], Any], vae: pv.VAE, x: Tensor) -> None:
    before = [parameter.detach().clone() for parameter in vae.parameters()]
    history = pv.fit(vae, x, x, objective=make(), epochs=40, batch_size=6, kl_warmup=2, learning_rate=0.02, seed=0)
    assert all((old != new).any() for old, new in zip(before, vae.parameters(), strict=True))
    assert max(history.valid) > history.valid[0] + 0.2
    assert all(-20 < bound < 0 for bound in history.train + history.valid)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_all_ways_to_call_it_agree(make: Callable[[], Any], vae: pv.VAE, x: Tensor) -> None:
    objective, found = make(), []
    objective.loss(vae.model, vae.guide, x)  # finds the depth of the plates

    def first(loss: Any) -> float:
        return float(loss[0] if isinstance(loss, tuple) else loss)

    torch.manual_seed(0)
    losses = [first(objective.loss_and_grads(vae.model, vae.guide, x))]
    found.append(gradients(vae))
    torch.manual_seed(0)
    loss = objective(vae.model, vae.guide)(x)
    loss.backward()
    losses.append(loss.item())
    found.append(gradients(vae))
    torch.manual_seed(0)
    losses.append(first(objective.loss(vae.model, vae.guide, x)))
    torch.manual_seed(0)
    svi = SVI(vae.model, vae.guide, pyro.optim.SGD({"lr": 1.0}), objective)
    before = {name: parameter.detach().clone() for name, parameter in vae.named_parameters()}
    losses.append(first(svi.step(x)))
    found.append({name: before[name] - parameter.detach() for name, parameter in vae.named_parameters()})
    assert losses == pytest.approx([losses[0]] * 4)
    assert found[0].keys() == before.keys()
    for slopes in found[1:]:
        for name, slope in slopes.items():
            torch.testing.assert_close(slope, found[0][name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("make", PLAIN.values(), ids=PLAIN)
def test_hierarchies_and_subsamples(make: Callable[[], Any]) -> None:
    """The scale of the data plate is a factor of the loss: twice the data give twice the loss."""
    vae, x = deep_vae(), torch.randn(6, 3).double()
    objective, losses = make(), []
    objective.loss(vae.model, vae.guide, x)
    for size in (6, 12):
        vae.model.data_size = vae.guide.data_size = size
        torch.manual_seed(0)
        loss = objective(vae.model, vae.guide)(x)
        loss.backward()
        losses.append((loss.item(), gradients(vae)))
    assert losses[1][0] == pytest.approx(2 * losses[0][0])
    for name, slope in losses[0][1].items():
        torch.testing.assert_close(losses[1][1][name], 2 * slope)


@pytest.mark.parametrize("make", OURS.values(), ids=OURS)
def test_a_site_outside_the_plate_is_refused(make: Callable[[], Any], vae: pv.VAE, x: Tensor) -> None:
    def model(x: Tensor) -> None:
        pyro.factor("penalty", -next(vae.likelihood.parameters()).square().sum())
        vae.model(x)

    with pytest.raises(ValueError, match=rf"'penalty' lies outside.*{type(make()).__name__} is a bound per datum"):
        make().loss_and_grads(model, vae.guide, x)


@pytest.mark.parametrize("make", list(OURS.values())[:-1], ids=list(OURS)[:-1])  # all except wake-sleep
def test_a_discrete_latent_is_refused(make: Callable[[], Any]) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Bernoulli(0.5)), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(x.sigmoid()))

    with pytest.raises(ValueError, match=rf"'z' has no reparameterized draws.*{type(make()).__name__} would be biased"):
        make().loss_and_grads(model, guide, torch.zeros(4))


@pytest.mark.parametrize(
    "name", ["sticking", "doubly one by one", "PIWAE", "FreeBits", "BetaTC", "MMD", "ReweightedWakeSleep"]
)
def test_enumerated_sites_are_refused(name: str) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(y + z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    objective = MAKERS[name]()
    with pytest.raises(ValueError, match=rf"{type(objective).__name__} needs the densities.*Train with IWAE"):
        objective.loss_and_grads(model, guide, torch.zeros(4))
    assert IWAE(3).loss_and_grads(model, guide, torch.zeros(4)) > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IWAE(3, gradient="dreg"), r"gradient must be one of .*, got 'dreg'"),  # type: ignore[arg-type]
        (lambda: MIWAE(0, 2), "MIWAE needs at least one particle, got num_particles=0"),
        (lambda: PIWAE(2, 0), "PIWAE needs at least one group of particles, got num_groups=0"),
        (lambda: CIWAE(2, 1.1), r"must be in .*, got beta=1\.1"),
        (lambda: Renyi(float("inf")), "must be finite, got alpha=inf"),
        (lambda: BetaELBO(0.0), r"must be positive and finite, got beta=0\.0"),
        (lambda: FreeBits(-0.1), r"finite and at least 0, got nats=-0\.1"),
        (lambda: BetaTC(beta=-1.0, data_size=9), r"beta=-1\.0 must be at least 0"),
        (lambda: BetaTC(data_size=1), "data_size=1 must be at least 2"),
        (lambda: MMD(-1.0), r"finite and at least 0, got weight=-1\.0"),
        (lambda: MMD(1.0, alpha=1.5), r"at most 1 and finite, got alpha=1\.5"),
        (lambda: MMD(1.0, kernel_scale=0.0), r"positive and finite, got kernel_scale=0\.0"),
    ],
)
def test_bad_arguments(make: Callable[[], ELBO], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_beta_refuses_other_objects_than_objectives() -> None:
    with pytest.raises(TypeError, match=r"must be a Pyro ELBO such as Trace_ELBO\(\) or IWAE\(5\), got 3"):
        BetaELBO(2.0, 3)  # type: ignore[arg-type]


def vae_with(**components: Any) -> pv.VAE:
    vae = small_vae()
    for name, component in components.items():
        setattr(vae, name, component)
    return vae


@pytest.mark.parametrize(
    ("objective", "vae", "size", "message"),
    [
        (BetaTC(data_size=9), small_vae(), 10, "a batch has 10 data, .* at most data_size=9"),
        (BetaTC(data_size=9), small_vae(), 1, "a batch has 1 data, but needs at least 2"),
        (
            BetaTC(data_size=9),
            vae_with(prior=pv.priors.GaussianMixture(2, 3)),
            5,
            "the prior of latent site 'z' does not factorize",
        ),
        (
            BetaTC(data_size=9),
            vae_with(posterior=pv.posteriors.MultivariateNormal(pv.networks.mlp(6, 5))),
            5,
            "the posterior of latent site 'z' does not factorize",
        ),
        (MMD(1.0), small_vae(), 1, "MMD .* got a batch with a single datum"),
        (
            MMD(1.0),
            vae_with(prior=pv.priors.GaussianMixture(2, 3)),
            5,
            "the prior of latent site 'z' has parameters but no reparameterized draws",
        ),
    ],
)
def test_programs_that_do_not_fit(objective: Any, vae: pv.VAE, size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        objective.loss_and_grads(vae.model, vae.guide, torch.zeros(size, 6))


def test_beta_tc_takes_one_latent_site() -> None:
    vae = deep_vae()
    with pytest.raises(ValueError, match=r"one latent site, got \['z1', 'z2'\]"):
        BetaTC(data_size=9).loss(vae.model, vae.guide, torch.zeros(5, 3).double())


def test_beta_tc_takes_no_mask_and_no_second_plate(vae: pv.VAE, x: Tensor) -> None:
    masks = (pyro.poutine.mask(program, mask=torch.arange(12) < 9) for program in (vae.model, vae.guide))
    with pytest.raises(ValueError, match=r"batch shape .* and mask"):
        BetaTC(data_size=12).loss(*masks, x)


def test_a_site_that_is_the_guides_alone(vae: pv.VAE, x: Tensor) -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(torch.zeros(len(x)), 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(u.unsqueeze(-1) + torch.zeros(2), 1.0).to_event(1))

    for objective in (FreeBits(0.0), MMD(1.0)):
        with pytest.raises(ValueError, match="auxiliary site 'u' of the guide has no counterpart"):
            objective.loss(vae.model, guide, x)


def test_a_fixed_prior_without_paths_will_do_for_mmd(x: Tensor) -> None:
    vae = vae_with(prior=pv.priors.GaussianMixture(2, 3).requires_grad_(False))
    MMD(1.0).loss_and_grads(vae.model, vae.guide, x)
    assert all(parameter.grad is not None for parameter in vae.posterior.parameters())


@pytest.mark.parametrize("make", [IWAE, MIWAE, CIWAE, PIWAE, lambda **options: Renyi(0.5, **options)])
def test_an_unknown_argument_is_refused(make: Any) -> None:
    with pytest.raises(TypeError, match=r"no argument 'K'\. The number of draws .* num_particles.* max_plate"):
        make(K=50)
