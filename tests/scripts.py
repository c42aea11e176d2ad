"""Plain Pyro programs with a closed form of log p(x): positive latents, latents in inner plates, and layers."""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor


class GammaPoisson:
    """A positive latent: z ~ Gamma(3, 1), x ~ Poisson(z), with a log-normal guide that is not exact."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(torch.full_like(x, 3.0), 1.0))
            pyro.sample("x", dist.Poisson(z), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.LogNormal(((x + 2.0) / 2).log(), 0.6))

    def data(self, n: int) -> Tensor:
        return dist.Poisson(dist.Gamma(3.0, 1.0).sample((n,)).double()).sample()

    def log_likelihood(self, x: Tensor) -> Tensor:
        return dist.NegativeBinomial(torch.full_like(x, 3.0), probs=torch.full_like(x, 0.5)).log_prob(x)


class Pixels:
    """A latent in a plate inside the data plate: z ~ N(0, 1), x ~ N(z, 1) for each of three pixels."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2), pyro.plate("pixels", 3, dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2), pyro.plate("pixels", 3, dim=-1):
            pyro.sample("z", dist.Normal(0.4 * x, 0.9))

    def data(self, n: int) -> Tensor:
        return 2**0.5 * torch.randn(n, 3, dtype=torch.float64)

    def log_likelihood(self, x: Tensor) -> Tensor:
        return dist.Normal(torch.zeros_like(x), 2**0.5).log_prob(x).sum(-1)


class Chain:
    """Two layers: z2 ~ N(0, 1), z1 ~ N(z2, 1), x ~ N(z1, 1), with a bottom-up guide that is not exact."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros_like(x), 1.0))
            z1 = pyro.sample("z1", dist.Normal(z2, 1.0))
            pyro.sample("x", dist.Normal(z1, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(0.5 * x, 1.0))
            pyro.sample("z2", dist.Normal(0.4 * z1, 0.9))

    def data(self, n: int) -> Tensor:
        return 3**0.5 * torch.randn(n, dtype=torch.float64)

    def log_likelihood(self, x: Tensor) -> Tensor:
        return dist.Normal(torch.zeros_like(x), 3**0.5).log_prob(x)


SCRIPTS = [GammaPoisson(), Pixels(), Chain()]
