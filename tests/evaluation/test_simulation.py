"""Simulated data of programs with keyword arguments, views, masks, integers and enumerated sites."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.reparam import LocScaleReparam
from torch import Tensor

import pyrovae as pv
from pyrovae.evaluation.simulation import simulate

OPTIONS: Any = {"seed": 0, "progress": False}
BDMC: Any = {"num_chains": 8, "num_temperatures": 10, **OPTIONS}


def model(x: Tensor, noise: float = 1.0) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, noise), obs=x)


def exact(x: Tensor, noise: float = 1.0) -> None:
    variance = 1 / (1 + noise**-2)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(variance * x / noise**2, variance**0.5))


def series(observed: Callable[[Tensor], Tensor]) -> Callable[[Tensor], None]:
    """Return a model of four noisy observations of each latent, with the time along dimension -2."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("time", 4, dim=-2):
                pyro.sample("x", dist.Normal(z, 0.3), obs=observed(x))

    return model


def test_keyword_arguments_reach_the_simulation() -> None:
    options: Any = {**OPTIONS, "kwargs": {"noise": 0.2}}
    ranks = pv.evaluation.simulation_based_calibration(model, exact, torch.zeros(200), num_simulations=400, **options)
    assert ranks.z_p_value > 1e-3
    found = pv.evaluation.bdmc(model, exact, torch.zeros(200), 4, num_temperatures=3, **options)
    assert abs(found.simulated_0.var() / 1.04 - 1) < 4.5 * (2 / 200) ** 0.5
    expected = dist.Normal(0.0, 1.04**0.5).log_prob(torch.tensor(found.simulated_0.values))
    np.testing.assert_allclose(found.lower, expected, atol=1e-4)  # the guide is exact


@pytest.mark.parametrize("observed", [lambda x: x.T, lambda x: x.T.contiguous()])
@pytest.mark.parametrize("template", [torch.zeros(300, 4), torch.randn(300, 4)])
def test_views_and_copies_are_filled_in_their_own_order(observed: Callable[[Tensor], Tensor], template: Tensor) -> None:
    torch.manual_seed(0)
    latents, (x,) = simulate(series(observed), (template,))
    assert x.shape == template.shape
    assert (x - latents["z"].reshape(-1, 1)).std().item() == pytest.approx(0.3, rel=4.5 / (2 * 1200) ** 0.5)


def test_a_copy_whose_order_is_not_clear_is_refused() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1), pyro.plate("a", 2, dim=-2), pyro.plate("b", 2, dim=-3):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x.permute(2, 1, 0).contiguous())

    with pytest.raises(ValueError, match=r"one argument in several orders. Observe an argument itself or a view"):
        simulate(model, (torch.zeros(5, 2, 2),))
    torch.manual_seed(0)
    assert simulate(model, (torch.randn(5, 2, 2),))[1][0].shape == (5, 2, 2)


@pytest.mark.parametrize("observed", [lambda x: x / 10, lambda x: -x, lambda x: x.abs()])
def test_functions_of_a_template_of_zeros_are_refused(observed: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match=r"at site 'x' is a function of argument 0.*before the call"):
        simulate(series(lambda x: observed(x).T), (torch.zeros(300, 4),))


