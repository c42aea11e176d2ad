r"""What the KL term is made of: its dimensions, mutual information, the distance of aggregate posterior and prior.

With the aggregate posterior :math:`q(z) = \frac1N \sum_n q(z \mid x_n)` of the data,

.. math::
    \frac1N \sum_n \mathrm{KL}\big(q(z \mid x_n) \,\|\, p(z)\big)
    = \underbrace{\frac1N \sum_n \mathrm{E}_{q(z \mid x_n)} \log \frac{q(z \mid x_n)}{q(z)}}_{I_q(x; z) \,\le\, \log N}
    + \underbrace{\mathrm{KL}\big(q(z) \,\|\, p(z)\big)}_{\text{marginal KL}}.

Where posterior and prior have independent dimensions, the marginal KL is the total correlation
:math:`\mathrm{KL}(q(z) \,\|\, \prod_j q(z_j))` plus the dimension-wise KL
:math:`\sum_j \mathrm{KL}(q(z_j) \,\|\, p(z_j))`.
"""

import math
import time
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import pyro
import torch
import xarray as xr
from torch import Tensor

from pyrovae._waist.divergences import divergence, is_mean_field
from pyrovae._waist.draws import draw_latents
from pyrovae._waist.sites import Latents, Program, Site, factors, score
from pyrovae._waist.summation import add_up
from pyrovae._waist.weights import Densities, Weights
from pyrovae.arguments import Data
from pyrovae.evaluation.problem import Pieces
from pyrovae.evaluation.provenance import attributes
from pyrovae.isolation import fresh_seed, isolated


