"""Estimators of a gradient, against a closed form, against each other, and in training."""

from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceGraph_ELBO
from torch import Tensor

import pyrovae as pv
from experiments.gradient_estimators import moments
from experiments.gradient_estimators.estimators import (
    ESTIMATORS,
    ConstantNormal,
    Estimated,
    Estimator,
    UnreparameterizedNormal,
)
from experiments.gradient_estimators.moments import Moments, Problem

TOY = moments.Options(hidden=(8,), latent=2, repeats=500, num_data=4, dimensions=3, seed=3)


@pytest.fixture(scope="module")
def problem() -> Problem:
    return moments.linear_gaussian(TOY)


def test_the_exact_elbo_is_that_of_many_draws(problem: Problem) -> None:
    results = pv.evaluation.evaluate(problem.vae.model, problem.vae.guide, problem.x, 4000, seed=0, progress=False)
    error = float((results.elbo_mcse**2).sum()) ** 0.5
    assert abs(float(results.elbo.sum()) - moments.exact_elbo(problem.vae, problem.x).item()) < 4 * error


ORDERED = ("closed-form KL", "reparameterized", "average baseline", "score function")  # by their variance


@pytest.fixture(scope="module")
def measured(problem: Problem) -> dict[tuple[str, int], Moments]:
    cells = [(name, 1) for name in ESTIMATORS if name != "network baseline"] + [(name, 10) for name in ORDERED]
    return {(name, draws): moments.measure(problem, name, draws, TOY) for name, draws in cells}


@pytest.mark.slow
def test_only_the_density_alone_is_biased(problem: Problem, measured: dict[tuple[str, int], Moments]) -> None:
    assert problem.exact is not None
    for (name, _), own in measured.items():
        if name == "density alone":
            assert moments.z_scores(own, problem.exact).abs().max() > 20
            assert moments.z_scores(own, torch.zeros_like(problem.exact)).abs().max() < 4.5
        else:
            assert moments.z_scores(own, problem.exact).abs().max() < 4.5


@pytest.mark.slow
def test_variances_are_ordered_and_fall_with_the_draws(measured: dict[tuple[str, int], Moments]) -> None:
    variance = {cell: float(own.variance.sum()) for cell, own in measured.items()}
    for draws in (1, 10):
        own = [variance[name, draws] for name in ORDERED]
        assert own == sorted(own)
        assert own[1] * 2 < own[2]
    for name in ("reparameterized", "score function"):
        assert 6 < variance[name, 1] / variance[name, 10] < 16


def test_without_baseline_both_objectives_have_the_same_gradient(problem: Problem) -> None:
    gradients = []
    for objective in (Trace_ELBO, TraceGraph_ELBO):
        estimated = Estimated(problem.vae, Estimator(objective, UnreparameterizedNormal), problem.x.shape[1:])
        estimated.zero_grad()
        torch.manual_seed(0)
        objective(num_particles=3, vectorize_particles=True).loss_and_grads(estimated.model, estimated.guide, problem.x)
        gradients.append(moments.encoder_gradient(estimated.encoder))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("family", "has_path"), [(dist.Normal, True), (UnreparameterizedNormal, False), (ConstantNormal, True)]
)
def test_a_family_keeps_its_kind_in_plates(family: type[dist.Normal], has_path: bool) -> None:
    loc = torch.zeros(2, requires_grad=True)
    wide = family(loc, 1.0).to_event(1).expand((5, 3))
    assert wide.has_rsample is has_path
    assert wide().requires_grad is (family is dist.Normal)
    torch.testing.assert_close(
        wide.log_prob(torch.ones(5, 3, 2)), torch.full((5, 3), 2 * dist.Normal(0, 1).log_prob(torch.tensor(1.0)).item())
    )


@pytest.mark.parametrize("name", ESTIMATORS)
def test_guides_share_the_parameters_and_ask_for_their_baseline(x: Tensor, vae: pv.VAE, name: str) -> None:
    estimated = Estimated(vae, ESTIMATORS[name], x.shape[1:])
    assert {id(p) for p in vae.parameters()} <= {id(p) for p in estimated.parameters()}
    site = poutine.trace(estimated.guide).get_trace(x).nodes["z"]
    asked = site["infer"]["baseline"]
    assert asked["use_decaying_avg_baseline"] is name.endswith("baseline")
    assert ("nn_baseline" in asked) is (name == "network baseline")


def test_a_network_baseline_trains_and_the_averages_stay_in_their_scope(x: Tensor, vae: pv.VAE) -> None:
    with pyro.get_param_store().scope():
        estimated = Estimated(vae, ESTIMATORS["network baseline"], x.shape[1:])
        before = {name: part.detach().clone() for name, part in estimated.named_parameters()}
        pv.fit(estimated, x, objective=TraceGraph_ELBO(), epochs=2, batch_size=4)
        assert list(pyro.get_param_store()) == ["__baseline_avg_downstream_cost_z"]
    assert all(not part.equal(before[name]) for name, part in estimated.named_parameters())
    assert not pyro.get_param_store().keys()


def test_z_scores_by_hand() -> None:
    own = moments.Moments(torch.tensor([1.0, 5.0]), torch.tensor([4.0, 0.0]), 16, 1.0)
    torch.testing.assert_close(moments.z_scores(own, torch.tensor([2.0, 5.0])), torch.tensor([-2.0]))
    other = moments.Moments(torch.zeros(2), torch.tensor([5.0, 0.0]), 4, 1.0)
    torch.testing.assert_close(moments.z_scores(own, other), torch.tensor([1 / 1.5**0.5]))


def test_the_digits_have_no_exact_gradient() -> None:
    problem = moments.digits(replace(TOY, epochs=1))
    assert problem.exact is None
    assert problem.x.shape == (4, 8, 8)
