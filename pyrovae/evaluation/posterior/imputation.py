r"""Missing entries of data, filled in from the posterior by self-normalized importance sampling.

.. math:: \mathrm{E}[x_\mathrm{mis} \mid x_\mathrm{obs}] \approx \sum_k \bar w_k\, \mathrm{E}[x_\mathrm{mis} \mid z_k],
    \qquad \bar w_k = \frac{w_k}{\sum_j w_j}, \quad
    w_k = \frac{p(x_\mathrm{obs} \mid z_k)\, p(z_k)}{q(z_k \mid x_\mathrm{obs})}.
"""

from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch
from torch import Tensor

from pyrovae._waist.draws import Given
from pyrovae._waist.sites import Program
from pyrovae.evaluation.batches import Batch
from pyrovae.evaluation.options import Options
from pyrovae.evaluation.pairs import takes_vae
from pyrovae.evaluation.posterior.predictive import Posterior, arranged
from pyrovae.evaluation.report import report

if TYPE_CHECKING:
    import xarray as xr


@takes_vae
def impute(
    model: Program,
    guide: Program,
    data: tuple[Tensor, Tensor],
    num_samples: int = 1000,
    *,
    num_imputations: int = 0,
    site: str = "x",
    **options: Unpack[Options],
) -> "xr.Dataset":
    """Fills in the missing entries of data, with their uncertainty.

    Args:
        model: Pyro program of p(x, z), called as ``model(x, mask)``, that scores the observed entries only: a
            :class:`pyrovae.VAE` with a :class:`pyrovae.likelihoods.Masked` likelihood, or a program of your own.
        guide: Pyro program of q(z | x, mask).
        data: ``(x, mask)``, both of shape ``(N, *event)``; the mask is true, or 1, where x was observed.
        num_samples: Draws of z per datum, K.
        num_imputations: How many imputed copies of the data to draw, by sampling importance resampling.
        site: Name of the observed site.
        **options: See :class:`Options`.

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
        raise TypeError(
            f"impute takes data and mask as a tuple, (x, mask), got a {type(data).__name__}. For a tensor x with NaN, "
            f"pass (x.nan_to_num(), (~x.isnan()).float()), and wrap the likelihood in pyrovae.likelihoods.Masked"
        )
    x, mask = data
    if not (isinstance(x, Tensor) and isinstance(mask, Tensor)) or not x.is_floating_point():
        raise TypeError(
            f"impute takes a floating-point tensor and its mask, got {[type(part).__name__ for part in data]}"
        )
    if x.shape != mask.shape:
        raise ValueError(f"a mask of shape {tuple(mask.shape)} does not fit data of shape {tuple(x.shape)}")
    if "memory" not in options:
        options["memory"] = 2**26
    posterior = Posterior(model, guide, data, num_samples, max(1, num_imputations), options)
    event = tuple(f"event_{i}" for i in range(x.ndim - 1))
    dims: dict[str, tuple[str, ...]] = dict.fromkeys(("mean", "std"), ("datum", *event))
    dims["imputations"] = ("imputation", "datum", *event)

    def columns(batch: Batch) -> dict[str, Tensor]:
        drawn, found = posterior.draw(batch), _Moments(site, *batch.args[:2])
        chosen = drawn.log_weights.softmax(0)
        picked = torch.multinomial(chosen.T, max(num_imputations, 1), replacement=True).T[:num_imputations]
        values = posterior.complete(batch, num_samples, drawn.values)
        for part, sites in posterior.runs(batch, num_samples, Given, values):
            found.add(sites, chosen[part], picked - part.start, posterior.problem.plate.name)
        result = {**found.columns(), "ess": 1 / (chosen**2).sum(0)}
        if num_imputations:
            result["imputations"] = found.imputations
        return {
            name: values[:, : batch.kept] if name == "imputations" else values[: batch.kept]
            for name, values in result.items()
        }

    return report(
        posterior.problem,
        columns,
        estimator="imputation",
        width=lambda: max(1, posterior.problem.memory // (num_samples * max(1, x[0].numel()) * x.element_size())),
        dims=dims,
        coords={"imputation": np.arange(num_imputations)} if num_imputations else {},
        units="those of the data",
        settings={"site": site},
        num_samples=num_samples,
    )


class _Moments:
    """Weighted moments of the predictions of an observed site, and draws from it, added up over chunks of draws.

    Args:
        site: Name of the observed site.
        x: Data, shape ``(n, *event)``.
        mask: Which entries were observed.
    """

    def __init__(self, site: str, x: Tensor, mask: Tensor) -> None:
        self.site, self.x, self.observed = site, x, mask.bool()
        self.mean, self.square = torch.zeros_like(x), torch.zeros_like(x)
        self.imputations = x.new_zeros(0, *x.shape)

    def add(self, sites: list[Any], weights: Tensor, picked: Tensor, plate: str) -> None:
        """Add a chunk of draws.

        Args:
            sites: The model's sites in the chunk's run.
            weights: Normalized weights, shape ``(num_draws, n)``.
            picked: Index in the chunk of the draw of each imputation, shape ``(num_imputations, n)``; others lie
                outside.
            plate: Name of the data plate.
        """
        distribution = self._distribution(sites)
        site = {"fn": distribution[0], "name": self.site, "cond_indep_stack": distribution[1]}
        mean, variance, value = (
            arranged(site, part, plate)[0].reshape(-1, *self.x.shape).to(self.x)
            for part in (distribution[0].mean, distribution[0].variance, distribution[0].sample())
        )
        column = weights.reshape(*weights.shape, *(1,) * (self.x.ndim - 1))
        self.mean = self.mean + (column * mean).sum(0)
        self.square = self.square + (column * (variance + mean.square())).sum(0)
        if not len(self.imputations):
            self.imputations = self.x.expand(len(picked), *self.x.shape).clone()
        inside = (picked >= 0) & (picked < len(weights))
        rows = torch.arange(len(self.x), device=self.x.device)
        made = value.expand(len(weights), *self.x.shape)[picked.clamp(0, len(weights) - 1), rows]
        fill = inside.reshape(*inside.shape, *(1,) * (self.x.ndim - 1)) & ~self.observed
        self.imputations = torch.where(fill, made, self.imputations)

    def columns(self) -> dict[str, Tensor]:
        """Return mean and standard deviation of each entry."""
        deviation = (self.square - self.mean.square()).clamp(min=0).sqrt()
        return {
            "mean": torch.where(self.observed, self.x, self.mean),
            "std": torch.where(self.observed, torch.zeros_like(self.x), deviation),
        }

    def _distribution(self, sites: list[Any]) -> tuple[Any, Any]:
        for site in sites:
            if site["name"] == self.site and site["is_observed"]:
                return site["fn"], site["cond_indep_stack"]
        raise ValueError(f"the model does not observe a site {self.site!r}; name the one that holds the data, site=")
