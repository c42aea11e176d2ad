"""Draws that rounding moves to the edge of a support, and latents for which only draws from the guide are possible."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae.evaluation.unconstrained.edges import FEWEST, NUM_DRAWS, _share

OPTIONS: Any = {"seed": 0, "progress": False}
EDGE = "rounding moves many draws of latent site 'z'"
Program = Callable[[Tensor], None]


def latent(prior: Callable[[], Any], posterior: Callable[[Tensor], Any], likelihood: Any) -> tuple[Program, Program]:
    """Return a model with one latent z per datum, and its guide."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", likelihood(pyro.sample("z", prior())), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", posterior(x))

    return model, guide


def concrete(temperature: float) -> tuple[Program, Program]:
    def family(logits: Any) -> Any:
        return dist.RelaxedBernoulli(torch.tensor(temperature), logits=torch.as_tensor(logits))

    return latent(lambda: family(0.3), lambda x: family(2 * x - 1), lambda z: dist.Normal(2 * z - 0.5, 0.7))


def exact_concrete(x: Tensor, temperature: float) -> np.ndarray:
    """Return log p(x), by a sum over the logit of z."""
    u = torch.linspace(-400, 400, 80_001, dtype=torch.float64)
    logistic = temperature * u - 0.3
    log_prior = math.log(temperature) - logistic - 2 * torch.nn.functional.softplus(-logistic)
    log_joint = log_prior[:, None] + dist.Normal(2 * u.sigmoid() - 0.5, 0.7).log_prob(x.double()[..., None]).T
    return (log_joint.logsumexp(0) + math.log(0.01)).numpy()


def test_rounded_draws_are_not_reliable() -> None:
    x = torch.tensor([-0.5, 1.0, 2.0, 3.0])
    model, guide = concrete(0.1)
    with pytest.warns(UserWarning, match=EDGE):
        found = pv.evaluation.log_likelihood(model, guide, x, **OPTIONS)
    wrong = abs(found.log_likelihood - exact_concrete(x, 0.1)) > 5 * found.mcse
    assert wrong.any()
    assert not (found.reliable & wrong).any()


