"""``impute`` agrees with exact posteriors, and refuses data, masks and programs that it cannot use."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyrovae as pv

Program = Callable[..., Any]
X = torch.rand(4, 2, 2, generator=torch.Generator().manual_seed(0)).round()
OBSERVED = torch.tensor([[True, False], [True, True]]).expand(4, 2, 2)


def programs(*, cut: bool) -> tuple[object, object]:
    """Return a program that observes all entries, or a part of the image, as Pyro's conditional VAE does."""

    def model(x: Tensor, mask: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            if cut:
                pyro.sample("x", dist.Bernoulli(logits=z[..., 1:]).to_event(1), obs=x.flatten(1)[:, 1:])
            else:
                bits = dist.Bernoulli(logits=z.unflatten(-1, (2, 2)))
                pyro.sample("x", bits.mask(mask.bool()).to_event(2), obs=x)

    def guide(x: Tensor, mask: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 4), 1.0).to_event(1))

    return model, guide


def test_a_site_with_a_part_of_the_entries() -> None:
    with pytest.raises(ValueError, match=r"site 'x' has entries of shape \(3,\) for a datum, .* have shape \(2, 2\)"):
        pv.evaluation.impute(*programs(cut=True), (X, OBSERVED), 10, seed=0)


def test_a_second_tensor_that_is_not_a_mask() -> None:
    with pytest.raises(ValueError, match="the mask holds values from -1 to 1"):
        pv.evaluation.impute(*programs(cut=True), (X, torch.where(OBSERVED, X, -1.0)), 10, seed=0)


def test_data_that_are_not_floating_point_numbers() -> None:
    message = r"got a tensor of dtype torch\.int64 and a tensor of dtype torch\.bool\. Pass \(torch\.as_tensor\(x\)"
    with pytest.raises(TypeError, match=message):
        pv.evaluation.impute(*programs(cut=False), (X.long(), OBSERVED), 10, seed=0)
    with pytest.raises(TypeError, match=r"got a ndarray and a ndarray\. Pass "):
        pv.evaluation.impute(*programs(cut=False), (X.numpy(), OBSERVED.numpy()), 10, seed=0)


@pytest.mark.parametrize("mask", [OBSERVED, OBSERVED.float(), OBSERVED.long()])
def test_masks_of_several_types(mask: Tensor) -> None:
    found = pv.evaluation.impute(*programs(cut=False), (X, mask), 2000, seed=0)
    assert torch.equal(torch.from_numpy(found["mean"].values)[OBSERVED], X[OBSERVED])
    assert abs(found["mean"].values[:, 0, 1] - 0.5).max() < 0.05


MASK = torch.tensor([[True, False]]).expand(3, 2)


def two_readings(offset: float, noise: float = 0.1) -> tuple[Program, Program]:
    """Return programs of two noisy readings of z, of which the first is observed, and the exact posterior of z."""

    def model(x: Tensor, mask: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(offset, 1.0)).unsqueeze(-1)
            pyro.sample("x", dist.Normal(z, torch.tensor([noise, 0.1])).mask(mask).to_event(1), obs=x)

    def guide(x: Tensor, mask: Tensor) -> None:
        variance = 1 / (1 + noise**-2)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(offset + (x[:, 0] - offset) * variance / noise**2, variance**0.5))

    return model, guide


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("offset", [0.0, 2000.0, 1e4])
def test_moments_of_data_far_from_zero(offset: float, vectorize: bool) -> None:
    num_samples = 2000 if vectorize else 200
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.5, 0.0]]) + offset
    found = pv.evaluation.impute(*two_readings(offset), (x, MASK), num_samples, seed=0, vectorize=vectorize)
    exact, of_z = (1 / 101 + 0.01) ** 0.5, 1 / 101
    error = of_z**0.5 / num_samples**0.5
    np.testing.assert_allclose(found["mean"][:, 1], offset + (x[:, 0] - offset) * 100 / 101, atol=4.5 * error + 1e-3)
    error = of_z * (2 / num_samples) ** 0.5 / (2 * exact)
    np.testing.assert_allclose(found["std"][:, 1], exact, atol=4.5 * error)
    assert (found["std"][:, 0] == 0).all()


