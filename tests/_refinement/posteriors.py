"""Posteriors with a known log p(x), for tests of guides that are fitted to each datum."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor
from torch.distributions import (
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    StudentT,
)

Parameters = dict[str, Tensor]

STANDARD = Normal(torch.zeros((), dtype=torch.float64), 1.0)


@dataclass
class ClosedForm:
    """Densities ``log_density(u, **parameters)`` with a guide; each parameter has the data as its first dimension.

    Attributes:
        gradients: Number of gradients so far, for each datum.
    """

    log_density: Callable[..., Tensor]
    guide: Callable[..., Distribution]
    parameters: Parameters
    gradients: Tensor = field(default=None)  # type: ignore[assignment]
    indices: Tensor = field(default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        first = next(iter(self.parameters.values()))
        self.size, self.cuttable = len(first), True
        self.dim = self.guide(**self.parameters).event_shape[0]
        if self.gradients is None:
            self.gradients = torch.zeros(self.size, dtype=torch.long)
            self.indices = torch.arange(self.size)

    def draw(self, num_samples: int) -> tuple[Tensor, Tensor]:
        guide = self.guide(**self.parameters)
        u = guide.sample((num_samples,))
        return u, guide.log_prob(u)

    def log_joint(self, u: Tensor) -> Tensor:
        if u.requires_grad:
            self.gradients[self.indices] += len(u)
        return self.log_density(u, **self.parameters)

    def log_densities(self, u: Tensor) -> tuple[Tensor, Tensor]:
        return self.log_density(u, **self.parameters), self.guide(**self.parameters).log_prob(u)

    def subset(self, indices: Tensor) -> Self:
        parameters = {name: value[indices] for name, value in self.parameters.items()}
        return replace(self, parameters=parameters, indices=self.indices[indices])


def normal_guide(loc: Tensor, scale: Tensor, **_: Any) -> Distribution:
    return Independent(Normal(loc, scale), 1)


def gaussian(
    n: int, dim: int, *, shift: float = 0.0, scale: float = 1.0, dtype: torch.dtype = torch.float64
) -> ClosedForm:
    """Normal posteriors with random covariances and log p(x) = 3; ``shift`` and ``scale`` make the guide wrong."""
    generator = torch.Generator().manual_seed(dim)
    factor = torch.randn(dim, dim, generator=generator, dtype=torch.float64) / dim**0.5
    covariance = (factor @ factor.T + 0.2 * torch.eye(dim, dtype=torch.float64)).to(dtype).expand(n, dim, dim)
    mean = torch.randn(dim, generator=generator, dtype=torch.float64).to(dtype).expand(n, dim)
    sd = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    parameters = {"mean": mean, "covariance": covariance, "loc": mean + shift * sd, "scale": scale * sd}

    def log_density(u: Tensor, mean: Tensor, covariance: Tensor, **_: Any) -> Tensor:
        return MultivariateNormal(mean, covariance).log_prob(u) + 3.0

    return ClosedForm(log_density, normal_guide, parameters)


def log_gamma(n: int, dim: int, *, shift: float = 0.0, scale: float = 1.0) -> ClosedForm:
    """Logarithms of gamma variables, which are skewed: positive latents in unconstrained coordinates; log p(x) = 0."""
    shape = torch.linspace(2.0, 5.0, dim, dtype=torch.float64).expand(n, dim)
    loc, sd = shape.log(), shape.rsqrt()
    parameters = {"shape": shape, "loc": loc + shift * sd, "scale": scale * sd}

    def log_density(u: Tensor, shape: Tensor, **_: Any) -> Tensor:
        return (shape * u - u.exp() - shape.lgamma()).sum(-1)

    return ClosedForm(log_density, normal_guide, parameters)


def logit_beta(n: int, dim: int) -> ClosedForm:
    """Logits of beta variables: latents in (0, 1) in unconstrained coordinates; log p(x) = 0."""
    a = torch.linspace(0.8, 4.0, dim, dtype=torch.float64).expand(n, dim)
    parameters = {"a": a, "loc": torch.zeros_like(a), "scale": torch.ones_like(a)}

    def log_density(u: Tensor, a: Tensor, **_: Any) -> Tensor:
        log_sigmoid = torch.nn.functional.logsigmoid
        b = 2.0
        constant = torch.lgamma(a) + torch.lgamma(torch.full_like(a, b)) - torch.lgamma(a + b)
        return (a * log_sigmoid(u) + b * log_sigmoid(-u) - constant).sum(-1)

    return ClosedForm(log_density, normal_guide, parameters)


def modes(n: int, centers: Tensor, weights: Tensor, guide_weights: Tensor) -> ClosedForm:
    """Mixtures of unit normals at ``centers``, shape ``(modes, D)``; the guide has the modes in other proportions."""
    parameters = {"centers": centers.expand(n, *centers.shape)}

    def mixture(centers: Tensor, weights: Tensor, scale: float) -> Distribution:
        components = Independent(Normal(centers, scale * torch.ones_like(centers)), 1)
        return MixtureSameFamily(Categorical(weights.expand(centers.shape[:-1])), components)

    return ClosedForm(
        lambda u, centers: mixture(centers, weights, 1.0).log_prob(u),
        lambda centers: mixture(centers, guide_weights, 1.3),
        parameters,
    )


def student_t(n: int, dim: int) -> ClosedForm:
    """Independent Student's t densities with 3 degrees of freedom under a normal guide; log p(x) is 0."""
    zeros = torch.zeros(n, dim, dtype=torch.float64)
    return ClosedForm(
        lambda u, **_: Independent(StudentT(3.0, zeros[:1], 1.0), 1).log_prob(u),
        normal_guide,
        {"loc": zeros, "scale": zeros + 1.0},
    )


def scattered(n: int, places: list[list[float]], weights: list[float], scale: float = 0.2) -> ClosedForm:
    """Posteriors with normal modes at given places, under a broad guide that is centered at 0."""
    zeros = torch.zeros(n, len(places[0]), dtype=torch.float64)
    at, log_weights = torch.tensor(places).double(), torch.tensor(weights).double().log()

    def log_density(u: Tensor, **_: Tensor) -> Tensor:
        parts = STANDARD.log_prob((u[..., None, :] - at) / scale).sum(-1) - at.shape[-1] * math.log(scale)
        return (parts + log_weights).logsumexp(-1)

    return ClosedForm(log_density, normal_guide, {"loc": zeros, "scale": zeros + 2.0})


def curved(n: int, dim: int) -> ClosedForm:
    """Posteriors around a parabola, which no normal density covers well; log p(x) is 0."""
    zeros = torch.zeros(n, dim, dtype=torch.float64)

    def log_density(u: Tensor, **_: Tensor) -> Tensor:
        first, rest = u[..., 0], u[..., 1:]
        off = rest - 0.5 * (first[..., None].square() - 1)
        return STANDARD.log_prob(first) + Normal(0.0, 0.5).log_prob(off).sum(-1)

    return ClosedForm(log_density, normal_guide, {"loc": zeros, "scale": zeros + 1.0})
