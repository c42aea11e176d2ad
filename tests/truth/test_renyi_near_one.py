"""The Rényi bound near alpha = 1 agrees with arithmetic of 50 digits, in value and gradient."""

import mpmath
import numpy as np
import pytest
import torch

from pyrovae.objectives import Renyi

SPREADS = {"narrow": 0.01, "usual": 1.0, "wide": 300.0}
ORDERS = [1e-2, 1e-5, -1e-5, 1e-7, 1e-8, -1e-8, 1e-12, -1e-15]


def exact(alpha: float, log_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Value and gradient of the bound of each datum, in 50 digits."""
    value, gradient = np.zeros(log_weights.shape[1]), np.zeros_like(log_weights, dtype=float)
    with mpmath.workdps(50):
        order = 1 - mpmath.mpf(alpha)
        for n, column in enumerate(log_weights.T):
            powers = [mpmath.exp(order * mpmath.mpf(float(w))) for w in column]
            value[n] = float(mpmath.log(mpmath.fsum(powers) / len(powers)) / order)
            gradient[:, n] = [float(power / mpmath.fsum(powers)) for power in powers]
    return value, gradient


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("order", ORDERS)
def test_near_one(order: float, spread: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    log_weights = (SPREADS[spread] * torch.randn(10, 4, generator=generator) - 100).to(dtype).requires_grad_()
    bound = Renyi(1 - order, 10).bound(log_weights)
    bound.sum().backward()
    value, gradient = exact(1 - order, log_weights.detach().numpy())
    rounding = 50 * torch.finfo(dtype).eps
    np.testing.assert_allclose(bound.detach().numpy(), value, rtol=rounding)
    assert log_weights.grad is not None
    np.testing.assert_allclose(log_weights.grad.numpy(), gradient, rtol=1000 * rounding, atol=1e-6)


def test_the_bound_has_no_step_where_the_formula_changes() -> None:
    log_weights = torch.tensor([[-1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    bounds = [float(Renyi(1 - order, 2).bound(log_weights)[0]) for order in (0.5 - 1e-9, 0.5 + 1e-9)]
    assert abs(bounds[1] - bounds[0]) < 1e-8


def test_a_draw_of_weight_zero_near_one() -> None:
    log_weights = torch.tensor([[-torch.inf], [0.0]], requires_grad=True)
    assert Renyi(0.5, 2).bound(log_weights).item() == pytest.approx(2 * np.log(0.5), rel=1e-6)
    assert Renyi(1 - 1e-8, 2).bound(log_weights).item() < -1e7
    assert Renyi(1.5, 2).bound(log_weights).item() == -np.inf