def kl_per_dimension(
    model: Program,
    guide: Program,
    x: Data,
    num_samples: int = 100,
    *,
    seed: int | None = None,
    plate: str | None = None,
    binarization: str = "not stated",
    memory: int | None = None,
) -> xr.Dataset:
    r"""Computes :math:`\mathrm{KL}(q(z_j \mid x) \,\|\, p(z_j))` of each datum and latent dimension.

    Exact where torch knows the divergence of the two distributions, as that of two normals, and the prior of a site
    depends on no site that the guide draws later; else the mean over draws of :math:`\log q - \log p`. A site whose
    posterior or prior does not have independent dimensions counts as one. The sum over all is the ELBO's KL term.

    Args:
        model: Pyro program of p(x, z).
        guide: Pyro program of q(z | x).
        x: Data, shape ``(N, *event)``, or a tuple of tensors that share the first dimension.
        num_samples: Draws per datum, over which also the distributions of lower layers are averaged.
        seed: Seed of the draws; by default a new one from the operating system.
        plate: Name of the data plate; by default the outermost plate that all latent sites share.
        binarization: How the data were binarized, kept as an attribute.
        memory: Bytes that the tensors of one run may take; see :func:`log_weights`.

    Returns:
        For each latent site a variable of its name, dimensions ``datum`` and ``<site>_unit``, nats.

    Raises:
        TypeError: As :func:`evaluate`.
        ValueError: As :func:`evaluate`.

    Source:
        *Auto-Encoding Variational Bayes* (Kingma and Welling, 2014), appendix B.

    Example:
        >>> import torch, pyrovae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Normal(pv.networks.mlp(2, 4)),
        ...     pv.posteriors.DiagonalNormal(pv.networks.mlp(4, 2 * 2)),
        ... )
        >>> pv.evaluation.kl_per_dimension(vae.model, vae.guide, torch.zeros(10, 4)).z.dims
        ('datum', 'z_unit')
    """
    _check_num_samples(num_samples)
    seed, start = fresh_seed() if seed is None else seed, time.perf_counter()
    parts: dict[str, list[Tensor]] = {}
    with isolated(model, guide, seed=seed), pyro.validation_enabled(False):
        pieces = Pieces(model, guide, x, plate=plate, memory=memory)
        for piece in pieces.cut(max(1, pieces.affordable // num_samples)):
            of_guide, of_model = Latents(), Latents()
            _check_densities(pieces.run(piece, num_samples, vectorize=True, wrap=(of_model, of_guide)))
            for name, q, p in _pairs(of_guide, of_model):
                exact = is_mean_field(name, list(of_model.runs), list(of_guide.runs))
                values = _by_datum(pieces, divergence(q, p, exact=exact)).mean(0)
                parts.setdefault(name, []).append(values[: piece.kept])
    columns = {name: torch.cat(part).cpu().numpy() for name, part in parts.items()}
    return xr.Dataset(
        {name: (("datum", f"{name}_unit"), column) for name, column in columns.items()},
        coords={"datum": np.arange(pieces.size)},
        attrs=attributes(
            pieces, seed=seed, binarization=binarization, start=start, units="nats", num_samples=num_samples
        ),
    )


def collapsed_units(divergences: xr.Dataset, *, epsilon: float = 0.01, delta: float = 0.01) -> xr.Dataset:
    r"""Finds the latent units that are given up: :math:`P_x[\mathrm{KL} < \epsilon] \ge 1 - \delta`.

    Args:
        divergences: What :func:`kl_per_dimension` returned.
        epsilon: Nats below which a unit says nothing of a datum.
        delta: Share of the data of which a collapsed unit may say something.

    Returns:
        For each latent site whether its units are collapsed, dimension ``<site>_unit``.

    Raises:
        ValueError: If ``epsilon`` is not positive or ``delta`` is no share.

    Source:
        *Don't Blame the ELBO! A Linear VAE Perspective on Posterior Collapse* (Lucas, Tucker, Grosse and Norouzi,
        2019), definition 1.

    Example:
        >>> import xarray as xr, pyrovae as pv
        >>> divergences = xr.Dataset({"z": (("datum", "z_unit"), [[0.001, 1.2], [0.002, 0.0]])})
        >>> pv.evaluation.collapsed_units(divergences).z.values.tolist()
        [True, False]
    """
    if epsilon <= 0 or not 0 <= delta < 1:
        raise ValueError(f"epsilon must be positive and delta in [0, 1), got epsilon={epsilon} and delta={delta}")
    return (divergences < epsilon).mean("datum") >= 1 - delta


def elbo_surgery(
    model: Program,
    guide: Program,
    x: Data,
    num_samples: int = 1,
    *,
    seed: int | None = None,
    plate: str | None = None,
    binarization: str = "not stated",
    memory: int | None = None,
) -> xr.Dataset:
    r"""Splits the ELBO into reconstruction, mutual information and marginal KL.

    The aggregate posterior is that of the given data, whose number also bounds the mutual information, by log N. It is
    computed in full, from N * N * ``num_samples`` densities of the guide.

    Args:
        model: Pyro program of p(x, z) without enumerated sites.
        guide: Pyro program of q(z | x).
        x: Data, shape ``(N, *event)``, or a tuple of tensors that share the first dimension.
        num_samples: Draws per datum.
        seed: Seed of the draws; by default a new one from the operating system.
        plate: Name of the data plate; by default the outermost plate that all latent sites share.
        binarization: How the data were binarized, kept as an attribute.
        memory: Bytes that the tensors of one run may take; see :func:`log_weights`.

    Returns:
        Dataset with dimension ``datum``, nats, whose means over the data are the terms: ``reconstruction``, the mean of
        log p(x | z); ``kl``; ``mutual_information`` and ``marginal_kl``, which add up to it; and, where the guide has
        one latent site and it and its prior have independent dimensions, ``total_correlation`` and
        ``dimension_wise_kl``, which add up to the marginal KL.

    Raises:
        TypeError: As :func:`evaluate`.
        ValueError: As :func:`evaluate`; if the program sums out a discrete site.

    Source:
        *ELBO Surgery* (Hoffman and Johnson, 2016); *Isolating Sources of Disentanglement in Variational Autoencoders*
        (Chen, Li, Grosse and Duvenaud, 2018), for the split of the marginal KL.

    Example:
        >>> import torch, pyrovae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Normal(pv.networks.mlp(2, 4)),
        ...     pv.posteriors.DiagonalNormal(pv.networks.mlp(4, 2 * 2)),
        ... )
        >>> terms = pv.evaluation.elbo_surgery(vae.model, vae.guide, torch.randn(100, 4), seed=0)
        >>> bool(abs(terms.kl - terms.mutual_information - terms.marginal_kl).max() < 1e-5)
        True
    """
    _check_num_samples(num_samples)
    rows: dict[str, list[Tensor]] = {"reconstruction": [], "prior": [], "guide": [], "prior_units": []}
    draws: dict[str, list[Tensor]] = {}
    seed, start = fresh_seed() if seed is None else seed, time.perf_counter()
    with isolated(model, guide, seed=seed), pyro.validation_enabled(False):
        pieces = Pieces(model, guide, x, plate=plate, memory=memory)
        pieces.check_repeats()
        for piece in pieces.cut(max(1, pieces.affordable // num_samples)):
            of_guide, of_model = Latents(), Latents()
            densities = _check_densities(pieces.run(piece, num_samples, vectorize=True, wrap=(of_model, of_guide)))
            rows["reconstruction"].append(densities.likelihood[:, : piece.kept])
            rows["prior"].append(densities.prior[:, : piece.kept])
            rows["guide"].append(densities.guide[:, : piece.kept])
            for name, q, p in _pairs(of_guide, of_model):
                _check_unmasked(name, q, p)
                value = q["value"].movedim(pieces.data_dim, 1)[:, : piece.kept]
                draws.setdefault(name, []).append(value)
                if _has_units(of_guide) and _has_units(of_model):
                    rows["prior_units"].append(_by_datum(pieces, _units(p))[:, : piece.kept])
        together = {name: torch.cat(part, 1).double() for name, part in rows.items() if part}
        z = {name: torch.cat(part, 1).flatten(0, 1) for name, part in draws.items()}
        aggregate, units = (part.unflatten(0, (num_samples, -1)) for part in _aggregate(pieces, z))
    terms = {
        "reconstruction": together["reconstruction"],
        "kl": together["guide"] - together["prior"],
        "mutual_information": together["guide"] - aggregate,
        "marginal_kl": aggregate - together["prior"],
    }
    if "prior_units" in together:
        terms["total_correlation"] = aggregate - units.sum(-1)
        terms["dimension_wise_kl"] = (units - together["prior_units"]).sum(-1)
    return xr.Dataset(
        {name: ("datum", term.mean(0).cpu().numpy()) for name, term in terms.items()},
        coords={"datum": np.arange(pieces.size)},
        attrs=attributes(
            pieces, seed=seed, binarization=binarization, start=start, units="nats", num_samples=num_samples
        ),
    )


def _check_num_samples(num_samples: int) -> None:
    if num_samples < 1:
        raise ValueError(f"num_samples, the number of draws per datum, must be at least 1, got {num_samples}")


def _check_densities(weights: Weights) -> Densities:
    if weights.densities is None:
        raise ValueError(
            "the program sums out a discrete latent site, so its draws have no density q(z | x); draw the site in the "
            "guide instead of enumerating it"
        )
    return weights.densities


def _check_unmasked(name: str, *sites: Site) -> None:
    if any(site["mask"] is not None for site in sites):
        raise ValueError(
            f"latent site {name!r} is masked, so there is no posterior of all data to aggregate; leave out the data "
            f"whose latent is masked, and the mask"
        )


def _pairs(of_guide: Latents, of_model: Latents) -> Iterator[tuple[str, Site, Site]]:
    """The messages of guide and model of each latent site."""
    for name, messages in of_guide.runs.items():
        if name not in of_model.runs:
            raise ValueError(
                f"latent site {name!r} is auxiliary, in the guide but not in the model, so it has no KL divergence of "
                f"its own; use pyrovae.evaluation.evaluate for the bound on log p(x)"
            )
        yield name, messages[0], of_model.runs[name][0]


def _units(site: Site) -> Tensor:
    """The log-probability of each dimension of a site whose dimensions are independent."""
    distribution: Any = factors(site["fn"])
    return distribution.log_prob(site["value"])


def _has_units(latents: Latents) -> bool:
    """Whether there is one latent site, and its dimensions are independent."""
    (first, *_), *others = latents.runs.values()
    return not others and factors(first["fn"]) is not None


def _by_datum(pieces: Pieces, values: Tensor) -> Tensor:
    """Values that have draws and data among their dimensions, as ``(num_samples, N, units)``."""
    moved = values.movedim(pieces.data_dim, 1)
    return moved.reshape(*moved.shape[:2], -1)


def _aggregate(pieces: Pieces, z: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The log-density of the aggregate posterior at draws z, in all, ``(draws,)``, and per unit, ``(draws, units)``."""
    total, blocks = len(next(iter(z.values()))), []
    width = max(1, pieces.affordable // 64)
    for start in range(0, total, width):
        points = {name: value[start : start + width] for name, value in z.items()}
        in_all, in_units = [], []
        for piece in pieces.cut(64):
            size = len(piece.args[0]) if pieces.cuttable else pieces.plate.size
            values = {
                name: value.unsqueeze(1).expand(-1, size, *value.shape[1:]).movedim(1, pieces.data_dim)
                for name, value in points.items()
            }
            values |= piece.subsample or {}
            with Latents() as latents:
                draw_latents(
                    pieces.guide,
                    pieces.arguments(piece),
                    len(points[next(iter(z))]),
                    nesting=pieces.nesting,
                    values=values,
                )
            sites = [messages[0] for messages in latents.runs.values()]
            log_q = add_up([(site, score(site)) for site in sites], -pieces.nesting - 1, cast(int, pieces.plate.dim))
            in_all.append(log_q[:, : piece.kept])
            units = _by_datum(pieces, _units(sites[0])) if _has_units(latents) else log_q.unsqueeze(-1)
            in_units.append(units[:, : piece.kept])
        blocks.append([torch.cat(part, 1).double().logsumexp(1) - math.log(pieces.size) for part in (in_all, in_units)])
    return torch.cat([block[0] for block in blocks]), torch.cat([block[1] for block in blocks])
