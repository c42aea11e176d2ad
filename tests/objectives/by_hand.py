"""VAEs whose draws, log-densities and gradients the tests of objectives write in plain PyTorch."""

from typing import Any

import torch
from torch import Tensor, nn

import pyrovae as pv

normal, mlp = pv.posteriors.DiagonalNormal, pv.networks.mlp


Logs = tuple[Tensor, Tensor, Tensor, list[Tensor]]


def flat_vae() -> pv.VAE:
    return pv.VAE(pv.priors.StandardNormal(2), pv.likelihoods.Normal(mlp(2, 5, 3)), normal(mlp(3, 5, 2 * 2))).double()


def deep_vae() -> pv.HierarchicalVAE:
    return pv.HierarchicalVAE(
        priors=(normal(mlp(2, 4, 2 * 3)), pv.priors.StandardNormal(2)),
        likelihood=pv.likelihoods.Normal(mlp(3, 4, 3)),
        posteriors=(normal(mlp(3, 4, 2 * 3)), normal(mlp(3, 4, 2 * 2))),
    ).double()


def vamp_vae() -> pv.VAE:
    vae = flat_vae()
    vae.prior = pv.priors.VampPrior(data=2 * torch.randn(3, 3), components=3).double()
    return vae


def of(component: Any, context: Tensor) -> torch.distributions.Normal:
    loc, log_scale = component.network(context).chunk(2, -1)
    return torch.distributions.Normal(loc, log_scale.exp())


def of_x(likelihood: Any, z: Tensor) -> torch.distributions.Normal:
    return torch.distributions.Normal(likelihood.network(z), likelihood.log_scale.exp())


def draw(q: torch.distributions.Normal, k: int, in_one_run: bool) -> Tensor:
    return q.rsample((k,)) if in_one_run else torch.stack([q.rsample() for _ in range(k)])


def flat_draws(vae: Any, x: Tensor, k: int, in_one_run: bool) -> list[Tensor]:
    return [draw(of(vae.posterior, x), k, in_one_run)]


def flat_logs(vae: Any, x: Tensor, draws: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    (z,) = draws
    prior = torch.distributions.Normal(torch.zeros(2).double(), 1.0)
    return (
        of_x(vae.likelihood, z).log_prob(x).sum(-1),
        prior.log_prob(z).sum(-1),
        of(vae.posterior, x).log_prob(z).sum(-1),
    )


def deep_draws(vae: Any, x: Tensor, k: int, in_one_run: bool) -> list[Tensor]:
    z1 = draw(of(vae.posteriors[0], x), k, True)
    return [z1, of(vae.posteriors[1], z1).rsample()]


def deep_logs(vae: Any, x: Tensor, draws: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    z1, z2 = draws
    top = torch.distributions.Normal(torch.zeros(2).double(), 1.0)
    prior = of(vae.priors[0], z2).log_prob(z1).sum(-1) + top.log_prob(z2).sum(-1)
    guide = of(vae.posteriors[0], x).log_prob(z1).sum(-1) + of(vae.posteriors[1], z1).log_prob(z2).sum(-1)
    return of_x(vae.likelihood, z1).log_prob(x).sum(-1), prior, guide


def gradients(module: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    return found
