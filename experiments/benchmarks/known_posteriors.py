"""Estimates of log p(x) for programs whose log p(x) is known.

The posteriors have several modes, long tails, or the shape of a funnel, and the guides are broad. Each latent dimension
of a program is independent of all others, or a scale connects them, so that log p(x) is a sum of integrals over one
variable. The experiment compares ``log_likelihood`` and ``evaluate`` with these integrals: it reports the fraction of
data with reliable estimates, and the errors of these estimates.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
import tyro
from torch import Tensor

import pyrovae as pv
from experiments.benchmarks import training

GRID = torch.linspace(-30.0, 30.0, 60001, dtype=torch.float64)
STANDARD = dist.Normal(torch.tensor(0.0, dtype=torch.float64), 1.0)


class Known(NamedTuple):
    """A model, a guide, data, and the exact log p(x) of each datum, nats."""

    model: Callable[[Tensor], None]
    guide: Callable[[Tensor], None]
    x: Tensor
    exact: Tensor


@dataclass
class Options:
    """Options of the experiment."""

    num_data: int = 300
    """Number of data of each program."""
    num_samples: int = 5000
    """Draws of ``evaluate`` from the guide."""
    seed: int = 0
    """Seed of the data and of the estimates."""
    device: str = "cpu"
    """Device of the estimates."""
    out: Path = Path("results/benchmarks")
    """Folder of the results."""


def main(options: Options) -> pd.DataFrame:
    """Estimate log p(x) of all programs. Print and write the table."""
    rows = {}
    for name, make in PROGRAMS.items():
        with torch.random.fork_rng():
            torch.manual_seed(options.seed)
            known = make(options.num_data)
        pair = known.model, known.guide, known.x.to(options.device)
        by_guide = pv.evaluation.evaluate(*pair, options.num_samples, seed=options.seed, progress=False)
        quoted = pv.evaluation.log_likelihood(*pair, seed=options.seed, progress=False)
        reliable = pv.evaluation.diagnose(by_guide).verdict.values == "reliable"
        rows[name] = {
            **{f"guide: {key}": value for key, value in summary(by_guide, known.exact, reliable).items()},
            **summary(quoted, known.exact, quoted.reliable.values),
            "evaluations": f"{float(quoted.evaluations.mean()):,.0f}",
        }
        print(name, rows[name], flush=True)
    table = pd.DataFrame(rows).T
    print(table.to_string())
    training.write(options, "known_posteriors", table, {})
    return table


def summary(result: Any, exact: Tensor, reliable: np.ndarray) -> dict[str, str]:
    """Return the fraction of reliable estimates and, over these, the mean error and the coverage of two errors."""
    errors = (result.log_likelihood.values - exact.numpy())[reliable]
    if not len(errors):
        return {"reliable": "0%", "mean error": "", "within two errors": ""}
    within = np.abs(errors) < 2 * result.mcse.values[reliable]
    spread = errors.std(ddof=1) / len(errors) ** 0.5 if len(errors) > 1 else math.nan
    return {
        "reliable": f"{reliable.mean():.0%}",
        "mean error": f"{errors.mean():.3f} ± {spread:.3f}",
        "within two errors": f"{within.mean():.0%}",
    }


def integral(log_values: Tensor) -> Tensor:
    """Return the log of the integral over ``GRID`` of the exponential of the values, over the last dimension."""
    return log_values.logsumexp(-1) + math.log(float(GRID[1] - GRID[0]))


def magnitudes(num_data: int, *, dim: int, factor: float) -> Known:
    """Only the magnitudes of z are observed, so the posterior has 2^D equal modes; the guide is the prior."""
    z = torch.randn(num_data, dim)
    x = (factor * z).abs() + 0.3 * torch.randn(num_data, dim)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(dim), 1.0).to_event(1))
            pyro.sample("x", dist.Normal((factor * z).abs(), 0.3).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0).to_event(1))

    likelihood = dist.Normal((factor * GRID).abs(), 0.3).log_prob(x.double()[..., None])
    return Known(model, guide, x, integral(STANDARD.log_prob(GRID) + likelihood).sum(-1))


def parabolas(num_data: int, *, dim: int, curvature: float, scale: float) -> Known:
    """The second latent is a noisy square of the first, so the posterior is curved; the guide is the prior of both."""
    z = torch.randn(num_data, dim)
    x = curvature * z**2 + scale * 2**0.5 * torch.randn(num_data, dim)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(torch.zeros(dim), 1.0).to_event(1))
            z2 = pyro.sample("z2", dist.Normal(curvature * z1**2, scale).to_event(1))
            pyro.sample("x", dist.Normal(z2, scale).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z1", dist.Normal(torch.zeros_like(x), 1.0).to_event(1))
            pyro.sample("z2", dist.Normal(x, scale).to_event(1))

    likelihood = dist.Normal(curvature * GRID**2, scale * 2**0.5).log_prob(x.double()[..., None])
    return Known(model, guide, x, integral(STANDARD.log_prob(GRID) + likelihood).sum(-1))


def ridge(num_data: int, *, dim: int, curvature: float, scale: float) -> Known:
    """The posterior is a curved ridge: given the first latent, the others are near a quadratic function of it."""
    z = torch.randn(num_data, dim)

    def bend(first: Tensor) -> Tensor:
        return curvature * (first**2 - 1)

    x = z[:, 1:] - bend(z[:, :1]) + scale * torch.randn(num_data, dim - 1)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(dim), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z[..., 1:] - bend(z[..., :1]), scale).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), dim), 0.7).to_event(1))

    likelihood = dist.Normal(-bend(GRID), (1 + scale**2) ** 0.5).log_prob(x.double()[..., None]).sum(-2)
    return Known(model, guide, x, integral(STANDARD.log_prob(GRID) + likelihood))


def waves(num_data: int, *, scale: float) -> Known:
    """A sine of z is observed, so the posterior has about eight narrow modes; the guide is narrow, at one of them."""
    x = 2 * (6 * torch.randn(num_data)).sin() + scale * torch.randn(num_data)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 2.0))
            pyro.sample("x", dist.Normal(2 * (3 * z).sin(), scale), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x / 2).clamp(-1, 1).asin() / 3, 0.05))

    likelihood = dist.Normal(2 * (3 * GRID).sin(), scale).log_prob(x.double()[:, None])
    return Known(model, guide, x, integral(dist.Normal(0.0, 2.0).log_prob(GRID) + likelihood))


def clusters(num_data: int, *, scale: float) -> Known:
    """A datum has two groups of entries and outliers, so the posterior has a mode in each group; the guide has none."""
    centers = 3 * torch.randn(num_data, 2)
    x = centers.repeat_interleave(3, -1) + scale * torch.randn(num_data, 6)
    weights, scales = torch.tensor([0.9, 0.1]), torch.tensor([scale, 10.0])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 3.0))
            parts = dist.Normal(z[..., None, None].expand(*z.shape, 6, 2), scales)
            pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(weights), parts).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.mean(-1), 0.5))

    parts = [
        weight.log() + dist.Normal(GRID, s).log_prob(x.double()[..., None])
        for weight, s in zip(weights, scales, strict=True)
    ]
    likelihood = torch.stack(parts).logsumexp(0).sum(1)
    return Known(model, guide, x, integral(dist.Normal(0.0, 3.0).log_prob(GRID) + likelihood))


def spikes(num_data: int, *, dim: int, width: float) -> Known:
    """Each latent has a spike-and-slab prior; the guide covers the slab."""
    is_spike = torch.rand(num_data, dim) < 0.5
    x = torch.where(is_spike, width, 3.0) * torch.randn(num_data, dim) + torch.randn(num_data, dim)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            parts = dist.Normal(torch.zeros(len(x), dim, 2), torch.tensor([width, 3.0]))
            prior = dist.MixtureSameFamily(dist.Categorical(torch.ones(2) / 2), parts)
            z = pyro.sample("z", prior.to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.9 * x, 1.0).to_event(1))

    parts = [dist.Normal(0.0, (1 + scale**2) ** 0.5).log_prob(x.double()) for scale in (width, 3.0)]
    return Known(model, guide, x, (torch.logaddexp(*parts) - math.log(2)).sum(-1))


def counts(num_data: int, *, dim: int, scale: float) -> Known:
    """Poisson counts with log-normal rates; the posterior of a small count has a long tail."""
    x = torch.poisson((scale * torch.randn(num_data, dim) - 1).exp())

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(-torch.ones(dim), scale).to_event(1))
            pyro.sample("x", dist.Poisson(z.exp()).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x + 0.3).log(), 1 / (x + 0.5).sqrt()).to_event(1))

    prior = STANDARD.log_prob((GRID + 1) / scale) - math.log(scale)
    return Known(model, guide, x, integral(prior + dist.Poisson(GRID.exp()).log_prob(x.double()[..., None])).sum(-1))


def heavy_tails(num_data: int, *, dim: int, freedom: float) -> Known:
    """A Student's t prior with a normal likelihood; the guide is normal."""
    x = dist.StudentT(freedom).sample((num_data, dim)) + torch.randn(num_data, dim)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.StudentT(torch.full((dim,), freedom)).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.7 * x, 0.8).to_event(1))

    center = x.double()[..., None]  # the grid is centered at x, because x may be far from 0
    prior = dist.StudentT(torch.tensor(freedom, dtype=torch.float64)).log_prob(center + GRID)
    return Known(model, guide, x, integral(prior + STANDARD.log_prob(GRID)).sum(-1))


