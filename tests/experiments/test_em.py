"""EM against algebra and scikit-learn, and turns of a VAE that move the right parameters only."""

from dataclasses import replace
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO
from torch import Tensor

import pyrovae as pv
from experiments import _comparison as comparison
from experiments.em import alternating, bayesian, mixture
from experiments.em import expectation_maximization as em
from experiments.em.expectation_maximization import HalfStep, Parameters


@pytest.fixture(scope="module")
def points() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[-2.0, 0.0], [2.0, 1.0], [0.0, -2.0]]).double()
    return centres.repeat(30, 1) + torch.randn(90, 2, generator=generator, dtype=torch.float64)


@pytest.fixture(scope="module")
def path(points: Tensor) -> list[HalfStep]:
    return list(em.climb(points, em.start(points, 3, 0), 0.0, 15))


def test_the_e_step_is_bayes_rule(points: Tensor, path: list[HalfStep]) -> None:
    theta = path[2].theta
    joint = theta.weights.log() + dist.MultivariateNormal(theta.means, theta.covariances).log_prob(points[:, None])
    torch.testing.assert_close(em.e_step(points, theta).probs, joint.softmax(-1))


def test_the_identity_holds_at_every_half_step(points: Tensor, path: list[HalfStep]) -> None:
    table = mixture.measure(points, path)
    assert table.step.tolist() == ["start", *["E", "M"] * 15]
    assert table.error.abs().max() < 1e-8
    assert table.KL[0] > 0.1
    assert (table.KL[table.step == "M"].iloc[:5] > 0).all()
    mixture.check(table)


def test_the_identity_holds_for_any_q(points: Tensor, path: list[HalfStep]) -> None:
    q = dist.Categorical(logits=torch.randn(90, 3, dtype=torch.float64))
    table = mixture.measure(points, [HalfStep(0, "start", path[4].theta, q)])
    assert abs(table.error[0]) < 1e-8 < table.KL[0]


def test_the_m_step_is_the_maximum_of_the_bound(points: Tensor, path: list[HalfStep]) -> None:
    theta, q = path[2].theta, path[2].q
    leaves = [part.clone().requires_grad_() for part in theta]
    moved = Parameters(leaves[0] / leaves[0].sum(), *leaves[1:])
    bound = -TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(
        partial(em.model, theta=moved), partial(em.guide, q=q), points
    )
    bound.backward()
    for leaf in leaves:
        assert leaf.grad is not None
        torch.testing.assert_close(leaf.grad, torch.zeros_like(leaf), atol=1e-9, rtol=0)


def test_em_takes_the_steps_of_sklearn(points: Tensor, path: list[HalfStep]) -> None:
    for end in (path[2], path[6], path[-1]):
        assert mixture.distance_to_sklearn(points, path[0].theta, end) < 1e-9
    assert mixture.distance_to_sklearn(points, path[0].theta, path[-1]._replace(theta=path[-3].theta)) > 1e-6


@pytest.mark.parametrize(
    ("column", "row", "value", "promise"),
    [
        ("error", 3, 1e-7, r"log p\(x\) = ELBO \+ KL"),
        ("KL", 1, 1e-6, "the KL is 0 after an E step"),
        ("ELBO", 4, -99.0, "no step lowers the ELBO"),
        ("log p(x)", 4, -99.0, r"no step lowers log p\(x\)"),
    ],
)
def test_a_violated_guarantee_is_named(
    points: Tensor, path: list[HalfStep], column: str, row: int, value: float, promise: str
) -> None:
    table = mixture.measure(points, path[:7])
    table.loc[row, column] = value
    with pytest.raises(ArithmeticError, match=promise):
        mixture.check(table)


