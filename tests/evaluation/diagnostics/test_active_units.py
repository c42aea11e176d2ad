"""Variances of posterior means have the exact values for guides that subsample, enumerate or mask."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

import pyrovae as pv
from pyrovae.evaluation import active_units
from tests.truth.programs import normal_guide, normal_model

X = 2 * torch.randn(200, generator=torch.Generator().manual_seed(0))


def check_variance(found: object, mean: Tensor, spread: Tensor | float, draws: Tensor | int) -> None:
    """Compare the variance of z with that of exact posterior means, within 4.5 standard errors of the draws.

    Args:
        found: Result of ``active_units`` with one unit of ``z``.
        mean: Exact posterior means of the data that have the latent.
        spread: Posterior standard deviation.
        draws: Number of draws of each datum.
    """
    noise, exact = torch.as_tensor(spread).square() / torch.as_tensor(draws), mean.double().var()
    error = math.sqrt(float((4 * exact * noise + 2 * noise.square()).mean()) / len(mean))
    assert found["z_variance"].shape == (1,)
    assert found["z_variance"].item() == pytest.approx(float(exact), abs=4.5 * error)


@pytest.mark.parametrize("subsample_size", [20, 150, 200])
def test_a_plate_that_subsamples_covers_all_data(subsample_size: int) -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", 200, subsample_size=subsample_size) as indices:
            pyro.sample("z", dist.Normal(x[indices] / 2, 0.01))

    check_variance(active_units(guide, X, seed=0), X / 2, 0.01, 50)


def test_a_mini_batch_that_is_given_as_the_subsample_is_all_data() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", 1000, subsample=x):
            pyro.sample("z", dist.Normal(x / 2, 0.8))

    check_variance(active_units(guide, X, seed=0), X / 2, 0.8, 50)


@pytest.mark.parametrize("loc", [[-2.0, 0.0, 2.0], [-1.0, 0.0, 4.0]])
def test_an_enumerated_site_is_drawn(loc: list[float]) -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.ones(len(x), 3)), infer={"enumerate": "parallel"})
            pyro.sample("z", dist.Normal(torch.tensor(loc)[y] * x, 0.5))

    units = active_units(guide, X, seed=0, num_samples=200)
    assert units.attrs["sites"] == ["z"]
    spread = (0.25 + np.var(loc) * X.square()).sqrt()
    check_variance(units, np.mean(loc) * X, spread, 200)


def test_a_semi_supervised_vae_has_its_own_number_of_units() -> None:
    joint, mlp = pv.networks.Joint, pv.networks.mlp
    vae = pv.SemiSupervisedVAE(
        prior=pv.priors.StandardNormal(2),
        label_prior=dist.OneHotCategorical(torch.ones(3)),
        likelihood=pv.likelihoods.Normal(joint(mlp(2 + 3, 4), event_dims=(1, 1))),
        posterior=pv.posteriors.DiagonalNormal(joint(mlp(4 + 3, 2 * 2), event_dims=(1, 1))),
        classifier=pv.posteriors.OneHotCategorical(mlp(4, 3)),
    )
    units = active_units(vae.guide, (torch.ones(5, 4), torch.zeros(5, 3)), seed=0)  # all labels are unknown
    assert units.attrs["sites"] == ["z"]
    assert units.sizes == {"z_unit": 2}


def test_a_plate_of_another_size_is_refused_and_the_advice_works() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("time", x.shape[1], dim=-1), pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal(x / 2, 0.01))

    x = X.reshape(50, 4)
    with pytest.raises(ValueError, match=r"data plate 'time' has size 4 but x has 50 data.*another plate with plate="):
        active_units(guide, x, seed=0)
    units = active_units(guide, x, seed=0, plate="data")
    np.testing.assert_allclose(units.z_variance, (x / 2).var(0), rtol=0.01)


def test_a_subsampled_plate_inside_the_data_plate_is_refused() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2), pyro.plate("pixels", 4, subsample_size=2, dim=-1) as indices:
            pyro.sample("z", dist.Normal(x[:, indices], 1.0))

    with pytest.raises(ValueError, match="plate 'pixels' of site 'z' subsamples 2 of 4"):
        active_units(guide, X.reshape(50, 4), seed=0)


def test_a_masked_latent_varies_over_the_data_that_have_it() -> None:
    def guide(x: Tensor, has: Tensor) -> None:
        with pyro.plate("data", len(x)), poutine.mask(mask=has):
            pyro.sample("z", dist.Normal(torch.where(has, x, 100.0), 0.8))

    has = torch.arange(len(X)) % 3 > 0
    check_variance(active_units(guide, (X, has), seed=0), X[has], 0.8, 50)
    constant = active_units(guide, (torch.full_like(X, 3.0), has), seed=0)
    check_variance(constant, torch.full((int(has.sum()),), 3.0), 0.8, 50)
    assert not constant.z.any()


def test_a_mask_of_single_entries_acts_on_each_unit() -> None:
    def guide(x: Tensor, has: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.where(has, x, 100.0), 0.01).mask(has).to_event(1))

    x, has = X.reshape(50, 4), torch.ones(50, 4, dtype=torch.bool)
    has[:20, 1], has[:, 2], has[1:, 3] = False, False, False
    units = active_units(guide, (x, has), seed=0)
    np.testing.assert_allclose(units.z_variance[:2], [x[:, 0].var(), x[20:, 1].var()], rtol=0.01)
    assert np.isnan(units.z_variance[2:]).all()
    assert units.z.values.tolist() == [True, True, False, False]
    assert units.z_undecided.values.tolist() == [False, False, True, True]


def test_a_mask_that_depends_on_a_draw_leaves_out_this_draw() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            has = pyro.sample("has", dist.Bernoulli(torch.full_like(x, 0.5))) == 1
            with poutine.mask(mask=has):
                pyro.sample("z", dist.Normal(torch.where(has, x, 100.0), 0.8))

    units = active_units(guide, X, seed=0, num_samples=100)
    check_variance(units, X, 0.8, 50)
    assert not units.has.any()


def test_auxiliary_sites_are_left_out() -> None:
    x = X[:12]
    units = active_units(pv.guides.Refined(normal_model, normal_guide), x, seed=0, num_samples=8)
    assert units.attrs["sites"] == ["z"]
    check_variance(units, x / 2, 0.5**0.5, 8)
    auto = AutoNormal(normal_model)
    auto(x)
    assert active_units(auto, x, seed=0, num_samples=2).attrs["sites"] == ["z"]


def test_a_guide_without_latents_is_refused() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(torch.ones(len(x), 3)), infer={"enumerate": "parallel"})

    with pytest.raises(ValueError, match="the guide has no latent site, apart from enumerated and auxiliary sites"):
        active_units(guide, X, seed=0)