@pytest.mark.parametrize("memory", [2**26, 2000])
def test_a_constant_column_has_standard_deviation_zero(memory: int) -> None:
    def model(x: Tensor, mask: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("w", dist.Normal(z, 1.0), obs=x[:, 0])
            pyro.sample("x", dist.Delta(torch.full_like(x, 2024.1)).mask(mask & False).to_event(1), obs=x)

    def guide(x: Tensor, mask: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    found = pv.evaluation.impute(model, guide, (torch.zeros(3, 2), MASK & False), 300, seed=0, memory=memory)
    assert (found["std"] == 0).all()
    assert (found["mean"] == torch.tensor(2024.1).numpy()).all()


def test_data_that_the_program_transforms_are_transformed_before_the_call() -> None:
    mean, std = torch.tensor([100.0, 200.0]), torch.tensor([10.0, 20.0])
    model, guide = two_readings(0.0)

    def standardized(program: Program) -> Program:
        return lambda x, mask: program((x - mean) / std, mask)

    x = torch.tensor([[110.0, 0.0], [90.0, 0.0], [105.0, 0.0]])
    with pytest.raises(ValueError, match=r"at site 'x', shape \(2, 2\), is neither a view nor a copy of an argument"):
        pv.evaluation.impute(standardized(model), standardized(guide), (x, MASK), 100, seed=0)
    found = pv.evaluation.impute(model, guide, ((x - mean) / std, MASK), 1000, seed=0)
    np.testing.assert_allclose(found["mean"][:, 1], (x[:, 0] - 100) / 10 * 100 / 101, atol=4.5 * 101**-0.5 / 1000**0.5)


def reversed_plates(observe: Callable[[Tensor], Tensor]) -> tuple[Program, Program]:
    """Return programs whose plates, from left to right, are in the reverse order of the dimensions of x."""

    def model(x: Tensor, mask: Tensor) -> None:
        loc = 10 * torch.arange(2)[:, None] + 100 * torch.arange(3)[:, None, None]
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("a", 2, dim=-2), pyro.plate("b", 3, dim=-3):
                pyro.sample("x", dist.Normal(z + loc, 0.1).mask(mask.permute(2, 1, 0)), obs=observe(x))

    def guide(x: Tensor, mask: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 0.1))

    return model, guide


LEVELS = (10 * torch.arange(2)[:, None] + 100 * torch.arange(3)).expand(2, 2, 3).float()
KNOWN = torch.tensor([[True, False, True], [False, True, True]]).expand(2, 2, 3)


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("fill", [0.0, float("nan")])
def test_plates_in_the_reverse_order(fill: float, vectorize: bool) -> None:
    def observe(x: Tensor) -> Tensor:
        return (x if fill == 0 else x.nan_to_num()).permute(2, 1, 0)

    x = torch.where(KNOWN, LEVELS, fill)
    options = {"num_imputations": 3, "seed": 0, "vectorize": vectorize}
    found = pv.evaluation.impute(*reversed_plates(observe), (x, KNOWN), 50, **options)
    np.testing.assert_allclose(found["mean"], LEVELS, atol=0.5)
    np.testing.assert_allclose(found["imputations"], LEVELS.expand(3, 2, 2, 3), atol=1)
    assert (found["std"].values[~KNOWN] > 0.05).all()


def test_a_copy_that_fits_in_two_orders() -> None:
    model, guide = reversed_plates(lambda x: x.nan_to_num().permute(2, 1, 0))
    with pytest.raises(
        ValueError, match=r"one argument in several orders\. Observe an argument itself or a view of it"
    ):
        pv.evaluation.impute(model, guide, (torch.zeros(2, 2, 3), KNOWN), 50, seed=0)


@pytest.mark.parametrize("observe", [lambda x: x.T, lambda x: x.nan_to_num().T, lambda x: x.T.contiguous()])
def test_data_observed_in_another_layout(observe: Callable[[Tensor], Tensor]) -> None:
    def model(x: Tensor, mask: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 5.0))
            with pyro.plate("entries", 3, dim=-2):
                loc = z + torch.arange(3.0).unsqueeze(-1)
                pyro.sample("x", dist.Normal(loc, 0.1).mask(mask.T), obs=observe(x))

    def guide(x: Tensor, mask: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x[:, 0], 0.1))

    whole = 10 * torch.arange(3.0).unsqueeze(1) + torch.arange(3.0)
    mask = torch.tensor([[True, False, True], [True, True, False], [True, True, True]])
    found = pv.evaluation.impute(model, guide, (torch.where(mask, whole, 0.0), mask), 300, seed=0)
    np.testing.assert_allclose(found["mean"], whole, atol=0.2)


