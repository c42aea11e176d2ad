r"""Missing entries of data, filled in from the posterior by self-normalized importance sampling.

.. math:: \mathrm{E}[x_\mathrm{mis} \mid x_\mathrm{obs}] \approx \sum_k \bar w_k\, \mathrm{E}[x_\mathrm{mis} \mid z_k],
    \qquad \bar w_k = \frac{w_k}{\sum_j w_j}, \quad
    w_k = \frac{p(x_\mathrm{obs} \mid z_k)\, p(z_k)}{q(z_k \mid x_\mathrm{obs})}.
"""

from typing import Any

import numpy as np
import torch
import xarray as xr
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyrovae._waist.sites import Program
from pyrovae._waist.weights import importance_weights
from pyrovae.arguments import as_tensors
from pyrovae.isolation import fresh_seed, isolated, program_device


def impute(
    model: Program,
    guide: Program,
    data: tuple[Tensor, Tensor],
    num_samples: int = 1000,
    *,
    num_imputations: int = 0,
    site: str = "x",
    seed: int | None = None,
    plate: str | None = None,
    memory: int = 2**26,
) -> xr.Dataset:
    """Fills in the missing entries of data, with their uncertainty.

    Args:
        model: Pyro program of p(x, z), called as ``model(x, mask)``, that scores the observed entries only: a
            :class:`pyrovae.VAE` with a :class:`pyrovae.likelihoods.Masked` likelihood, or a program of your own.
        guide: Pyro program of q(z | x, mask).
        data: ``(x, mask)``, both of shape ``(N, *event)``; the mask is true, or 1, where x was observed.
        num_samples: Draws of z per datum, K.
        num_imputations: How many imputed copies of the data to draw, by sampling importance resampling.
        site: Name of the observed site.
        seed: Seed of the draws; by default a new one from the operating system.
        plate: Name of the data plate; by default the outermost plate that all latent sites share.
        memory: Bytes that the predictions of one run may take.

    Returns:
        Dataset with dimensions ``datum`` and ``event_0``, ``event_1``, ...: ``mean`` and ``std``, the posterior mean
        and standard deviation of each entry (where observed, its value and 0), and ``ess``, the effective sample size
        of a datum's weights. With imputations also ``imputations``, over a first dimension ``imputation``.

    Raises:
        TypeError: If the data are not a pair of tensors, the first floating-point.
        ValueError: If a number is out of range; if data and mask differ in shape, or the program does not observe
            ``site``; as :func:`evaluate`.

    Source:
        *MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets* (Mattei and Frellsen, 2019).

    Example:
        >>> import torch, pyrovae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Masked(pv.likelihoods.Normal(pv.networks.mlp(2, 4))),
        ...     pv.posteriors.DiagonalNormal(pv.networks.ZeroFilled(pv.networks.mlp((2, 4), 2 * 2), event_dim=1)),
        ... )
        >>> x, mask = torch.randn(10, 4), torch.rand(10, 4) < 0.7
        >>> pv.evaluation.impute(vae.model, vae.guide, (x * mask, mask), seed=0)["mean"].shape
        (10, 4)
    """
    if num_samples < 1 or num_imputations < 0:
        raise ValueError(
            f"impute needs num_samples of at least 1 and num_imputations of at least 0, got {num_samples} and "
            f"{num_imputations}"
        )
    if not isinstance(data, tuple) or len(data) != 2:
        raise TypeError("impute takes data and mask as a tuple, (x, mask)")
    x, mask = as_tensors("data", data)
    if x.shape != mask.shape:
        raise ValueError(f"a mask of shape {tuple(mask.shape)} does not fit data of shape {tuple(x.shape)}")
    device = program_device(model, guide, default=x.device)
    width = max(1, memory // (num_samples * x[0].numel() * x.element_size()))
    seed = fresh_seed() if seed is None else seed
    parts = []
    with isolated(model, guide, seed=seed):
        nesting = importance_weights(model, guide, [x[:1].to(device), mask[:1].to(device)], plate=plate).nesting
        for chunk in zip(x.split(width), mask.split(width), strict=True):
            args = part, observed = [tensor.to(device) for tensor in chunk]
            with _Likelihood(site) as seen:
                weights = importance_weights(model, guide, args, num_samples, nesting=nesting, plate=plate)
            if seen.distribution is None:
                raise ValueError(f"the model does not observe a site {site!r}; name the one that holds the data, site=")
            if len(seen.distribution.batch_shape) > nesting + 1:
                raise ValueError("impute does not average over enumerated sites; draw them in the guide")
            parts.append(_fill(seen.distribution, weights.log_weights, part, observed, num_imputations))
    columns = {name: torch.cat([part[name] for part in parts], dim=axis).cpu().numpy() for name, axis in _AXES.items()}
    dims = ("datum", *(f"event_{i}" for i in range(x.ndim - 1)))
    dataset = xr.Dataset(
        {"mean": (dims, columns["mean"]), "std": (dims, columns["std"]), "ess": ("datum", columns["ess"])},
        coords={"datum": np.arange(len(x))},
        attrs={"num_samples": num_samples, "seed": seed},
    )
    return dataset.assign(imputations=(("imputation", *dims), columns["imputations"])) if num_imputations else dataset


_AXES = {"mean": 0, "std": 0, "ess": 0, "imputations": 1}


class _Likelihood(Messenger):
    """Notes the distribution of an observed site."""

    def __init__(self, site: str) -> None:
        super().__init__()
        self.site = site
        self.distribution: Any = None

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] == self.site and msg["is_observed"]:
            self.distribution = msg["fn"]


def _fill(p: Any, log_weights: Tensor, x: Tensor, mask: Tensor, num_imputations: int) -> dict[str, Tensor]:
    """Posterior mean and standard deviation, effective sample size and draws of some data."""
    observed, batch = mask.bool(), log_weights.shape
    weights = log_weights.softmax(0)
    means, variances = (part.expand(*batch, *x.shape[1:]) for part in (p.mean, p.variance))
    column = weights.reshape(*batch, *(1,) * (x.ndim - 1))
    mean = (column * means).sum(0)
    variance = (column * (variances + (means - mean) ** 2)).sum(0)
    chosen = torch.multinomial(weights.T, max(num_imputations, 1), replacement=True).T[:num_imputations]
    rows = torch.arange(len(x), device=x.device)
    drawn = [p.sample().expand(*batch, *x.shape[1:])[indices, rows].to(x.dtype) for indices in chosen]
    return {
        "mean": torch.where(observed, x, mean),
        "std": torch.where(observed, torch.zeros_like(x), variance.sqrt()),
        "ess": 1 / (weights**2).sum(0),
        "imputations": torch.where(observed, x, torch.stack(drawn)) if drawn else x.new_empty(0, *x.shape),
    }