def funnel(num_data: int, *, dim: int, scale: float) -> Known:
    """A latent v is the log of the scale of all other latents; the guide is normal."""
    v = 1.5 * torch.randn(num_data, 1)
    x = v.exp() * torch.randn(num_data, dim) + scale * torch.randn(num_data, dim)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            v = pyro.sample("v", dist.Normal(0.0, 1.5))
            z = pyro.sample("z", dist.Normal(0.0, v.exp()[..., None].expand(*v.shape, dim)).to_event(1))
            pyro.sample("x", dist.Normal(z, scale).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("v", dist.Normal(x.abs().mean(-1).log().clamp(-2, 2), 1.0))
            pyro.sample("z", dist.Normal(0.9 * x, scale + 0.1).to_event(1))

    deviation = ((2 * GRID).exp() + scale**2).sqrt()
    prior = STANDARD.log_prob(GRID / 1.5) - math.log(1.5)
    return Known(model, guide, x, integral(prior + _normal_likelihood(x, deviation)))


def positive_scale(num_data: int, *, dim: int) -> Known:
    """A latent with a half-Cauchy prior is the scale of all other latents, as in the model of the eight schools."""
    tau = dist.HalfCauchy(1.0).sample((num_data, 1)).clamp_max(20.0)
    x = tau * torch.randn(num_data, dim) + torch.randn(num_data, dim)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            tau = pyro.sample("tau", dist.HalfCauchy(1.0))
            z = pyro.sample("z", dist.Normal(torch.zeros(dim), tau[..., None]).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("tau", dist.LogNormal(x.std(-1).log(), 0.7))
            pyro.sample("z", dist.Normal(0.8 * x, 0.7).to_event(1))

    prior = dist.HalfCauchy(torch.tensor(1.0, dtype=torch.float64)).log_prob(GRID.exp()) + GRID
    return Known(model, guide, x, integral(prior + _normal_likelihood(x, ((2 * GRID).exp() + 1).sqrt())))


def noise_scale(num_data: int, *, dim: int) -> Known:
    """A latent v is the log of the scale of the noise, and the other latents can fit the data exactly."""
    v = 1.5 * torch.randn(num_data, 1) - 1
    x = torch.randn(num_data, dim) + v.exp() * torch.randn(num_data, dim)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            v = pyro.sample("v", dist.Normal(-1.0, 1.5))
            z = pyro.sample("z", dist.Normal(torch.zeros(dim), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, v.exp()[..., None]).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("v", dist.Normal(-torch.ones(len(x)), 1.0))
            pyro.sample("z", dist.Normal(0.9 * x, 0.4).to_event(1))

    prior = STANDARD.log_prob((GRID + 1) / 1.5) - math.log(1.5)
    return Known(model, guide, x, integral(prior + _normal_likelihood(x, ((2 * GRID).exp() + 1).sqrt())))


def _normal_likelihood(x: Tensor, deviation: Tensor) -> Tensor:
    """Return the sum over the entries of x of normal log-densities with mean 0, at each point of ``GRID``."""
    return sum((dist.Normal(0.0, deviation).log_prob(part[:, None]) for part in x.double().T), torch.zeros(()))


PROGRAMS: dict[str, Callable[[int], Known]] = {
    "4 modes": lambda n: magnitudes(n, dim=2, factor=2.0),
    "16 modes": lambda n: magnitudes(n, dim=4, factor=1.0),
    "2 curved modes": lambda n: parabolas(n, dim=1, curvature=1.0, scale=0.3),
    "32 curved modes": lambda n: parabolas(n, dim=5, curvature=1.0, scale=0.3),
    "curved ridge": lambda n: ridge(n, dim=6, curvature=0.5, scale=0.3),
    "sharp curved ridge": lambda n: ridge(n, dim=6, curvature=1.0, scale=0.1),
    "8 modes, narrow guide": lambda n: waves(n, scale=0.1),
    "2 modes, guide between them": lambda n: clusters(n, scale=0.2),
    "spike and slab": lambda n: spikes(n, dim=2, width=0.01),
    "counts": lambda n: counts(n, dim=10, scale=2.0),
    "heavy tails": lambda n: heavy_tails(n, dim=10, freedom=2.0),
    "funnel, 30 latents": lambda n: funnel(n, dim=30, scale=1.0),
    "funnel, 9 latents": lambda n: funnel(n, dim=9, scale=0.5),
    "funnel with a positive scale": lambda n: positive_scale(n, dim=8),
    "scale of the noise": lambda n: noise_scale(n, dim=5),
}


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