@pytest.mark.parametrize("temperature", [0.1, 0.67])
@pytest.mark.parametrize(
    ("estimator", "numbers"),
    [
        (pv.evaluation.evaluate, {"num_samples": 500}),
        (pv.evaluation.ais, {"num_chains": 200, "num_temperatures": 5}),
        (pv.evaluation.bdmc, {"num_chains": 10, "num_temperatures": 5}),
        (pv.evaluation.nuts, {"num_samples": 20, "warmup_steps": 5, "max_tree_depth": 2}),
    ],
)
def test_every_estimator_warns_of_rounded_draws(
    estimator: Callable[..., Any], numbers: dict[str, int], temperature: float
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        estimator(*concrete(temperature), torch.tensor([-0.5, 1.0, 2.0, 3.0]), **numbers, **OPTIONS)
    assert any(EDGE in str(each.message) for each in caught) == (temperature == 0.1)


def test_quasi_random_draws_are_tested_for_rounding() -> None:
    def family(logits: Any) -> Any:
        wide = dist.Normal(torch.as_tensor(logits), torch.tensor(15.0))
        return dist.TransformedDistribution(wide, [dist.transforms.SigmoidTransform()])

    model, guide = latent(lambda: family(1.0), lambda x: family(2 * x - 1), lambda z: dist.Normal(z, 0.3))
    with pytest.warns(UserWarning, match=EDGE):
        pv.evaluation.rqmc(model, guide, torch.tensor([0.2, 0.9]), num_samples=256, **OPTIONS)


def test_draws_at_an_edge_without_a_density_are_rounded() -> None:
    def family(a: Any) -> Any:
        return dist.Kumaraswamy(torch.as_tensor(a), torch.tensor(0.05))  # torch returns 1.0, where log q is infinite

    model, guide = latent(lambda: family(0.05), lambda x: family(0.05 + 0.05 * x), lambda z: dist.Normal(z, 0.3))
    with pytest.warns(UserWarning, match=EDGE), pytest.raises(FloatingPointError, match="NaN or infinite"):
        pv.evaluation.evaluate(model, guide, torch.tensor([0.2, 0.9]), 500, **OPTIONS)


def test_the_advice_against_rounding_works() -> None:
    def family(logits: Any) -> Any:
        base = torch.distributions.relaxed_bernoulli.LogitRelaxedBernoulli(torch.tensor(0.1), logits=logits)
        return dist.TransformedDistribution(base, [])

    logits = torch.tensor(0.3)
    model, guide = latent(
        lambda: family(logits), lambda x: family(2 * x - 1), lambda u: dist.Normal(2 * u.sigmoid() - 0.5, 0.7)
    )
    x = torch.tensor([-0.5, 1.0, 2.0, 3.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = pv.evaluation.log_likelihood(model, guide, x, **OPTIONS)
    assert found.reliable.sum() >= 2
    errors = (abs(found.log_likelihood - exact_concrete(x, 0.1)) / found.mcse)[found.reliable]
    assert (errors < 4.5).all()


def test_draws_inside_the_support_are_reliable() -> None:
    x = torch.linspace(-1, 2, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = pv.evaluation.log_likelihood(*concrete(0.67), x, **OPTIONS)
        pv.evaluation.evaluate(*concrete(0.67), x, 500, **OPTIONS)
    assert found.reliable.all()
    assert (abs(found.log_likelihood - exact_concrete(x, 0.67)) < 4.5 * found.mcse).all()


@pytest.mark.parametrize(("concentration", "is_rounded"), [(0.05, True), (0.5, False)])
def test_only_small_concentrations_of_a_beta_prior_reach_the_edge(concentration: float, *, is_rounded: bool) -> None:
    a = torch.tensor(concentration)
    model, guide = latent(
        lambda: dist.Beta(a, a),
        lambda x: dist.Beta(a + x.clamp(0, 1), a + 1 - x.clamp(0, 1)),
        lambda z: dist.Normal(z, 0.3),
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = pv.evaluation.log_likelihood(model, guide, torch.tensor([0.2, 0.9, 1.2]), **OPTIONS)
    assert any(EDGE in str(each.message) for each in caught) == is_rounded
    assert bool(found.reliable.all()) != is_rounded


def test_the_share_of_rounded_draws_by_hand() -> None:
    u = torch.arange(NUM_DRAWS, dtype=torch.float32).repeat(3, 1).T[:, None].clone()  # one datum, three coordinates
    u[:FEWEST, 0, 1], u[-FEWEST + 1 :, 0, 2] = -7.0, 999.0  # as many ties as count, and one less
    log_weights = torch.zeros(NUM_DRAWS, 1, dtype=torch.float64)
    log_weights[:FEWEST] = math.log(10)
    share = 10 * FEWEST / (NUM_DRAWS + 9 * FEWEST)
    level = torch.full((1,), -math.inf, dtype=torch.float64)
    torch.testing.assert_close(_share(u, log_weights, level)[0], torch.tensor([0.0, share, 0.0]).double())
    known = torch.full((1,), 5.0, dtype=torch.float64)  # the guide's estimate is larger than that of these draws
    expected = 10 * FEWEST / NUM_DRAWS * math.exp(-5)
    assert _share(u, log_weights, known)[0, 1].item() == pytest.approx(expected, rel=1e-9)


def test_positive_latents_that_underflow_have_an_estimate() -> None:
    model, guide = latent(
        lambda: dist.Gamma(torch.tensor(0.5), 1.0),
        lambda x: dist.LogNormal((x + 0.3).log(), 1.0),
        lambda z: dist.Poisson(z + 1e-3),
    )
    x = torch.tensor([0.0, 0.0, 1.0, 2.0])
    found = pv.evaluation.log_likelihood(model, guide, x, **OPTIONS)
    u = torch.linspace(-200, 5, 40_001, dtype=torch.float64)
    log_prior = 0.5 * u - u.exp() - math.lgamma(0.5)
    likelihood = dist.Poisson(u.exp()[:, None] + 1e-3).log_prob(x.double())
    exact = (log_prior[:, None] + likelihood).logsumexp(0) + math.log(205 / 40_000)
    assert found.reliable.all()
    assert (abs(found.log_likelihood - exact.numpy()) < 4.5 * found.mcse).all()


def switch(probability: float) -> tuple[Program, Program]:
    """Return a model with a switch y that is sampled, and a guide in which y = 1 has the given probability."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(0.5))
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + 0.5 * y, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(torch.full_like(x, probability)))
            pyro.sample("z", dist.Normal((x - 0.5 * y) / 2, 0.5**0.5))

    return model, guide


def exact_switch(x: Tensor) -> np.ndarray:
    parts = [dist.Normal(shift, 2**0.5).log_prob(x) - math.log(2) for shift in (0.0, 0.5)]
    return torch.stack(parts).logsumexp(0).numpy()


@pytest.mark.parametrize("vectorize", [True, False])
def test_a_guide_that_hardly_draws_a_discrete_value_is_not_reliable(*, vectorize: bool) -> None:
    x = torch.linspace(-1, 2, 6)[: 6 if vectorize else 2]
    options = {**OPTIONS, "vectorize": vectorize, "num_samples": 2000 if vectorize else 200}
    with pytest.warns(UserWarning, match="a part of the posterior that the guide misses"):
        found = pv.evaluation.log_likelihood(*switch(1e-4), x, **options)
    assert not found.reliable.any()
    assert (found.estimator == "guide").all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = pv.evaluation.log_likelihood(*switch(0.5), x, **options)
    assert found.reliable.all()
    assert (abs(found.log_likelihood - exact_switch(x)) < 4.5 * found.mcse).all()


def test_an_angle_at_one_of_two_modes_is_not_reliable() -> None:
    model, guide = latent(
        lambda: dist.VonMises(0.0, 0.01), lambda x: dist.VonMises(x.clamp(-0.9, 0.9).acos(), 30.0), dist_of_cosine
    )
    with pytest.warns(UserWarning, match="the guide misses"):
        found = pv.evaluation.log_likelihood(model, guide, torch.tensor([-0.5, 0.0, 0.4]), **OPTIONS)
    assert not found.reliable.any()


def dist_of_cosine(z: Tensor) -> Any:
    return dist.Normal(z.cos(), 0.2)


def test_a_model_may_fail_at_draws_from_its_prior() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(torch.tensor(2.0), 1.0))
            if z.numel() > 100 and (z > 3).any():
                raise ArithmeticError("too large")
            pyro.sample("x", dist.Normal(z, 0.02), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.LogNormal(x.log(), 0.02 / x))

    x = torch.tensor([0.8, 1.0, 1.2])
    assert pv.evaluation.evaluate(model, guide, x, 500, **OPTIONS).mcse.max() < 0.1
    with pytest.warns(UserWarning, match="makes no draws from the prior"):
        assert pv.evaluation.log_likelihood(model, guide, x, **OPTIONS).reliable.all()


def test_data_of_which_every_row_has_missing_entries() -> None:
    scale = torch.tensor([0.5, 0.7, 0.9])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))[..., None]
            pyro.sample("x", dist.Normal(z, scale).mask(~x.isnan()).to_event(1), obs=x.nan_to_num())

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.nan_to_num().mean(-1), 1.0))

    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    x[:, 1] = math.nan
    kept = torch.tensor([0, 2])
    covariance = torch.ones(2, 2) + torch.diag(scale[kept] ** 2)
    exact = dist.MultivariateNormal(torch.zeros(2), covariance).log_prob(x[:, kept]).numpy()
    for function in (pv.evaluation.evaluate, pv.evaluation.log_likelihood):
        found = function(model, guide, x, **OPTIONS)
        assert (abs(found.log_likelihood - exact) < 4.5 * found.mcse).all()


@pytest.mark.parametrize("transforms", [[], [dist.transforms.ExpTransform()]])
def test_an_exact_fit_before_a_transform_is_found(transforms: list[Any]) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            v = pyro.sample("v", dist.Normal(-1.0, 1.5))
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            noise = dist.SoftLaplace(z, v.exp()[..., None])
            pyro.sample("x", dist.TransformedDistribution(noise, transforms).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("v", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))

    x = torch.rand(4, 4, generator=torch.Generator().manual_seed(0)) + 0.5
    with pytest.warns(UserWarning, match="the other latents can fit these entries exactly"):
        found = pv.evaluation.log_likelihood(model, guide, x, **OPTIONS)
    assert not (found.reliable & (found.estimator != "guide")).any()
