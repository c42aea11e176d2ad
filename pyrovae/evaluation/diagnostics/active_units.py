r"""Active latent units: the dimensions of z whose posterior mean varies with the data.

.. math:: A_u = \mathrm{Var}_x \big( \mathrm{E}_{q(z \mid x)}[z_u] \big), \qquad u \text{ is active if } A_u > 0.01.

With S draws per datum, let :math:`\bar z_{nu}` and :math:`s^2_{nu}` be the mean and the variance of the draws of unit u
for datum n. The variance of :math:`\bar z_{nu}` over the data is larger than the variance of the posterior mean: the
difference is the mean posterior variance divided by S. The estimate subtracts this difference,

.. math:: \hat A_u = \mathrm{Var}_n(\bar z_{nu}) - \frac1S \, \mathrm{mean}_n(s_{nu}^2),

and is unbiased for any guide. Each datum contributes a term :math:`(\bar z_{nu} - \bar z_u)^2 - s_{nu}^2 / S`, and the
spread of these terms over the data gives the standard error of :math:`\hat A_u`. For an inactive unit with posterior
variance 1, the standard error is about :math:`\sqrt{2 / N} / S`. Choose S so that this value lies well below the
threshold.

A mask may leave out a unit for some data, or for some draws of a datum. Then S is the number of the other draws of the
datum, and means and variances over the data are taken over the data with at least two such draws.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pyro import poutine
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from pyrovae._waist.draws import run_guide
from pyrovae._waist.plates import check_complete, data_plate, dim_of, plate_names, site_plates
from pyrovae._waist.scoring import entry_mask
from pyrovae._waist.sites import Program, Site, is_enumerated
from pyrovae.arguments import check_whole
from pyrovae.evaluation.batches import batches
from pyrovae.evaluation.program_data import ProgramData
from pyrovae.isolation import fresh_seed, isolated, program_device

if TYPE_CHECKING:
    import xarray as xr


def active_units(
    guide: Program,
    x: Any,
    *,
    threshold: float = 0.01,
    num_samples: int = 50,
    seed: int | None = None,
    plate: str | None = None,
) -> "xr.Dataset":
    """Find the latent units whose posterior mean varies over the data by more than a threshold.

    If the data plate subsamples the data, the guide runs on consecutive batches of all data. A site that the guide
    enumerates is drawn instead, so that the posterior means of the other sites are averages over its values. The result
    does not list enumerated and auxiliary sites. If a latent site is masked for a datum in some draws, the mean of this
    datum is the mean of the other draws. The variance is taken over the data with at least two such draws.

    Args:
        guide: Pyro program of q(z | x).
        x: Data, shape ``(N, *event)`` with N at least 2, or a tuple of arguments of the guide.
        threshold: A unit counts as active if the variance of its posterior mean over the data exceeds this value.
        num_samples: Draws per datum, at least two.
        seed: Seed of the draws; by default a new seed from the operating system.
        plate: Name of the data plate; by default the outermost plate that all latent sites share.

    Returns:
        Dataset with four variables for each latent site. For a site ``z``, they have the dimension ``z_unit``:

        * ``z``: true if the unit is active;
        * ``z_variance``: estimated variance of the posterior mean over the data, in squared units of the latent; NaN if
          the mask leaves fewer than two data;
        * ``z_variance_error``: standard error of ``z_variance``;
        * ``z_undecided``: true if ``z_variance`` lies within two standard errors of the threshold, so that more data or
          draws could change ``z``; also true if ``z_variance`` is NaN.

    Raises:
        TypeError: For the reasons listed at :func:`evaluate`.
        ValueError: If there are fewer than two data or draws; if ``x`` is empty, or its arrays have different lengths;
            if the guide has no latent site, or no data plate; if the size of the data plate is not the number of data;
            or if a plate inside the data plate is subsampled.

    Source:
        *Importance Weighted Autoencoders* (Burda, Grosse and Salakhutdinov, 2016), section 5.2.

    Example:
        >>> import torch, pyrovae as pv
        >>> def network(x):  # the mean of the first latent is x_0, and that of the second is constant
        ...     return torch.cat([x[..., :1], torch.zeros(*x.shape[:-1], 3)], dim=-1)
        >>> posterior = pv.posteriors.DiagonalNormal(network)
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.likelihoods.Normal(pv.networks.mlp(2, 4)), posterior)
        >>> units = pv.evaluation.active_units(vae.guide, torch.randn(500, 4), seed=0)
        >>> units.z.values.tolist(), units.z_undecided.values.tolist()
        ([True, False], [False, False])
    """
    import xarray as xr

    data = ProgramData("x", x)
    check_whole(num_samples=num_samples)
    if len(data) < 2 or num_samples < 2:
        raise ValueError(
            f"active_units needs at least two data and two draws per datum, got {len(data)} data and "
            f"num_samples={num_samples}"
        )
    device = program_device(guide, default=data.device)
    seed = fresh_seed() if seed is None else seed
    with isolated(guide, seed=seed) as isolation, isolation.adopting():
        runs = _runs(guide, data, device, plate, num_samples)
    columns: dict[str, tuple[str, np.ndarray]] = {}
    for name in runs[0]:
        draws, kept = (torch.stack([run[name][i] for run in runs]) for i in range(2))
        variance, error = _variance_of_mean(draws, kept)
        found = {
            name: variance > threshold,
            f"{name}_variance": variance,
            f"{name}_variance_error": error,
            f"{name}_undecided": ~((variance - threshold).abs() >= 2 * error),
        }
        columns |= {key: (f"{name}_unit", values.cpu().numpy()) for key, values in found.items()}
    return xr.Dataset(
        columns, attrs={"sites": list(runs[0]), "threshold": threshold, "num_samples": num_samples, "seed": seed}
    )


def _variance_of_mean(draws: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Return the estimated variance of the posterior mean over the data, and its standard error, shapes ``(units,)``.

    Args:
        draws: Draws of the latent units, shape ``(S, N, units)``.
        kept: Mask that is false if a datum does not have the unit in a draw, shape ``(S, N, units)``.
    """
    draws_left, mean, variance_of_draws = _moments(draws, kept)
    has = draws_left > 1  # with a single draw, the variance of the draws is not known
    count, center, _ = _moments(mean, has)
    terms = (mean - center).square() * count / (count - 1) - variance_of_draws / draws_left
    _, variance, spread = _moments(terms, has)
    return torch.where(count > 1, variance, torch.nan), (spread / count).sqrt()


