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
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyrovae._waist.draws import run_guide
from pyrovae._waist.plates import data_plate, plate_names, site_plates
from pyrovae._waist.sites import Program, is_enumerated
from pyrovae.arguments import check_whole
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
        * ``z_variance``: estimated variance of the posterior mean over the data, in squared units of the latent;
        * ``z_variance_error``: standard error of ``z_variance``;
        * ``z_undecided``: true if ``z_variance`` lies within two standard errors of the threshold, so that more data or
          draws could change ``z``.

    Raises:
        TypeError: For the reasons listed at :func:`evaluate`.
        ValueError: For the reasons listed at :func:`evaluate`, or if there are fewer than two data or draws.

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
    args = data.batch(0, len(data), program_device(guide, default=data.device))
    seed = fresh_seed() if seed is None else seed
    with isolated(guide, seed=seed) as isolation, isolation.adopting():
        runs = [_draws_by_datum(guide, args, plate) for _ in range(num_samples)]
    columns: dict[str, tuple[str, np.ndarray]] = {}
    for name in runs[0]:
        draws = torch.stack([run[name] for run in runs])
        mean = draws.mean(0)
        terms = (mean - mean.mean(0)).square() * len(mean) / (len(mean) - 1) - draws.var(0) / num_samples
        variance, error = terms.mean(0), terms.std(0) / len(mean) ** 0.5
        found = {
            name: variance > threshold,
            f"{name}_variance": variance,
            f"{name}_variance_error": error,
            f"{name}_undecided": (variance - threshold).abs() < 2 * error,
        }
        columns |= {key: (f"{name}_unit", values.cpu().numpy()) for key, values in found.items()}
    return xr.Dataset(
        columns, attrs={"sites": list(runs[0]), "threshold": threshold, "num_samples": num_samples, "seed": seed}
    )


def _draws_by_datum(guide: Program, args: tuple[Any, ...], plate: str | None) -> dict[str, Tensor]:
    """Run the guide once, and return the draws of the latent sites inside the data plate, by name of the site.

    The draws of a site have shape ``(N, units)``, one draw for each datum. A unit is one entry of a draw.
    """
    sites = [site for site in run_guide(guide, args).sites if not (site["is_observed"] or is_enumerated(site))]
    data = data_plate(
        [site for site in sites if (plate in plate_names(site) if plate else site_plates(site))] or sites, plate
    )
    assert data.dim is not None
    found = {}
    for site in (site for site in sites if data.name in plate_names(site)):
        event = site["fn"].event_dim
        value = site["value"].expand(*site["fn"].batch_shape, *site["fn"].event_shape)
        value = value.movedim(data.dim - event, 0)
        found[site["name"]] = value.reshape(len(value), -1).double()
    return found