def test_sites_may_observe_different_columns() -> None:
    def markov(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            previous = torch.zeros(len(x))
            for t in range(3):
                previous = pyro.sample(f"x_{t}", dist.Normal(previous + 1, 0.1), obs=x[:, t])

    torch.manual_seed(0)
    _, (x,) = simulate(markov, (torch.zeros(500, 3),))
    steps = x - torch.cat([torch.zeros(500, 1), x[:, :-1]], 1)
    torch.testing.assert_close(steps.mean(0), torch.ones(3), atol=4.5 * 0.1 / 500**0.5, rtol=0)

    def twice(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("a", dist.Normal(0.0, 1.0), obs=x[:, 0])
            pyro.sample("b", dist.Normal(torch.zeros(3), 1.0).to_event(1), obs=x)

    with pytest.raises(ValueError, match="'a' and 'b' observe the same entries of argument 0"):
        simulate(twice, (torch.zeros(4, 3),))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_draws_that_an_integer_cannot_hold_keep_their_values(dtype: torch.dtype) -> None:
    template = torch.zeros(200).to(dtype)
    if dtype != torch.bool:  # torch cannot score booleans by a normal density
        ranks = pv.evaluation.simulation_based_calibration(model, exact, template, num_simulations=400, **OPTIONS)
        assert ranks.z_p_value > 1e-3

    def counts(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Poisson(torch.tensor(300.0)), obs=x)

    def bits(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(torch.tensor(0.5)), obs=x)

    torch.manual_seed(0)
    assert simulate(counts, (template,))[1][0].float().mean() > 200
    assert simulate(bits, (template,))[1][0].dtype == dtype


def ragged(x: Tensor, lengths: Tensor) -> None:
    with pyro.plate("data", len(x)):
        first = pyro.sample("first", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(first, 1.0), obs=x)
        with pyro.poutine.mask(mask=lengths > 1):
            pyro.sample("second", dist.Normal(torch.full((2,), 3.0), 1.0).to_event(1))


def ragged_guide(x: Tensor, lengths: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("first", dist.Normal(x / 2, 0.5**0.5))
        with pyro.poutine.mask(mask=lengths > 1):
            loc = torch.where(lengths > 1, 3.0, 0.0)[..., None].expand(-1, 2)
            pyro.sample("second", dist.Normal(loc, 1.0).to_event(1))


@pytest.mark.parametrize("vectorize", [True, False])
def test_masked_latents_have_no_ranks(*, vectorize: bool) -> None:
    data = torch.randn(60), torch.tensor([1, 2] * 30)
    options: Any = {"num_simulations": 240, "vectorize": vectorize, **OPTIONS}
    ranks = pv.evaluation.simulation_based_calibration(ragged, ragged_guide, data, 19, **options)
    np.testing.assert_array_equal(ranks.second.isnull(), np.tile([[True] * 2, [False] * 2], (120, 1)))
    assert (ranks.second_p_value > 1e-3).all()
    assert ranks.first.dtype.kind == "i"  # no rank is missing


def test_sites_that_the_guide_enumerates_are_ranked() -> None:
    means = torch.tensor([-1.0, 0.0, 2.0])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.ones(3)), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(means[y] + z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            logits = dist.Normal(means, 2**0.5).log_prob(x[:, None])
            y = pyro.sample("y", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})
            pyro.sample("z", dist.Normal((x - means[y]) / 2, 0.5**0.5))

    ranks = pv.evaluation.simulation_based_calibration(model, guide, torch.zeros(80), num_simulations=400, **OPTIONS)
    assert min(ranks.y_p_value, ranks.z_p_value) > 1e-3


@pytest.mark.parametrize("known", [0, 10, 20])
def test_a_semi_supervised_vae_is_simulated(known: int) -> None:
    def posterior(x: Tensor, y: Tensor) -> Tensor:
        loc = x.mean(-1, keepdim=True) + 0 * y[..., :1]
        return torch.cat([loc, 0 * loc], -1)

    vae = pv.SemiSupervisedVAE(
        pv.priors.StandardNormal(1),
        dist.OneHotCategorical(torch.ones(3)),
        pv.likelihoods.Normal(lambda z, y: z + 3 * y),
        posterior=pv.posteriors.DiagonalNormal(posterior),
        classifier=lambda x: dist.OneHotCategorical(logits=x),
    ).eval()
    labels = torch.eye(3)[torch.arange(20) % 3]
    labels[known:] = 0
    torch.manual_seed(0)
    _, (x, y) = simulate(vae.model, (torch.zeros(20, 3), labels))
    assert (y.sum(-1) == labels.sum(-1)).all()
    assert x.abs().max() > 1.5
    ranks = pv.evaluation.simulation_based_calibration(
        vae.model, vae.guide, (torch.zeros(20, 3), labels), 9, num_simulations=60, **OPTIONS
    )
    assert ranks.z.shape == (60, 1)


def test_refined_guides_are_not_calibrated() -> None:
    refined = pv.guides.Refined(model, exact)
    with pytest.raises(ValueError, match=r"wider than the posterior.*refined\.guide"):
        pv.evaluation.simulation_based_calibration(model, refined, torch.zeros(60), **OPTIONS)


def test_sites_that_a_reparameterization_computes_are_no_data() -> None:
    def base(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(1.0, 2.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z_decentered", dist.Normal(0.4 * (x - 1), 0.2**0.5))

    decentered = pyro.poutine.reparam(base, {"z": LocScaleReparam(0.0)})
    x = torch.tensor([0.0, 1.0, 3.0, -2.0])
    data = pv.evaluation.to_inference_data(decentered, guide, x, 200, num_draws=20, **OPTIONS)
    assert list(data.observed_data) == list(data.posterior_predictive) == ["x"]
    for group in (data.posterior, data.prior):
        np.testing.assert_allclose(group.z, 1 + 2 * group.z_decentered, rtol=1e-5)
    found = pv.evaluation.bdmc(decentered, guide, torch.zeros(50), **BDMC)
    expected = dist.Normal(1.0, 5**0.5).log_prob(torch.tensor(found.simulated_0.values))
    np.testing.assert_allclose(found.lower, expected, atol=1e-4)
    ranks = pv.evaluation.simulation_based_calibration(decentered, guide, x, num_simulations=400, **OPTIONS)
    assert ranks.z_decentered_p_value > 1e-3
