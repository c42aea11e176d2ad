r"""Active latent units: the dimensions of z whose posterior mean follows the data.

.. math:: A_u = \mathrm{Var}_x \big( \mathrm{E}_{q(z \mid x)}[z_u] \big), \qquad u \text{ is active if } A_u > 0.01.

The mean of S draws varies by more than the posterior mean does, by the posterior variance over S, which is taken off:
:math:`\hat A_u = \mathrm{Var}_n(\bar z_{nu}) - \frac{1}{S} \mathrm{mean}_n(s_{nu}^2)` is unbiased for any guide.
"""

import torch
from torch import Tensor

from pyrovae._waist.sites import Program, latent_draws
from pyrovae.arguments import Data, as_tensors, check_whole
from pyrovae.isolation import fresh_seed, isolated, program_device


def active_units(
    guide: Program, x: Data, *, threshold: float = 0.01, num_samples: int = 50, seed: int | None = None
) -> dict[str, Tensor]:
    """Finds the latent units whose posterior mean varies over the data by more than a threshold.

    Args:
        guide: Pyro program of q(z | x).
        x: Data, shape ``(N, *event)``, at least two, or a tuple of tensors that share the first dimension.
        threshold: Variance above which a unit counts as active.
        num_samples: Draws per datum, at least two.
        seed: Seed of the draws; by default a new one from the operating system.

    Returns:
        For each latent site whether its units are active, shape ``(units,)``; their number is the sum.

    Raises:
        TypeError: If ``x`` is not of floating-point tensors.
        ValueError: If ``x`` is not finite, or there are fewer than two data or draws.

    Source:
        *Importance Weighted Autoencoders* (Burda, Grosse and Salakhutdinov, 2016), section 5.2.

    Example:
        >>> import torch, pyrovae as pv
        >>> posterior = pv.posteriors.DiagonalNormal(pv.networks.mlp(4, 2 * 2))
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.likelihoods.Normal(pv.networks.mlp(2, 4)), posterior)
        >>> pv.evaluation.active_units(vae.guide, 10 * torch.randn(100, 4), seed=0)["z"].shape
        torch.Size([2])
    """
    args = tuple(tensor.to(program_device(guide, default=tensor.device)) for tensor in as_tensors("x", x))
    check_whole(num_samples=num_samples)
    if len(args[0]) < 2 or num_samples < 2:
        raise ValueError(f"active_units compares two or more data and draws, got {len(args[0])} and {num_samples}")
    with isolated(guide, seed=fresh_seed() if seed is None else seed):
        runs = [latent_draws(guide, args) for _ in range(num_samples)]
    activity = {}
    for site in runs[0]:
        draws = torch.stack([run[site] for run in runs])
        activity[site] = draws.mean(0).var(0) - draws.var(0).mean(0) / num_samples
    return {site: variance > threshold for site, variance in activity.items()}
