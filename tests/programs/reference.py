"""Log-weights and log p(x) of each datum, computed with Pyro alone or with algebra, never with pyrovae."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor

from tests.programs.case import Case

Grid = tuple[Tensor, Tensor]  # values, and the logarithms of their quadrature weights


def normal_grid(points: int = 61, width: float = 6.0, *, dims: int = 0) -> Grid:
    """Return a grid for the integral over a real latent: the trapezoidal rule is exact for smooth densities.

    Args:
        points: Number of points.
        width: Largest value.
        dims: Number of event dimensions of the latent, each of size 1.
    """
    values = torch.linspace(-width, width, points)
    return values.reshape(-1, *[1] * dims), torch.full((points,), math.log(2 * width / (points - 1)))


def integrate(model: Callable[..., Any], data: Sequence[Any], grids: Mapping[str, Grid]) -> np.ndarray:
    """Return log p(x) of each datum, the sum of p(x, z) over the product of the grids of its latent sites.

    The model runs once for each datum, on as many copies of it as the product has points.
    """
    points = torch.cartesian_prod(*(torch.arange(len(values)) for values, _ in grids.values())).reshape(-1, len(grids))
    chosen = dict(zip(grids, points.T, strict=True))
    given = {name: grids[name][0][index] for name, index in chosen.items()}
    log_measure = sum(grids[name][1][index].double() for name, index in chosen.items())
    conditioned = pyro.condition(model, data=given)
    totals = []
    for args in copies(data, len(points)):
        trace = poutine.trace(conditioned).get_trace(*args)
        totals.append((per_copy([(1, trace)], len(points)) + log_measure).logsumexp(0).item())
    return np.array(totals)


def copies(data: Sequence[Any], number: int) -> list[tuple[Any, ...]]:
    """Return for each datum the arguments with a number of copies of it in place of the data."""
    size = len(next(part for part in data if isinstance(part, Tensor)))
    return [
        tuple(part[[index]].expand(number, *part.shape[1:]) if isinstance(part, Tensor) else part for part in data)
        for index in range(size)
    ]


def per_copy(traces: Sequence[tuple[int, Any]], number: int) -> Tensor:
    """Return the signed sum of the log-probabilities of traces for each copy of a datum, shape ``(number,)``."""
    total = torch.zeros(number, dtype=torch.double)
    for sign, trace in traces:
        trace.compute_log_prob()
        for site in trace.nodes.values():
            if site["type"] == "sample" and not poutine.util.site_is_subsample(site):
                log_prob = site["log_prob"].double()
                dim = log_prob.shape.index(number)
                total = total + sign * log_prob.movedim(dim, 0).reshape(number, -1).sum(-1)
    return total


def log_weights(case: Case, programs: Any, draws: int) -> np.ndarray:
    """Draw log p(x, z) - log q(z | x) with Pyro, shape ``(draws, N)``, nats.

    Model and guide run once for each datum, on as many copies of it as draws. A guide with parameters for each datum
    runs on all data once for each draw. With enumerated sites, the loss of one particle on one datum is minus its
    log-weight.
    """
    with torch.no_grad():
        if case.enumerated:
            elbo, data = case.elbo(), [case.datum(index) for index in range(case.size)]
            return -np.array(
                [[elbo.loss(programs.model, programs.guide, *datum) for datum in data] for _ in range(draws)]
            )
        if not case.by_datum:
            return torch.stack([_once(programs, case.data(), case.size) for _ in range(draws)]).numpy()
        return torch.stack([_once(programs, args, draws) for args in copies(case.data(), draws)], -1).numpy()


def _once(programs: Any, args: tuple[Any, ...], number: int) -> Tensor:
    guide = poutine.trace(programs.guide).get_trace(*args)
    model = poutine.trace(poutine.replay(programs.model, trace=guide)).get_trace(*args)
    return per_copy([(1, model), (-1, guide)], number)


@functools.lru_cache(maxsize=1)
def log_evidence(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Return log p(x) of each datum and its standard error, shapes ``(N,)``, nats."""
    if case.exact is not None:
        exact = np.asarray(case.exact(), dtype=float)
        return exact, np.zeros_like(exact)
    return summarize(log_weights(case, case.unpenalized(), case.draws))


def summarize(found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the log-mean of weights over their draws, and its standard error by the delta method."""
    top = found.max(0)
    weights = np.exp(found - top)
    error = weights.std(0, ddof=1) / weights.mean(0) / math.sqrt(len(found))
    return top + np.log(weights.mean(0)), error
