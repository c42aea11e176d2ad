"""Values and gradients of every distribution against mpmath, in float32 and float64, at zeros, limits and extremes."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import mpmath as mp
import pyro.distributions as dist
import pytest
import torch

from pyrovae import distributions as own

mp.mp.dps = 150


class Case(NamedTuple):
    """A family with its exact log-density, a function of value and parameters, and the points of the comparison."""

    make: Callable[..., Any]
    exact: Callable[..., Any]
    points: Sequence[tuple[float, ...]]  # the value, then the parameters


def sigmoid(s: Any) -> Any:
    return 1 / (1 + mp.exp(-s))


def log_sigmoid(s: Any) -> Any:
    return -mp.log1p(mp.exp(-s))


def continuous_bernoulli(x: Any, s: Any) -> Any:
    return s * x - (mp.log(mp.expm1(s) / s) if s else mp.mpf(0))


def negative_binomial(n: Any, r: Any, s: Any) -> Any:
    odds = r * log_sigmoid(-s) + n * log_sigmoid(s)
    return odds + mp.loggamma(r + n) - mp.loggamma(r) - mp.loggamma(n + 1)


def binomial(n: Any, s: Any, total: int = 16) -> Any:
    return mp.log(mp.binomial(total, n)) + n * log_sigmoid(s) + (total - n) * log_sigmoid(-s)


def beta(x: Any, a: Any, b: Any) -> Any:
    constant = mp.loggamma(a + b) - mp.loggamma(a) - mp.loggamma(b)
    return constant + (a - 1) * mp.log(x) + (b - 1) * mp.log1p(-x)


def student_t(x: Any, df: Any, loc: Any, scale: Any) -> Any:
    constant = mp.loggamma((df + 1) / 2) - mp.loggamma(df / 2) - mp.log(mp.pi * df) / 2 - mp.log(scale)
    return constant - (df + 1) / 2 * mp.log1p(((x - loc) / scale) ** 2 / df)


def normal(x: Any, loc: Any, scale: Any) -> Any:
    return -(((x - loc) / scale) ** 2) / 2 - mp.log(scale) - mp.log(2 * mp.pi) / 2


def laplace(x: Any, loc: Any, scale: Any) -> Any:
    return -abs(x - loc) / scale - mp.log(2 * scale)


def discretized_logistic(n: Any, loc: Any, scale: Any, levels: int = 256) -> Any:
    above, below = (((n + half) / (levels - 1) - loc) / scale for half in (mp.mpf(0.5), mp.mpf(-0.5)))
    if n == 0:
        return log_sigmoid(above)
    if n == levels - 1:
        return log_sigmoid(-below)
    return log_sigmoid(above) + log_sigmoid(-below) + mp.log(-mp.expm1(below - above))


def zero_inflated_poisson(n: Any, log_rate: Any, gate: Any) -> Any:
    counts = log_sigmoid(-gate) + n * log_rate - mp.exp(log_rate) - mp.loggamma(n + 1)
    return mp.log(sigmoid(gate) + mp.exp(counts)) if n == 0 else counts


def discretized(loc: torch.Tensor, scale: torch.Tensor) -> own.DiscretizedLogistic:
    return own.DiscretizedLogistic(loc, scale, 256)


LOGITS = (-1e4, -200.0, -30.0, -1.0, -0.49, -0.051, -1e-3, -1e-30, 0.0, 1e-8, 1e-3, 0.049, 0.3, 0.51, 1.0, 20.0, 1e4)
COUNTS = (0.0, 1.0, 7.0, 1000.0, 1e6)
CASES = {
    "ContinuousBernoulli": Case(
        lambda s: own.ContinuousBernoulli(logits=s),
        continuous_bernoulli,
        [(x, s) for x in (0.0, 1e-6, 0.25, 0.5, 0.999, 1.0) for s in LOGITS],
    ),
    "Bernoulli": Case(
        lambda s: dist.Bernoulli(logits=s),
        lambda x, s: x * log_sigmoid(s) + (1 - x) * log_sigmoid(-s),
        [(x, s) for x in (0.0, 1.0) for s in LOGITS],
    ),
    "Binomial": Case(
        lambda s: own.Binomial(16, logits=s),
        binomial,
        [(n, s) for n in (0.0, 5.0, 16.0) for s in (-200.0, -5.0, -1e-6, 0.0, 0.3, 30.0)],
    ),
    "Binomial of many trials": Case(
        lambda s: own.Binomial(10**6, logits=s),
        partial(binomial, total=10**6),
        [(n, s) for n in (0.0, 1.0, 1e3, 499_000.0, 1e6) for s in (-200.0, -7.0, 0.0, 0.3, 30.0)],
    ),
    "Poisson": Case(
        own.Poisson,
        lambda n, s: n * s - mp.exp(s) - mp.loggamma(n + 1),
        [(n, s) for n in COUNTS for s in (-200.0, -20.0, -1.0, 0.0, 2.0, 6.9, 7.5, 13.8, 40.0)],
    ),
    "NegativeBinomial": Case(
        lambda r, s: own.NegativeBinomial(r, logits=s),
        negative_binomial,
        [
            (n, r, log_mean - float(mp.log(r)))
            for n in COUNTS
            for r in (1e-30, 1e-3, 1.0, 15.99, 16.0, 16.01, 60.0, 1e3, 1e6, 1e12, 1e26, 1e30)
            for log_mean in (-60.0, -3.0, 0.0, 1.9, 6.9, 13.9)
        ],
    ),
    "zero-inflated Poisson": Case(
        lambda s, gate: dist.ZeroInflatedDistribution(own.Poisson(s), gate_logits=gate),
        zero_inflated_poisson,
        [(n, s, gate) for n in (0.0, 3.0, 1e4) for s in (-100.0, 0.0, 9.2) for gate in (-100.0, -1.0, 0.0, 50.0)],
    ),
    "Beta": Case(
        own.Beta,
        beta,
        [
            (x, a, b)
            for x in (1e-30, 1e-4, 0.25, 0.5, 0.75, 1 - 2.0**-20)
            for a in (1e-6, 1.0, 3.5, 50.0, 1e6)
            for b in (1e-3, 1.0, 15.0, 1e6)
        ],
    ),
    "Normal": Case(
        dist.Normal,
        normal,
        [(x, loc, scale) for x in (-3.0, 0.0, 1e4) for loc in (0.0, 2.0) for scale in (1e-6, 1e-2, 1.0, 1e8)],
    ),
    "Laplace": Case(
        dist.Laplace,
        laplace,
        [(x, loc, scale) for x in (-3.0, 0.5, 1e4) for loc in (0.0, 2.0) for scale in (1e-6, 1.0, 1e8)],
    ),
    "StudentT": Case(
        own.StudentT,
        student_t,
        [
            (x, df, loc, scale)
            for x in (0.0, 1.5, 1e6, 1e25)
            for df in (0.1, 1.0, 4.0, 39.9, 40.1, 1e3, 1e7)
            for loc in (0.0, 1.0)
            for scale in (1e-3, 1.0, 1e3)
        ],
    ),
    "DiscretizedLogistic": Case(
        discretized,
        discretized_logistic,
        [
            (n, loc, scale)
            for n in (0.0, 1.0, 100.0, 254.0, 255.0)
            for loc in (-1.0, 0.0, 0.375, 1.0)
            for scale in (1e-5, 1e-3, 0.1, 1.0, 1e4)
        ],
    ),
}


def derivatives(exact: Callable[..., Any], value: Any, parameters: list[Any]) -> tuple[list[Any], list[float]]:
    """Return the gradient, and the change of each entry if every parameter changes by its own size."""
    orders = [tuple(int(i == j) for j in range(len(parameters))) for i in range(len(parameters))]
    step = mp.mpf(10) ** -40

    def partial(at: list[Any], i: int) -> Any:
        size = step * (abs(at[i]) or 1)
        up, down = ([p + sign * size * (j == i) for j, p in enumerate(at)] for sign in (1, -1))
        return (exact(value, *up) - exact(value, *down)) / (2 * size)

    gradient, movement = [], []
    for i, _ in enumerate(orders):
        gradient.append(partial(parameters, i))
        total = mp.mpf(0)
        for j, parameter in enumerate(parameters):
            size = mp.mpf(10) ** -10 * (abs(parameter) or 1)
            moved = [p + size * (k == j) for k, p in enumerate(parameters)]
            total += abs((partial(moved, i) - gradient[-1]) / size * parameter)
        movement.append(float(total))
    return gradient, movement


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient(name: str, dtype: torch.dtype) -> None:
    """Errors are at most 64 roundings of the result, or of its change under a rounding of each parameter."""
    case, eps = CASES[name], 64 * torch.finfo(dtype).eps
    wrong = []
    for point in case.points:
        value, *parameters = (torch.tensor(number, dtype=dtype) for number in point)
        leaves = [parameter.requires_grad_() for parameter in parameters]
        log_prob = case.make(*leaves).log_prob(value)
        gradient = torch.autograd.grad(log_prob, leaves)
        x, *at = (mp.mpf(part.item()) for part in (value, *leaves))
        exact = case.exact(x, *at)
        slopes, movements = derivatives(case.exact, x, at)
        allowed = eps * (1 + abs(exact) + sum(abs(p * slope) for p, slope in zip(at, slopes, strict=True)))
        if abs(exact) < torch.finfo(dtype).max and not abs(log_prob.item() - exact) <= allowed:
            wrong.append(f"log p{point} = {log_prob.item()}, not {float(exact)}")
        for i, (found, slope, movement) in enumerate(zip(gradient, slopes, movements, strict=True)):
            # In units of the result per relative change, as a network gives a log-scale or a log-rate.
            unit = max(abs(at[i]), 1)
            if not abs(found.item() - slope) <= eps * (abs(slope) + movement + 1 / unit):
                wrong.append(f"slope {i} at {point} = {found.item()}, not {float(slope)}")
    assert not wrong, f"{len(wrong)} of {len(case.points)}: {wrong[:6]}"


def quantile(p: Any, s: Any) -> Any:
    return mp.log1p(p * mp.expm1(s)) / s if s else p


def mean(s: Any) -> Any:
    return 1 / (1 - mp.exp(-s)) - 1 / s if s else mp.mpf(0.5)


def variance(s: Any) -> Any:
    return 1 / s**2 - mp.exp(-s) / mp.expm1(-s) ** 2 if s else mp.mpf(1) / 12


def entropy(s: Any) -> Any:
    return -(s * mean(s)) + (mp.log(mp.expm1(s) / s) if s else 0)


FUNCTIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[float, ...]]] = {
    "mean": (lambda p, _: p.mean, lambda _, s: mean(s), (0.0,)),
    "variance": (lambda p, _: p.variance, lambda _, s: variance(s), (0.0,)),
    "entropy": (lambda p, _: p.entropy(), lambda _, s: entropy(s), (0.0,)),
    "cdf": (lambda p, x: p.cdf(x), lambda x, s: mp.expm1(s * x) / mp.expm1(s) if s else x, (0.0, 1e-6, 0.3, 0.9, 1.0)),
    "icdf": (lambda p, x: p.icdf(x), quantile, (1e-6, 0.3, 0.5, 0.9, 1 - 2.0**-20)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_the_continuous_bernoulli(name: str, dtype: torch.dtype) -> None:
    function, exact, arguments = FUNCTIONS[name]
    eps, wrong = 64 * torch.finfo(dtype).eps, []
    for argument in arguments:
        for number in LOGITS:
            x, s = torch.tensor(argument, dtype=dtype), torch.tensor(number, dtype=dtype, requires_grad=True)
            found = function(own.ContinuousBernoulli(logits=s), x)
            (slope,) = torch.autograd.grad(found, s)
            at = mp.mpf(x.item()), mp.mpf(s.item())
            right, (right_slope,) = exact(*at), derivatives(exact, at[0], [at[1]])[0]
            if not abs(found.item() - right) <= eps or not abs(slope.item() - right_slope) <= eps:
                wrong.append((argument, number, found.item(), float(right), slope.item(), float(right_slope)))
    assert not wrong


def test_draws_of_the_continuous_bernoulli_carry_the_gradient_of_their_quantiles() -> None:
    s = torch.zeros(20_000, requires_grad=True)
    draws = own.ContinuousBernoulli(logits=s).rsample()
    (slope,) = torch.autograd.grad(draws.sum(), s)
    torch.testing.assert_close(
        slope, draws.detach() * (1 - draws.detach()) / 2
    )  # the slope of x(p, s) at s = 0, where x = p
    certain = torch.full((3,), 1e4, requires_grad=True)
    quantiles = own.ContinuousBernoulli(logits=certain).icdf(torch.tensor([0.0, 0.5, 1.0]))
    assert torch.autograd.grad(quantiles.sum(), certain)[0].isfinite().all()


def test_divergence_of_continuous_bernoullis() -> None:
    p, q = (own.ContinuousBernoulli(logits=torch.tensor([s, 0.0, 40.0]).double()) for s in (0.0, 2.0))
    x = torch.linspace(0, 1, 200_001).double().unsqueeze(-1)
    density = p.log_prob(x)
    expected = torch.trapezoid(density.exp() * (density - q.log_prob(x)), x, dim=0)
    torch.testing.assert_close(torch.distributions.kl_divergence(p, q), expected, atol=1e-7, rtol=1e-6)