def test_a_point_and_its_sites_are_the_same(path: list[HalfStep]) -> None:
    theta = path[-1].theta
    for ours, theirs in zip(bayesian.as_parameters(bayesian.as_values(theta)), theta, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_bayesian_mixture_has_the_mixtures_density(points: Tensor, path: list[HalfStep]) -> None:
    """The parameters are given, and Pyro sums z out."""
    theta = path[-1].theta
    program = pyro.condition(bayesian.BayesianMixture(theta).model, data=bayesian.as_values(theta))
    results = pv.evaluation.evaluate(program, em.no_guide, points, 2, seed=0, progress=False)
    expected = bayesian.predict(points, Parameters(*(part[None] for part in theta)))
    np.testing.assert_allclose(results.log_likelihood, expected.log_likelihood)
    assert float(expected.log_likelihood.sum()) == pytest.approx(em.log_likelihood(points, theta))


def test_a_prediction_averages_probabilities(points: Tensor, path: list[HalfStep]) -> None:
    two = Parameters(*(torch.stack(parts) for parts in zip(path[2].theta, path[-1].theta, strict=True)))
    both = bayesian.predict(points, two)
    single = [bayesian.predict(points, Parameters(*(part[i : i + 1] for part in two))) for i in range(2)]
    p = np.exp([own.log_likelihood for own in single])
    np.testing.assert_allclose(both.log_likelihood, np.log(p.mean(0)))
    np.testing.assert_allclose(both.mcse, p.std(0, ddof=1) / p.mean(0) / 2**0.5)
    assert (single[0].mcse == 0).all()


@pytest.mark.slow
def test_variational_inference_finds_a_conjugate_posterior() -> None:
    """One component, mostly known. The posterior's spread of the mean is the standard error of the data."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 2, generator=generator, dtype=torch.float64)
    point = Parameters(torch.ones(1).double(), x.mean(0)[None], x.T.cov()[None])
    options = bayesian.Options(components=1, steps=400, learning_rate=0.02, num_draws=1000)
    theta = bayesian.variational(x, point, options)
    torch.testing.assert_close(theta.means.mean((0, 1)), x.mean(0), atol=0.02, rtol=0)
    torch.testing.assert_close(theta.means.std((0, 1)), x.std(0) / 200**0.5, atol=0, rtol=0.15)


TOY = alternating.Options(hidden=(8,), latent=2, steps=6, record=3, turns=(3,), num_samples=60)


def test_a_turn_moves_its_part_alone_and_keeps_its_optimizer() -> None:
    splits = comparison.load(TOY)
    vae = comparison.build(TOY, splits.train.shape[1:])
    turn = alternating.Turn(vae, "guide", 1e-3)
    for count in (3, 6):
        before = {name: part.detach().clone() for name, part in vae.named_parameters()}
        turn.fit(splits.train[:300], TOY, splits.transform)
        moved = {name for name, part in vae.named_parameters() if not part.equal(before[name])}
        assert moved == {name for name in before if name.startswith("guide.")}
        assert {int(state["step"]) for state in turn.optimizer.state.values()} == {count}


def test_schedules_make_their_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        alternating.Turn, "fit", lambda self, x, *_: seen.append((self.moving, len(x) // TOY.batch_size))
    )
    splits = comparison.load(TOY)
    vae = comparison.build(TOY, splits.train.shape[1:])
    curve = alternating.train(vae, splits, alternating.Schedule(("guide", "model"), 2, 12), TOY)
    assert seen == [(vae.guide, 2), (vae.model, 2)] * 3
    assert curve.step.tolist() == [6, 12]
    assert all(p.requires_grad for p in vae.parameters())


def test_batches_take_each_datum_once_a_pass() -> None:
    stream = alternating.batches(torch.arange(10.0), 4)
    drawn = torch.cat([next(stream) for _ in range(5)])
    assert sorted(drawn[:10].tolist()) == sorted(drawn[10:].tolist()) == list(range(10))


def test_runs_are_averaged_datum_by_datum() -> None:
    splits = comparison.load(replace(TOY, test_size=10))
    vae = comparison.build(TOY, splits.train.shape[1:])
    runs = [comparison.evaluate(vae, splits, replace(TOY, seed=seed)) for seed in (0, 1)]
    result = alternating.average(runs)
    np.testing.assert_allclose(result.log_likelihood, (runs[0].log_likelihood + runs[1].log_likelihood) / 2)
    np.testing.assert_allclose(result.mcse, np.hypot(runs[0].mcse, runs[1].mcse) / 2)
    np.testing.assert_allclose(result.run_means, [run.log_likelihood.mean() for run in runs])
    table = alternating.summarize({"a": result, "b": alternating.average([runs[0], runs[0]])})
    assert table.difference["a"] == table["of the runs"]["a"] == ""
    gain = (runs[0].log_likelihood - runs[1].log_likelihood).mean()
    assert table["of the runs"]["b"] == f"0.00, {float(gain):.2f}"