def _moments(values: Tensor, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the number, the mean and the unbiased variance of the values along the first dimension.

    Values where the mask ``kept`` is false are left out.
    """
    count = kept.double().sum(0)
    mean = torch.where(kept, values, 0.0).sum(0) / count
    return count, mean, torch.where(kept, values - mean, 0.0).square().sum(0) / (count - 1)


Units = dict[str, tuple[Tensor, Tensor]]


def _runs(guide: Program, data: ProgramData, device: torch.device, plate: str | None, num_samples: int) -> list[Units]:
    """Return one draw of all latent units of all data, ``num_samples`` times; see :func:`_units`.

    Raises:
        ValueError: If the size of the data plate is not the number of data, or a plate inside it is subsampled.
    """
    args, size = data.batch(0, len(data), device), len(data)
    sites = _latents(guide, args)
    chosen = _data_plate(sites, plate)
    if size not in (chosen.size, chosen.full_size):
        raise ValueError(
            f"the data plate {chosen.name!r} has size {chosen.size} but x has {size} data. Set the size of the plate "
            f"to the number of data, or name another plate with plate=."
        )
    check_complete([site for site in sites if chosen.name in plate_names(site)], chosen)
    if chosen.size == size:
        return [_units(sites, chosen), *(_units(_latents(guide, args), chosen) for _ in range(num_samples - 1))]
    parts = list(batches(data, device, chosen, size, cuttable=False))
    return [
        _joined([_units(_latents(guide, batch.args, batch.subsample), chosen, batch.kept) for batch in parts])
        for _ in range(num_samples)
    ]


def _latents(guide: Program, args: tuple[Any, ...], subsample: Mapping[str, Tensor] | None = None) -> list[Site]:
    """Run the guide once, and return its latent sites except enumerated and auxiliary sites.

    Enumerated sites are drawn, so that all other sites depend on one draw of these sites.
    """
    summed_out: set[str] = set()

    def without_enumeration(site: Site) -> Any:
        if site["type"] != "sample" or not is_enumerated(site):
            return {}
        summed_out.add(site["name"])
        return {"enumerate": None}

    sites = run_guide(poutine.infer_config(guide, without_enumeration), args, values=subsample).sites
    hidden = [s["is_observed"] or s["name"] in summed_out or s["infer"].get("is_auxiliary") for s in sites]
    return [site for site, is_hidden in zip(sites, hidden, strict=True) if not is_hidden]


def _data_plate(sites: list[Site], plate: str | None) -> CondIndepStackFrame:
    """Return the data plate of latent sites, some of which may lie outside all plates."""
    if not sites:
        raise ValueError(
            "the guide has no latent site, apart from enumerated and auxiliary sites. Pass a guide that draws the "
            "latents with pyro.sample."
        )
    inside = [site for site in sites if (plate in plate_names(site) if plate else site_plates(site))]
    return data_plate(inside or sites, plate)


def _units(sites: list[Site], data: CondIndepStackFrame, count: int | None = None) -> Units:
    """Return the draws and masks of the sites inside the data plate, by name of the site.

    Draws and masks have shape ``(count, units)``, with one draw for each of the first ``count`` data. By default, all
    data of the run are returned. A unit is one entry of a draw. A mask is false if the datum does not have the unit.
    """
    found = {}
    for site in (site for site in sites if data.name in plate_names(site)):
        shape, dim = site["fn"].batch_shape + site["fn"].event_shape, dim_of(data) - site["fn"].event_dim

        def by_datum(values: Tensor, shape: Any = shape, dim: int = dim) -> Tensor:
            values = values.expand(shape).movedim(dim, 0)[:count]
            return values.reshape(len(values), -1)

        value, mask = site["value"], torch.as_tensor(entry_mask(site)).to(site["value"].device)
        found[site["name"]] = by_datum(value).double(), by_datum(mask)
    return found


def _joined(parts: list[Units]) -> Units:
    """Join the units of consecutive batches of data."""
    return {
        name: (torch.cat([part[name][0] for part in parts]), torch.cat([part[name][1] for part in parts]))
        for name in parts[0]
    }