@pytest.mark.parametrize(
    ("observe", "fill"), [(lambda x: x[:, :, None], 0.0), (lambda x: x.nan_to_num()[..., None], torch.nan)]
)
def test_a_dimension_of_size_one_and_a_filled_copy(observe: Callable[[Tensor], Tensor], fill: float) -> None:
    def model(x: Tensor, mask: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))[..., None, None]
            entries = dist.Normal(z, torch.full((2, 1), 0.1)).mask(mask[..., None])
            pyro.sample("x", entries.to_event(2), obs=observe(x))

    def guide(x: Tensor, mask: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, 0], 0.1))

    x = torch.tensor([[1.0, fill], [-1.0, fill], [0.5, fill]])
    found = pv.evaluation.impute(model, guide, (x, MASK), 1000, seed=0)
    np.testing.assert_allclose(found["mean"][:, 1], x[:, 0] * 100 / 101, atol=4.5 * 0.1 / 500**0.5)


def test_a_program_that_enumerates_a_label() -> None:
    """The posterior of both readings is a mixture with weights p(y | x) and, given the label, a normal."""
    centers, weights = torch.tensor([-1.0, 1.0]), torch.tensor([0.3, 0.7])

    def model(x: Tensor, mask: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(weights), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal((centers[y] + z).unsqueeze(-1), torch.ones(2)).mask(mask).to_event(1), obs=x)

    def guide(x: Tensor, mask: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.5, 0.0]])
    shares = (dist.Normal(centers, 2**0.5).log_prob(x[:, :1]) + weights.log()).softmax(-1)
    each = (x[:, :1] + centers) / 2  # E[x_1 | x_0, y] = m_y + (x_0 - m_y) / 2
    mean = (shares * each).sum(-1)
    std = (1.5 + (shares * each.square()).sum(-1) - mean.square()).sqrt()
    found = pv.evaluation.impute(model, guide, (x, MASK), 4000, num_imputations=2000, seed=0)
    np.testing.assert_allclose(found["mean"][:, 1], mean, atol=4.5 / found["ess"].min() ** 0.5)
    np.testing.assert_allclose(found["std"][:, 1], std, atol=4.5 / found["ess"].min() ** 0.5)
    np.testing.assert_allclose(found["imputations"].mean("imputation")[:, 1], mean, atol=4.5 * 1.3 / 1000**0.5)


def test_a_program_that_subsamples() -> None:
    def model(x: Tensor, mask: Tensor) -> None:
        with pyro.plate("data", 7, subsample_size=3) as batch:
            z = pyro.sample("z", dist.Normal(0.0, 50.0)).unsqueeze(-1)
            pyro.sample("x", dist.Normal(z, torch.full((2,), 0.1)).mask(mask[batch]).to_event(1), obs=x[batch])

    def guide(x: Tensor, mask: Tensor) -> None:
        with pyro.plate("data", 7, subsample_size=3) as batch:
            pyro.sample("z", dist.Normal(x[batch, 0], 0.1))

    x = 10 * torch.arange(7.0).unsqueeze(1).expand(7, 2)
    mask = torch.tensor([[True, False]]).expand(7, 2)
    found = pv.evaluation.impute(model, guide, (x * mask, mask), 200, num_imputations=2, seed=0)
    np.testing.assert_allclose(found["mean"], x, atol=0.1)
    np.testing.assert_allclose(found["imputations"], x.expand(2, 7, 2), atol=1)


@pytest.mark.parametrize("vectorize", [True, False])
def test_imputations_of_one_latent_draw_have_their_own_noise(vectorize: bool) -> None:
    """The posterior of z is much narrower than the guide, so few latent draws serve all imputations."""
    count, size = (500, 100) if vectorize else (60, 100)

    def model(x: Tensor, mask: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0)).unsqueeze(-1)
            pyro.sample("x", dist.Normal(z, torch.tensor([0.01, 1.0])).mask(mask).to_event(1), obs=x)

    def guide(x: Tensor, mask: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    data = torch.zeros(size, 2), torch.tensor([[True, False]]).expand(size, 2)
    found = pv.evaluation.impute(model, guide, data, 300, num_imputations=count, seed=0, vectorize=vectorize)
    missing = found["imputations"].values[..., 1]
    assert found["ess"].mean() < 10
    assert min(len(np.unique(missing[:, i])) for i in range(size)) > 0.95 * count
    assert abs(missing.var(0, ddof=1).mean() - 1) < 4.5 * (2 / (count - 1) / size) ** 0.5 + 2e-3
    assert (found["imputations"].values[..., 0] == 0).all()
