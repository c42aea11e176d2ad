r"""Imputation of missing entries from the posterior by self-normalized importance sampling.

.. math:: \mathrm{E}[x_\mathrm{mis} \mid x_\mathrm{obs}] \approx \sum_k \bar w_k\, \mathrm{E}[x_\mathrm{mis} \mid z_k],
    \qquad \bar w_k = \frac{w_k}{\sum_j w_j}, \quad
    w_k = \frac{p(x_\mathrm{obs} \mid z_k)\, p(z_k)}{q(z_k \mid x_\mathrm{obs})}.

An imputed copy of the data is made from a draw :math:`z_k`, chosen with probability :math:`\bar w_k`, and a new draw
from :math:`p(x_\mathrm{mis} \mid z_k)`.
"""

from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch
from torch import Tensor

from pyrovae._waist.draws import Given
from pyrovae._waist.sites import Program
from pyrovae.evaluation.batches import Batch
from pyrovae.evaluation.observed import arranged, entries_of, own_rows, unshared, values_per_datum
from pyrovae.evaluation.options import Options
from pyrovae.evaluation.pairs import takes_vae
from pyrovae.evaluation.posterior.draws import Posterior
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
    """Return the posterior mean and standard deviation of missing entries of data, and imputed copies of the data.

    Imputed values have the units of ``x``, so the model must observe the values of ``x``: ``x`` itself, a view of ``x``
    such as ``x.T``, or a copy that differs only in missing entries, such as ``x.nan_to_num()``. Apply a transformation,
    such as standardization, to the data before the call.

    Args:
        model: Pyro program of p(x, z), called as ``model(x, mask)``. The program must score only the observed entries,
            as a :class:`pyrovae.VAE` with a :class:`pyrovae.likelihoods.Masked` likelihood does.
        guide: Pyro program of q(z | x, mask), called as ``guide(x, mask)``.
        data: Pair ``(x, mask)``, both of shape ``(N, *event)``. The mask is true, or 1, where x was observed.
        num_samples: Draws of z per datum, K.
        num_imputations: Number of imputed copies of the data. The latents of the copies are drawn by sampling
            importance resampling, so a draw of z may serve several copies. The missing entries of each copy are drawn
            from p(x | z) independently.
        site: Name of the site at which the model observes x.
        **options: Keyword arguments of :class:`Options`. In this function, the default of ``memory`` is 2^26.

    Returns:
        Dataset with dimensions ``datum`` and ``event_0``, ``event_1``, ...:

        * ``mean``, ``std``: posterior mean and standard deviation of each entry. For an observed entry, ``mean`` is
          the observed value and ``std`` is 0;
        * ``ess``: effective sample size of the importance weights, for each datum;
        * ``imputations``: imputed copies along the additional first dimension ``imputation``, if ``num_imputations`` is
          positive.

    Raises:
        TypeError: If ``data`` is not a pair of tensors, or the first tensor is not floating-point.
        ValueError: For the reasons listed at :func:`evaluate`; if ``num_samples`` is less than 1 or ``num_imputations``
            is negative; if data and mask differ in shape; if the mask has values other than 0 and 1; if the program
            does not observe all entries of x at ``site``; if the observed values that are scored differ from those of
            x; or if several orders of the entries of x fit the observed values.
        FloatingPointError: If all draws of a datum have weight zero, for all data of a batch.

    Source:
        *MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets* (Mattei and Frellsen, 2019).

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyrovae as pv
        >>> def model(x, mask):  # both entries of x are z plus noise
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0)).unsqueeze(-1)
        ...         pyro.sample("x", dist.Normal(z, torch.tensor([0.1, 0.1])).mask(mask).to_event(1), obs=x)
        >>> def guide(x, mask):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x[:, 0], 0.2))
        >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> mask = torch.tensor([[True, False], [True, False]])
        >>> filled = pv.evaluation.impute(model, guide, (x, mask), seed=0)
        >>> filled["mean"].values.round(1).tolist()
        [[1.0, 1.0], [-1.0, -1.0]]
    """
    if num_samples < 1 or num_imputations < 0:
        raise ValueError(
            f"num_samples must be at least 1 and num_imputations at least 0, got num_samples={num_samples} and "
            f"num_imputations={num_imputations}"
        )
    if not isinstance(data, tuple) or len(data) != 2:
        raise TypeError(
            f"impute takes data and mask as a tuple (x, mask), got {type(data).__name__}. For a tensor x with NaN, "
            f"pass (x.nan_to_num(), (~x.isnan()).float()), and wrap the likelihood in pyrovae.likelihoods.Masked."
        )
    x, mask = data
    if not (isinstance(x, Tensor) and isinstance(mask, Tensor)) or not x.is_floating_point():
        raise TypeError(
            f"impute takes a floating-point tensor and its mask, got {' and '.join(map(_kind, data))}. Pass "
            f"(torch.as_tensor(x).float(), torch.as_tensor(mask))."
        )
    if x.shape != mask.shape:
        raise ValueError(
            f"the mask has shape {tuple(mask.shape)}, but the data have shape {tuple(x.shape)}. Pass a mask of the "
            f"shape of the data."
        )
    if mask.dtype != torch.bool and not ((mask == 0) | (mask == 1)).all():
        raise ValueError(
            f"the mask holds values from {float(mask.min()):g} to {float(mask.max()):g}. Pass a mask that is 1 where "
            f"an entry was observed and 0 elsewhere, as the second tensor of the data."
        )
    if "memory" not in options:
        options["memory"] = 2**26
    posterior = Posterior(model, guide, data, num_samples, max(1, num_imputations), options)
    event = tuple(f"event_{i}" for i in range(x.ndim - 1))
    dims: dict[str, tuple[str, ...]] = dict.fromkeys(("mean", "std"), ("datum", *event))
    dims["imputations"] = ("imputation", "datum", *event)

    def plate() -> str:
        return posterior.problem.plate.name

    def width() -> int:
        few = unshared(posterior.problem.few())
        _check_entries(posterior.sites(few), site, own_rows(few, plate())[0], plate())
        return max(1, posterior.problem.memory // (num_samples * max(1, x[0].numel()) * x.element_size()))

    def columns(batch: Batch) -> dict[str, Tensor]:
        drawn = posterior.draw(batch)
        weights, batch = drawn.log_weights.softmax(0), unshared(batch)
        found = _Imputed(site, *own_rows(batch, plate()), plate=plate())
        values = posterior.complete(batch, num_samples, drawn.values)
        for part, sites in posterior.runs(batch, num_samples, Given, values):
            found.add(sites, weights[part].double())
        result = {**found.columns(), "ess": 1 / (weights**2).sum(0)}
        if num_imputations:
            picked = torch.multinomial(weights.T, num_imputations, replacement=True).T
            values = posterior.complete(batch, num_imputations, drawn.take(picked))
            runs = posterior.runs(batch, num_imputations, Given, values)
            result["imputations"] = torch.cat([found.draw(sites) for _, sites in runs])
        return {
            name: values[:, : batch.kept] if name == "imputations" else values[: batch.kept]
            for name, values in result.items()
        }

    return report(
        posterior.problem,
        columns,
        estimator="imputation",
        width=width,
        dims=dims,
        coords={"imputation": np.arange(num_imputations)} if num_imputations else {},
        units="those of the data",
        settings={"site": site},
        num_samples=num_samples,
    )


class _Imputed:
    """Moments and draws of missing entries. The moments are accumulated over chunks of latent draws.

    Args:
        site: Name of the observed site.
        x: Data, shape ``(n, *event)``.
        mask: Mask that is true where an entry of x was observed, shape ``(n, *event)``.
        plate: Name of the data plate.
    """

    def __init__(self, site: str, x: Tensor, mask: Tensor, *, plate: str) -> None:
        self.site, self.x, self.observed, self.plate = site, x, mask.bool(), plate
        self.order: Tensor | None = None
        self.total = x.new_zeros(len(x), *(1,) * (x.ndim - 1), dtype=torch.double)
        self.mean, self.squares = torch.zeros_like(x, dtype=torch.double), torch.zeros_like(x, dtype=torch.double)

    def add(self, sites: list[Any], weights: Tensor) -> None:
        """Add the predictions at a chunk of latent draws to the mean and to the sum of squared deviations from it.

        The squares are of deviations from the mean, in float64, because the difference of two mean squares has no
        correct digits if the data are far from zero (Chan, Golub and LeVeque, 1983).

        Args:
            sites: Sites of the model's run on the chunk.
            weights: Weights of the draws in the chunk, shape ``(num_draws, n)``.
        """
        site = _observed(sites, self.site)
        predicted, variance = (self._arranged(site, part).double() for part in (site["fn"].mean, site["fn"].variance))
        best = weights.argmax(0).reshape(1, -1, *(1,) * (self.x.ndim - 1))
        weights = weights.reshape(*weights.shape, *(1,) * (self.x.ndim - 1))
        origin = predicted.take_along_dim(best, 0)[0]  # the mean of equal predictions is then exact
        added = weights.sum(0)
        total = self.total + added
        mean = origin + (weights * (predicted - origin)).sum(0) / added.where(added > 0, 1.0)
        self.squares += (weights * (variance + (predicted - mean).square())).sum(0)
        fraction, step = added / total.where(total > 0, 1.0), mean - self.mean
        self.squares += self.total * fraction * step.square()
        self.mean, self.total = self.mean + fraction * step, total

    def draw(self, sites: list[Any]) -> Tensor:
        """Return a copy of the data for each latent draw of a run, shape ``(num_draws, n, *event)``.

        The missing entries of each copy are new draws from the distribution of the observed site.
        """
        site = _observed(sites, self.site)
        return torch.where(self.observed, self.x, self._arranged(site, site["fn"].sample()).to(self.x))

    def columns(self) -> dict[str, Tensor]:
        """Return ``mean`` and ``std`` by name: posterior mean and standard deviation of each entry of the data."""
        deviation = (self.squares / self.total).sqrt().to(self.x)
        return {
            "mean": torch.where(self.observed, self.x, self.mean.to(self.x)),
            "std": torch.where(self.observed, torch.zeros_like(self.x), deviation),
        }

    def _arranged(self, site: Any, value: Tensor) -> Tensor:
        """Return values of the observed site in the order of the data, shape ``(num_draws, n, *event)``."""
        if self.order is None:  # position of each entry of the flattened data among the values of the site
            self.order = entries_of(site, site["value"], [self.x], self.plate).indices.flatten().argsort()
        return values_per_datum(site, value, self.plate).flatten(1)[:, self.order].reshape(-1, *self.x.shape)


def _kind(value: Any) -> str:
    return f"a tensor of dtype {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _observed(sites: list[Any], name: str) -> Any:
    """Return the site with a given name if the model observes it.

    Raises:
        ValueError: If the model does not observe a site with this name.
    """
    for site in sites:
        if site["name"] == name and site["is_observed"]:
            return site
    raise ValueError(f"the model does not observe a site {name!r}. Pass the name of the observed site as site=.")


def _check_entries(sites: list[Any], name: str, x: Tensor, plate: str) -> None:
    """Check that the model observes all entries of the data at the site with a given name.

    Raises:
        ValueError: If the site and a datum differ in the number of entries, if the model does not observe the site, or
            if the observed values are not those of the data.
    """
    site = _observed(sites, name)
    entries = arranged(site, torch.zeros(site["fn"].shape()), plate)[0].shape[2:]
    if entries.numel() != x[0].numel():
        raise ValueError(
            f"site {name!r} has entries of shape {tuple(entries)} for a datum, but the data to be filled in have shape "
            f"{tuple(x.shape[1:])}. Observe all entries of the data at one site, and mask the missing entries "
            f"(pyrovae.likelihoods.Masked)."
        )
    entries_of(site, site["value"], [x], plate)
