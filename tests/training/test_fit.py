"""fit: every ELBO, any module, repeatable runs, and errors before the first step."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import (
    ELBO,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from torch import Tensor, nn

import pyrovae as pv
from pyrovae._waist.scales import LatentScale
from tests.conftest import small_vae
from tests.oracle import Oracle
from tests.training.programs import Broken, Global, Regression, Script

fit = partial(pv.fit, progress=False)


def digits_vae() -> pv.VAE:
    return pv.VAE(
        pv.priors.StandardNormal(8),
        pv.likelihoods.Bernoulli(pv.networks.mlp(8, 64, (8, 8))),
        pv.posteriors.DiagonalNormal(pv.networks.mlp((8, 8), 64, 16)),
    )


def test_training_raises_the_elbo_on_real_digits() -> None:
    splits = pv.data.digits("static")
    vae = digits_vae()
    before = pv.evaluation.evaluate(vae.model, vae.guide, splits.test, 20, seed=0).elbo.mean()
    history = fit(vae, splits.train, splits.valid, epochs=30, learning_rate=3e-3, seed=0)
    after = pv.evaluation.evaluate(vae.model, vae.guide, splits.test, 20, seed=0).elbo.mean()
    assert after > before + 15
    assert history.train[-1] > history.train[0] + 10
    assert float(after) == pytest.approx(history.valid[-1], abs=2)  # the same units, nats per datum


@pytest.mark.slow
def test_training_finds_probabilistic_pca() -> None:
    oracle = Oracle()
    x = oracle.data(4000).float()
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Normal(pv.networks.mlp(2, 5), scale=1.0, learn_scale=True),
        pv.posteriors.DiagonalNormal(pv.networks.mlp(5, 4)),
    )
    fit(
        vae,
        x,
        epochs=40,
        learning_rate=1e-2,
        seed=0,
        scheduler=partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.9),
    )
    found = pv.evaluation.evaluate(vae.model, vae.guide, oracle.data(1000, seed=2).float(), 200, seed=0)
    exact = oracle.log_likelihood(oracle.data(1000, seed=2)).mean().item()
    assert float(found.log_likelihood.mean()) == pytest.approx(exact, abs=0.05)
    assert vae.likelihood.log_scale.exp().item() == pytest.approx(oracle.sigma, rel=0.05)


@pytest.mark.parametrize(
    "objective",
    [
        None,
        Trace_ELBO(num_particles=2),
        Trace_ELBO(num_particles=2, vectorize_particles=True),
        TraceMeanField_ELBO(),
        TraceGraph_ELBO(),
        TraceEnum_ELBO(max_plate_nesting=1),
        RenyiELBO(alpha=0.5, num_particles=2),
        ReweightedWakeSleep(num_particles=2, vectorize_particles=True),
        pv.objectives.IWAE(3),
    ],
    ids=lambda objective: type(objective).__name__,
)
@pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites configured for enumeration")
def test_any_elbo(vae: pv.VAE, x: Tensor, objective: ELBO | None) -> None:
    before = [parameter.detach().clone() for parameter in vae.parameters()]
    history = fit(vae, x, x, objective=objective, epochs=2, batch_size=5)
    assert all((old != new).any() for old, new in zip(before, vae.parameters(), strict=True))
    assert history.objective == type(objective or Trace_ELBO()).__name__
    assert all(-20 < bound < 0 for bound in history.train + history.valid)


def test_no_datum_is_dropped(vae: pv.VAE) -> None:
    seen: list[Tensor] = []

    def watch(x: Tensor) -> Tensor:
        seen.append(x)
        return x

    x = torch.eye(6).repeat(2, 1)[:11]
    fit(vae, x, epochs=1, batch_size=4, transform=watch)
    checked, trained = torch.cat(seen[:3]), torch.cat(seen[3:])
    assert [len(batch) for batch in seen[3:]] == [4, 4, 3]
    assert torch.equal(checked, x)
    assert torch.equal(trained.sum(0), x.sum(0))
    assert not torch.equal(trained, x)  # in random order


@pytest.mark.parametrize(
    "objective", [None, pv.objectives.IWAE(3), RenyiELBO(num_particles=2)], ids=lambda made: type(made).__name__
)
def test_a_seeded_run_repeats_bit_for_bit_and_leaves_the_generator_alone(x: Tensor, objective: ELBO | None) -> None:
    runs = []
    for _ in range(2):
        pyro.set_rng_seed(7)
        vae = small_vae()
        state = torch.get_rng_state()
        history = fit(vae, x, x, objective=objective, epochs=3, batch_size=5, seed=0, transform=pv.data.binarize)
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(len(runs))  # the second run must not depend on what came before
        runs.append((vae.state_dict(), history.train, history.valid))
    assert all(torch.equal(tensor, runs[1][0][name]) for name, tensor in runs[0][0].items())
    assert runs[0][1:] == runs[1][1:]


def test_another_seed_is_another_run(x: Tensor) -> None:
    runs = []
    for seed in (0, 1):
        pyro.set_rng_seed(7)
        runs.append(fit(small_vae(), x, epochs=2, batch_size=5, seed=seed).train)
    assert runs[0] != runs[1]


def test_kl_weight_multiplies_the_kl_term() -> None:
    oracle = Oracle(scale=1.5)
    x = oracle.data(10)
    losses = []
    for weight in (1.0, 0.25, 0.0):
        torch.manual_seed(0)
        with LatentScale(weight):
            losses.append(TraceMeanField_ELBO().loss(oracle.vae.model, oracle.vae.guide, x))
    q = oracle.vae.posterior(x).base_dist
    kl = 0.5 * (q.scale**2 + q.loc**2 - 1 - 2 * q.scale.log()).sum().item()
    assert losses[0] - losses[2] == pytest.approx(kl)
    assert losses[1] - losses[2] == pytest.approx(kl / 4)


def test_schedules_of_torch(vae: pv.VAE, x: Tensor) -> None:
    history = fit(vae, x, epochs=3, scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.1))
    assert history.learning_rate == pytest.approx([1e-3, 1e-4, 1e-5])
    plateau = partial(
        torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0, factor=0.1, threshold=1e9, threshold_mode="abs"
    )
    history = fit(vae, x, x, epochs=4, scheduler=plateau)
    assert history.learning_rate == pytest.approx([1e-3, 1e-3, 1e-4, 1e-5])


def test_optimizers_of_torch(vae: pv.VAE, x: Tensor) -> None:
    before = vae.likelihood.network[0].weight.detach().clone()
    fit(vae, x, epochs=1, learning_rate=0.1, optimizer=torch.optim.SGD)
    assert not torch.equal(before, vae.likelihood.network[0].weight)


def test_plain_pyro_scripts_train(x: Tensor) -> None:
    script = Script()
    fit(script, x, x, epochs=30, learning_rate=0.05)
    assert pyro.param("scale") < 0.9
    assert not torch.equal(pyro.param("weight"), torch.ones(2, 6))
    program = Global()
    fit(program, x + 3, epochs=100, learning_rate=0.1)
    assert program.loc.item() == pytest.approx((x + 3).mean().item(), abs=0.3)


def test_programs_with_a_penalty_and_conditioned_programs_train(vae: pv.VAE, x: Tensor) -> None:
    class Penalized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vae = vae

        def model(self, x: Tensor) -> None:
            weight = self.vae.likelihood.network[0].weight
            pyro.factor("penalty", -weight.square().sum())
            self.vae.model(x)

        def guide(self, x: Tensor) -> None:
            self.vae.guide(x)

    before = vae.likelihood.network[0].weight.square().sum().item()
    fit(Penalized(), x, epochs=50, learning_rate=0.01)
    assert vae.likelihood.network[0].weight.square().sum().item() < before


@pytest.mark.parametrize("enumerate_in", ["model", pytest.param("guide", marks=pytest.mark.slow)])
def test_enumerated_labels_train(enumerate_in: str) -> None:
    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.locs = nn.Parameter(torch.tensor([-0.1, 0.1]))
            self.logits = nn.Parameter(torch.zeros(2))

        def model(self, x: Tensor) -> None:
            infer = {"enumerate": "parallel"} if enumerate_in == "model" else {}
            with pyro.plate("data", len(x)):
                y = pyro.sample("y", dist.Categorical(torch.ones(2)), infer=infer)
                pyro.sample("x", dist.Normal(self.locs[y], 1.0), obs=x)

        def guide(self, x: Tensor) -> None:
            if enumerate_in == "guide":
                with pyro.plate("data", len(x)):
                    logits = x[:, None] * self.logits
                    pyro.sample("y", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})

    x = torch.cat([torch.randn(50) - 3, torch.randn(50) + 3])
    mixture = Mixture()
    objective = TraceEnum_ELBO(max_plate_nesting=1)
    fit(mixture, x, objective=objective, epochs=100, batch_size=50, learning_rate=0.05, seed=0)
    torch.testing.assert_close(mixture.locs.sort().values, torch.tensor([-3.0, 3.0]), atol=0.5, rtol=0)


def test_a_module_trains_by_a_loss_of_its_own() -> None:
    x = torch.randn(21, dtype=torch.float64)
    data, regression = (x, 3 * x), Regression()
    history = fit(regression, data, data, epochs=1, batch_size=8, learning_rate=1e-300)
    mean = -(9 * x.square()).mean().item()
    assert (history.objective, *history.train, *history.valid) == ("Regression", *(pytest.approx(mean, rel=1e-12),) * 2)
    fit(regression, data, epochs=200, learning_rate=0.1)
    assert regression.slope.item() == pytest.approx(3, abs=1e-3)


def test_a_module_with_a_bound_and_a_loss_trains_by_the_bound(vae: pv.VAE, x: Tensor) -> None:
    class Both(Broken):
        def loss(self, x: Tensor) -> Tensor:
            raise AssertionError

    assert fit(Both(vae.model, vae.guide), x, epochs=1).objective == "Trace_ELBO"
