"""Stochastic linear regression fits normal posteriors exactly, settles datum by datum, and survives bad gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pyrovae._refinement.design import orthogonal_design
from pyrovae._refinement.posterior import value_and_gradient
from pyrovae._refinement.regression import fit
from tests._refinement.posteriors import ClosedForm, gaussian, log_gamma, normal_guide


@pytest.fixture(autouse=True)
def _seeded() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize(("num_points", "dim"), [(64, 1), (8, 2), (60, 5), (400, 200)])
def test_a_design_has_mean_zero_and_unit_second_moment(num_points: int, dim: int) -> None:
    points = orthogonal_design(num_points, dim, like=torch.zeros(1, dtype=torch.float64))
    identity = torch.eye(dim, dtype=torch.float64)
    assert points.shape == (num_points, dim)
    assert torch.allclose(points.mean(0), torch.zeros(dim, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(points.T @ points / num_points, identity, atol=1e-9)


def test_a_design_of_many_blocks_has_the_fourth_moment_of_a_normal_density() -> None:
    points = orthogonal_design(2000, 1, like=torch.zeros(1, dtype=torch.float64))
    assert float(points.pow(4).mean()) == pytest.approx(3.0, rel=0.02)


@pytest.mark.parametrize("dim", [1, 2, 50, 200])
@pytest.mark.parametrize(("shift", "scale"), [(0.0, 0.3), (2.0, 1.0), (0.0, 3.0)], ids=["narrow", "shifted", "wide"])
def test_a_normal_posterior_is_found_from_a_wrong_guide(dim: int, shift: float, scale: float) -> None:
    posterior = gaussian(2, dim, shift=shift, scale=scale)
    fitted = fit(posterior, rates=(1.0,) * 8, settled_gain=1e-9)
    assert torch.allclose(fitted.elbo, torch.full_like(fitted.elbo, 3.0), atol=1e-6)  # a tight ELBO is log p(x)
    covariance = fitted.density.root @ fitted.density.root.mT
    assert torch.allclose(covariance, posterior.parameters["covariance"], rtol=1e-3, atol=1e-5)
    assert torch.allclose(fitted.density.mean, posterior.parameters["mean"], atol=1e-3)


def test_float32_is_kept_and_the_inverse_root_stays_an_inverse() -> None:
    density = fit(gaussian(3, 50, scale=0.3, dtype=torch.float32)).density
    assert {density.mean.dtype, density.root.dtype, density.log_det.dtype} == {torch.float32}
    product = density.root @ density.inverse_root
    assert torch.allclose(product, torch.eye(50).expand_as(product), atol=1e-3)
    assert torch.allclose(density.root.double().det().abs().log().float(), density.log_det, atol=1e-3)


@pytest.mark.parametrize(("num_points", "expected"), [(None, 100), (1, 100), (199, 200), (200, 200)])
def test_the_number_of_points_is_raised_to_whole_blocks(num_points: int | None, expected: int) -> None:
    fitted = fit(gaussian(2, 50), num_points=num_points, rates=(), num_ascent_steps=0)
    assert fitted.evaluations.tolist() == [3 * expected] * 2


def test_evaluations_are_those_that_were_made_for_each_datum() -> None:
    easy, hard = log_gamma(3, 4), log_gamma(3, 4, shift=8.0, scale=0.2)
    parameters = {name: torch.cat([easy.parameters[name], hard.parameters[name]]) for name in easy.parameters}
    posterior = ClosedForm(easy.log_density, normal_guide, parameters)
    fitted = fit(posterior)
    assert (fitted.evaluations == 3 * posterior.gradients).all()
    assert fitted.rounds[:3].max() < fitted.rounds[3:].min()  # the data that have settled are left out


def test_the_number_of_gradients_per_evaluation_changes_no_result() -> None:
    u = torch.randn(7, 3, 4, dtype=torch.float64)
    posterior = log_gamma(3, 4)
    for whole, parts in zip(value_and_gradient(posterior, u), value_and_gradient(posterior, u, 5), strict=True):
        assert torch.equal(whole, parts)


def poisoned(bad: Tensor, region: float) -> ClosedForm:
    """Skewed posteriors whose density is NaN for the data ``bad`` where the first coordinate exceeds ``region``."""
    posterior = log_gamma(len(bad), 3)
    posterior.parameters["bad"] = bad
    clean = posterior.log_density

    def log_density(u: Tensor, bad: Tensor, **parameters: Tensor) -> Tensor:
        return clean(u, **parameters) + torch.where(bad & (u[..., 0] > region), torch.nan, 0.0) * u[..., 0]

    return ClosedForm(log_density, normal_guide, posterior.parameters)


@pytest.mark.parametrize("bad", [[1], [0, 2], [0, 1, 2, 3]])
def test_data_with_nan_gradients_fail_alone(bad: list[int]) -> None:
    mask = torch.zeros(4, dtype=torch.bool).index_fill(0, torch.tensor(bad), True)
    fitted = fit(poisoned(mask, region=-torch.inf))
    assert fitted.failed.tolist() == mask.tolist()
    assert fitted.density.mean.isfinite().all()
    assert fitted.density.root.isfinite().all()
    # Four skewed dimensions have an ELBO that is less than a nat below log p(x) = 0.
    assert ((fitted.elbo > -1) == ~mask).all()


def test_a_datum_with_nan_gradients_far_from_its_center_recovers() -> None:
    mask = torch.tensor([True, False])
    fitted = fit(poisoned(mask, region=2.4), rates=(0.5,) * 12)
    assert not fitted.failed.any()


def test_a_posterior_with_flat_tails_does_not_diverge() -> None:
    """Far from the mode the curvature vanishes, so that a full Newton step overshoots by orders of magnitude."""
    loc = torch.full((4, 6), 30.0, dtype=torch.float64)
    posterior = ClosedForm(
        lambda u, loc, scale: -3 * u.cosh().log().sum(-1),
        normal_guide,
        {"loc": loc, "scale": 0.1 * torch.ones_like(loc)},
    )
    fitted = fit(posterior, rates=(0.7,) * 20)
    log_p = 6 * torch.log(torch.tensor(torch.pi / 2))  # the integral of sech^3
    assert (fitted.elbo > log_p - 0.5).all()
    assert (fitted.density.mean.abs() < 0.5).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_points": 0}, "num_points must be at least 1, got 0"),
        ({"num_ascent_steps": -1}, "num_ascent_steps must not be negative, got -1"),
        ({"rates": (0.5, 0.0)}, r"each rate must lie in \(0, 1\], got rates=\(0.5, 0.0\)"),
    ],
)
def test_impossible_options_raise(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(gaussian(2, 2), **options)
