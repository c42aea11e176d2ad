"""The statistic of a predictive check gets the arguments of the model, with replicates in the place of data."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import norm
from torch import Tensor

import pyrovae as pv
from pyrovae.evaluation import posterior_predictive_check

Program = Callable[..., Any]


def prior(x: Tensor, *others: Any) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))


def observing(observe: Callable[[Tensor], Tensor], size: int = 3, noise: float = 1.0) -> Program:
    """Return a program of entries that are z plus noise. It observes a tensor that it computes from its argument."""

    def model(x: Tensor, *others: Any) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0)).unsqueeze(-1)
            observed = observe(x)
            missing = x.isnan().reshape(observed.shape) if observed.numel() == x.numel() else observed.isnan()
            pyro.sample("x", dist.Normal(z, torch.full((size,), noise)).mask(~missing).to_event(1), obs=observed)

    return model


@pytest.mark.parametrize("others", [(), (0.5,), (torch.zeros(2),)])
def test_the_statistic_gets_the_argument_when_the_model_observes_a_part(others: tuple[Any, ...]) -> None:
    x = torch.tensor([[1.0, 10.0, 20.0], [1.0, 30.0, 40.0]])
    seen = []

    def statistic(x: Tensor, *others: Any) -> Tensor:
        seen.append(x)
        return x[:, 1]

    data = (x, *others) if others else x
    model = observing(lambda x: x[:, 1:], 2)
    check = posterior_predictive_check(model, prior, data, statistic, 50, num_draws=20, seed=0)
    np.testing.assert_array_equal(check.observed, [10, 30])
    assert all((values[:, 0] == 1).all() for values in seen)
    assert (check.replicated < 10).all()


def test_data_that_the_program_transforms_are_transformed_before_the_call() -> None:
    x = torch.tensor([[1.0, 10.0, 20.0], [1.0, 30.0, 40.0]])

    def total(x: Tensor) -> Tensor:
        return x.sum(-1)

    message = r"at site 'x', shape \(2, 3\), is neither a view nor a copy of an argument of the model.*\[\(2, 3\)\]"
    with pytest.raises(ValueError, match=message):
        posterior_predictive_check(observing(torch.log), prior, x, total, 50, num_draws=20, seed=0)
    check = posterior_predictive_check(
        observing(lambda x: x), prior, x.log(), lambda x: x.exp().sum(-1), 50, num_draws=20, seed=0
    )
    np.testing.assert_allclose(check.observed, [31, 71], rtol=1e-5)


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("observe", [lambda x: x, lambda x: x.clone()])
def test_plates_in_the_reverse_order(observe: Callable[[Tensor], Tensor], vectorize: bool) -> None:
    def model(x: Tensor) -> None:
        loc = 10 * torch.arange(2)[:, None] + 100 * torch.arange(3)[:, None, None]
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("a", 2, dim=-2), pyro.plate("b", 3, dim=-3):
                pyro.sample("x", dist.Normal(z + loc, 0.1), obs=observe(x.permute(2, 1, 0)))

    x = (10 * torch.arange(2)[:, None] + 100 * torch.arange(3)).expand(2, 2, 3).float()
    for b in range(3):
        check = posterior_predictive_check(
            model, prior, x, lambda x, b=b: x[:, 1, b], 50, num_draws=20, seed=0, vectorize=vectorize
        )
        np.testing.assert_array_equal(check.observed, x[:, 1, b])
        np.testing.assert_allclose(check.replicated, x[:, 1, b].expand(20, 2), atol=3)


@pytest.mark.parametrize("observe", [lambda x: x, lambda x: x.nan_to_num(), lambda x: x.nan_to_num().flatten(1)])
def test_missing_entries_are_missing_in_replicates(observe: Callable[[Tensor], Tensor]) -> None:
    """The statistic gets NaN at missing entries, also where the model observes a filled copy."""
    x = torch.arange(28.0).reshape(7, 2, 2) / 10
    x[0, 0, 1] = x[2, 1, 0] = torch.nan
    seen = []

    def statistic(x: Tensor) -> Tensor:
        seen.append(x)
        return x.nanmean((1, 2))

    def model(x: Tensor) -> None:
        observed = observe(x)
        scale = torch.ones(observed.shape[1:])
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            z = z.reshape(*z.shape, *(1,) * scale.ndim)
            known = ~x.isnan().reshape(observed.shape)
            pyro.sample("x", dist.Normal(z, scale).mask(known).to_event(scale.ndim), obs=observed)

    check = posterior_predictive_check(model, prior, x, statistic, 50, num_draws=20, seed=0)
    np.testing.assert_allclose(check.observed, x.nanmean((1, 2)))
    assert all(torch.equal(values.isnan(), x.isnan().repeat(len(values) // 7, 1, 1)) for values in seen)
    assert check.p_value.notnull().all()
    assert check.replicated.std("draw").min() > 0.3


def test_a_likelihood_that_ignores_nan_has_replicates_with_nan() -> None:
    likelihood = pv.likelihoods.Joint({("a", "b"): pv.likelihoods.Normal(pv.networks.mlp(1, 2), 1.0)})
    encoder = pv.networks.ZeroFilled(pv.networks.mlp((2, 2), 2), event_dim=1)
    x = torch.tensor([[1.0, torch.nan], [0.5, 0.2]])
    model = pv.VAE(pv.priors.StandardNormal(1), likelihood, pv.posteriors.DiagonalNormal(encoder)).model
    check = posterior_predictive_check(
        model, prior_of_vectors, x, lambda x: x.isnan().sum(-1), 50, num_draws=20, seed=0
    )
    assert (check.replicated == torch.tensor([1, 0]).numpy()).all()


def prior_of_vectors(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0).to_event(1))


@pytest.mark.parametrize("others", [(), (torch.zeros(4),)])
@pytest.mark.parametrize("convert", [lambda x: x, lambda x: x.float()])
def test_integers_have_the_p_values_of_floats(convert: Callable[[Tensor], Tensor], others: tuple[Tensor, ...]) -> None:
    def model(x: Tensor, *others: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=convert(x))

    def guide(x: Tensor, *others: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.8 * x, 0.2**0.5))

    x = torch.tensor([1, 2, 0, -1])
    first, second = (
        posterior_predictive_check(
            model, guide, (data, *others) if others else data, lambda x, *others: x, 4000, num_draws=2000, seed=0
        )
        for data in (x, x.float())
    )
    np.testing.assert_array_equal(first.p_value, second.p_value)
    np.testing.assert_array_equal(first.observed, x)
    exact = norm.sf((x - 0.8 * x) / (0.2 + 0.25) ** 0.5)
    np.testing.assert_allclose(first.p_value, exact, atol=4.5 * 0.5 / 1000**0.5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_counts(dtype: torch.dtype) -> None:
    """Counts above 255 do not wrap around, and a dtype that holds all replicates is kept."""
    seen = []

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 0.01))
            pyro.sample("x", dist.Poisson(250 * z.exp()), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 0.01))

    def statistic(x: Tensor) -> Tensor:
        seen.append(x.dtype)
        return x

    x = torch.full((5,), 250, dtype=dtype)
    check = posterior_predictive_check(model, guide, x, statistic, 200, num_draws=400, seed=0)
    error = 250**0.5 / 2000**0.5
    assert abs(float(check.replicated.mean()) - 250) < 4.5 * error + 2.5 / 10
    assert (check.observed == 250).all()
    assert set(seen) == {torch.int64 if dtype == torch.int64 else torch.float32}


def test_the_statistic_gets_floats_if_the_model_observes_a_copy_in_floats() -> None:
    x = torch.tensor([[0, 1, 2], [3, 4, 5]])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0)).unsqueeze(-1)
            pyro.sample("x", dist.Poisson(z.exp() * torch.ones(3)).to_event(1), obs=x.float())

    check = posterior_predictive_check(model, prior, x, lambda x: x.mean(-1), 50, num_draws=20, seed=0)
    np.testing.assert_array_equal(check.observed, [1, 4])


def test_integers_that_float32_cannot_hold() -> None:
    x = torch.tensor([2**24 + 1, 2**24 + 3])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + 2.0**24, 1.0 + 2.0**20), obs=x)

    check = posterior_predictive_check(model, prior, x, lambda x: x, 50, num_draws=20, seed=0)
    np.testing.assert_array_equal(check.observed, x)


def test_a_part_of_the_tuple_that_is_not_an_array_is_passed_on() -> None:
    seen = []

    def model(noise: float, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, noise), obs=x)

    def statistic(noise: float, x: Tensor) -> Tensor:
        seen.append(noise)
        return x

    def guide(noise: float, x: Tensor) -> None:
        prior(x)

    x = torch.linspace(-1, 1, 5)
    check = posterior_predictive_check(model, guide, (0.5, x), statistic, 200, num_draws=20, seed=0)
    np.testing.assert_array_equal(check.observed, x)
    assert set(seen) == {0.5}
    with pytest.raises(ValueError, match=r"a tensor of shape \(5,\) for data of shape \(5,\), got a float"):
        posterior_predictive_check(model, guide, (0.5, x), lambda noise, x: noise, 50, num_draws=20, seed=0)


def test_a_statistic_that_is_nan_has_a_p_value_that_is_nan() -> None:
    x = torch.tensor([-100.0, 0.1, 60.0])
    options = {"num_samples": 200, "num_draws": 40, "seed": 0}

    def model(x: Tensor) -> None:  # the posterior of each datum is near the datum
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x[:, 0], 1.0)).unsqueeze(-1)
            pyro.sample("x", dist.Normal(z, torch.ones(1)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, 0], 1.0))

    def statistic(x: Tensor) -> Tensor:
        return x[:, 0].where(x[:, 0] != -100, torch.nan).where((x[:, 0] > 0) | (x[:, 0] < -9), torch.nan)

    with pytest.warns(UserWarning, match=r"observed, replicated, p_value of data \[0, 1\] are NaN"):
        check = posterior_predictive_check(model, guide, x[:, None], statistic, **options)
    replicated = check.replicated.values
    assert np.isnan(check.observed.values).tolist() == [True, False, False]
    assert np.isnan(replicated).any(0).tolist() == [False, True, False]
    assert np.isnan(check.p_value.values).tolist() == [True, True, False]


def test_arguments_that_share_memory() -> None:
    """The second argument is observed, and the same tensor as first argument is a covariate."""
    x = torch.arange(4.0)

    def model(covariate: Tensor, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(100 + covariate, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:])

    def guide(covariate: Tensor, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(100 + covariate, 1.0))

    check = posterior_predictive_check(model, guide, (x, x), lambda covariate, x: x - covariate, 50, seed=0)
    np.testing.assert_array_equal(check.observed, 0)
    assert (check.replicated > 50).all()


def test_sites_of_different_entries_of_an_argument() -> None:
    """Sites with complementary masks each replace their own entries, but two sites cannot replace the same entry."""

    def program(second: Callable[[Tensor], Tensor]) -> Program:
        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("high", dist.Normal(z + 100, 1.0).mask(x > 50), obs=x)
                pyro.sample("low", dist.Normal(z, 1.0).mask(second(x)), obs=x)

        return model

    x = torch.tensor([100.0, 0.0, 101.0])
    check = posterior_predictive_check(program(lambda x: x <= 50), prior, x, lambda x: x, 200, num_draws=20, seed=0)
    np.testing.assert_allclose(check.replicated, x.expand(20, 3), atol=8)
    assert (check.replicated.std("draw") > 0.3).all()
    with pytest.raises(
        ValueError, match="site 'low' observes entries of argument 0 that an earlier site also observes"
    ):
        posterior_predictive_check(program(lambda x: x > -1), prior, x, lambda x: x, 50, num_draws=5, seed=0)


def test_an_expanded_datum_is_refused() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0))
            with pyro.plate("readings", 3, dim=-1):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0))

    x = torch.randn(4, 1)
    with pytest.raises(ValueError, match=r"shape \(4, 1\), is expanded to shape \(4, 3\).* Expand the data before"):
        posterior_predictive_check(model, guide, x, lambda x: x.sum(-1), 50, num_draws=5, seed=0)
    check = posterior_predictive_check(model, guide, x.expand(4, 3), lambda x: x.sum(-1), 50, num_draws=5, seed=0)
    np.testing.assert_allclose(check.observed, 3 * x[:, 0], rtol=1e-6)


def test_a_copy_that_fits_two_arguments() -> None:
    def model(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.double())

    data = torch.zeros(4), torch.zeros(4)
    with pytest.raises(ValueError, match=r"equals several arguments of the model.* convert.* do so before the call"):
        posterior_predictive_check(model, prior, data, lambda x, y: x, 50, num_draws=5, seed=0)
    check = posterior_predictive_check(model, prior, tuple(map(Tensor.double, data)), lambda x, y: x, 50, seed=0)
    assert check.replicated.std() > 0.3


@pytest.mark.parametrize("known", [0, 2])
def test_labels_that_are_partly_known(known: int) -> None:
    """The model of M2 observes the known labels and an arbitrary class where the label is unknown."""
    vae = pv.SemiSupervisedVAE(
        prior=pv.priors.StandardNormal(1),
        label_prior=dist.OneHotCategorical(torch.tensor([0.2, 0.3, 0.5])),
        likelihood=pv.likelihoods.Normal(pv.networks.Joint(pv.networks.mlp(4, 3), event_dims=(1, 1)), 1.0),
        posterior=pv.posteriors.DiagonalNormal(pv.networks.Joint(pv.networks.mlp(6, 2), event_dims=(1, 1))),
        classifier=pv.posteriors.OneHotCategorical(pv.networks.mlp(3, 3)),
    )
    x, y = torch.randn(4, 3), torch.eye(3)[[0, 1, 2, 2]]
    y[known:] = 0
    check = posterior_predictive_check(vae, (x, y), lambda x, y: y.sum(-1), 50, num_draws=20, seed=0)
    labelled = np.arange(4) < known
    np.testing.assert_array_equal(check.observed, labelled)
    np.testing.assert_array_equal(check.replicated, np.broadcast_to(labelled, (20, 4)))
