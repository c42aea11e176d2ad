r"""How far the ELBO is from log p(x), and whose fault it is: the posterior family's or the encoder's.

.. math::
    \log p(x) - \mathcal{L}[q]
    = \underbrace{\log p(x) - \mathcal{L}[q^*]}_{\text{approximation gap}}
    + \underbrace{\mathcal{L}[q^*] - \mathcal{L}[q]}_{\text{amortization gap}},

where :math:`q` is the amortized posterior of the guide and :math:`q^*` the best member of a family for that very datum.
"""

import time
from functools import partial
from typing import Any

import numpy as np
import pyro
import torch
import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm

from pyrovae._waist.sites import Program
from pyrovae.arguments import Data
from pyrovae.evaluation import bounds
from pyrovae.evaluation.diagnostics.local_posteriors import Family, optimize
from pyrovae.evaluation.problem import Piece, Pieces
from pyrovae.evaluation.provenance import attributes, check_finite
from pyrovae.evaluation.unconstrained import Target
from pyrovae.isolation import fresh_seed, isolated


def inference_gaps(
    model: Program,
    guide: Program,
    x: Data,
    reference: xr.Dataset,
    *,
    family: Family = "normal",
    num_steps: int = 500,
    num_particles: int = 10,
    learning_rate: float = 0.05,
    num_samples: int = 1000,
    seed: int | None = None,
    plate: str | None = None,
    memory: int | None = None,
    progress: bool = True,
) -> xr.Dataset:
    r"""Splits the inference gap of each datum into the approximation and the amortization gap.

    Args:
        model: Pyro program of p(x, z) with continuous latent sites.
        guide: Pyro program of q(z | x).
        x: Data, shape ``(N, *event)``, or a tuple of tensors that share the first dimension.
        reference: A result for the same data that holds their ``log_likelihood``, the best that there is: of
            :func:`ais`, or of :func:`evaluate` where its proposal is reliable. Too low an estimate makes the
            approximation gap too small.
        family: Of the local posterior, with parameters of its own for every datum: a ``"normal"`` density with
            independent dimensions, or an inverse autoregressive ``"flow"`` of two layers that moves the guide's draws.
        num_steps: Steps of Adam, under a cosine schedule.
        num_particles: Draws per datum and step.
        learning_rate: Of Adam; locations move in units of the guide's scales.
        num_samples: Draws per datum that the ELBOs are reported with.
        seed: Seed of the draws; by default a new one from the operating system. The result names it.
        plate: Name of the data plate; by default the outermost plate that all latent sites share.
        memory: Bytes that the tensors of one run may take; see :func:`log_weights`.
        progress: Whether to show a progress bar; it is quiet where the output is no terminal.

    Returns:
        Dataset with dimension ``datum``, nats: ``log_likelihood`` and ``mcse`` of the reference; ``elbo`` and
        ``elbo_mcse`` of the guide; ``local_elbo`` and ``local_elbo_mcse`` of the local posterior;
        ``approximation_gap``, ``amortization_gap``, and their sum, ``inference_gap``. The amortization gap of a guide
        from a richer family than the normal one may be negative there.

    Raises:
        TypeError: As :func:`evaluate`.
        ValueError: As :func:`evaluate`; if the reference is of other data, in another order, or of another kind of
            model; if a number is out of range, or a latent site is discrete, masked or auxiliary.
        FloatingPointError: If a log-weight is NaN or infinite.

    Source:
        *Inference Suboptimality in Variational Autoencoders* (Cremer, Li and Duvenaud, 2018).

    Example:
        >>> import torch, pyrovae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Normal(pv.networks.mlp(2, 4)),
        ...     pv.posteriors.DiagonalNormal(pv.networks.mlp(4, 2 * 2)),
        ... )
        >>> x = torch.zeros(5, 4)
        >>> reference = pv.evaluation.evaluate(vae.model, vae.guide, x, 1000, seed=0)
        >>> gaps = pv.evaluation.inference_gaps(vae.model, vae.guide, x, reference, num_steps=100, seed=0)
        >>> bool((gaps.amortization_gap > -0.1).all())
        True
    """
    for name, value in {"num_steps": num_steps, "num_particles": num_particles, "num_samples": num_samples}.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if family not in ("normal", "flow"):
        raise ValueError(f"family must be 'normal' or 'flow', got {family!r}")
    seed, start = fresh_seed() if seed is None else seed, time.perf_counter()
    parts: list[dict[str, Tensor]] = []
    with isolated(model, guide, seed=seed), pyro.validation_enabled(False):
        pieces = Pieces(model, guide, x, plate=plate, memory=memory)
        attrs = attributes(
            pieces,
            seed=seed,
            binarization=reference.attrs.get("binarization", "not stated"),
            start=start,
            units="nats per datum",
            family=family,
            num_steps=num_steps,
            num_samples=num_samples,
        )
        _check_reference(reference, attrs, pieces.size)
        with tqdm(total=pieces.size * num_steps, desc=f"local {family}", disable=None if progress else True) as bar:
            for piece in pieces.cut(max(1, pieces.affordable // num_particles)):
                target = Target(pieces, piece)
                local = optimize(
                    target,
                    family,
                    num_steps=num_steps,
                    num_particles=num_particles,
                    learning_rate=learning_rate,
                    advance=partial(bar.update, piece.kept),
                )
                parts.append(_elbos(pieces, piece, target, local, num_samples))
    columns = {name: torch.cat([part[name] for part in parts]).cpu().numpy() for name in parts[0]}
    log_p = reference.log_likelihood.values
    columns["approximation_gap"] = log_p - columns["local_elbo"]
    columns["amortization_gap"] = columns["local_elbo"] - columns["elbo"]
    columns["inference_gap"] = log_p - columns["elbo"]
    dataset = xr.Dataset(
        {name: ("datum", column) for name, column in columns.items()}, coords={"datum": np.arange(pieces.size)}
    )
    return dataset.assign(log_likelihood=("datum", log_p), mcse=("datum", reference.mcse.values)).assign_attrs(
        attrs | {"seconds": time.perf_counter() - start}
    )


def _elbos(pieces: Pieces, piece: Piece, target: Target, local: Any, num_samples: int) -> dict[str, Tensor]:
    """ELBOs of guide and local posterior, and their standard errors, shapes ``(n,)``."""
    draws = max(1, pieces.affordable // target.size)
    runs: dict[str, list[Tensor]] = {"elbo": [], "local_elbo": []}
    for done in range(0, num_samples, draws):
        size = min(draws, num_samples - done)
        runs["elbo"].append(pieces.run(piece, size, vectorize=True).log_weights)
        u, log_q = local(size)
        runs["local_elbo"].append(target.log_joint(u) - log_q)
    columns = {}
    for name, log_weights in runs.items():
        together = torch.cat(log_weights).double()[:, : piece.kept]
        check_finite(together)
        columns[name], columns[f"{name}_mcse"] = bounds.elbo(together)
    return columns


def _check_reference(reference: xr.Dataset, attrs: dict[str, Any], size: int) -> None:
    if reference.sizes["datum"] != size or (reference.datum.values != np.arange(size)).any():
        raise ValueError(
            f"the reference holds {reference.sizes['datum']} data, or holds them in another order, and x {size}; give "
            f"the whole result as it was made"
        )
    for attribute, what in {"data_sha1": "other data than x", "model": "another model"}.items():
        if reference.attrs.get(attribute) != attrs[attribute]:
            raise ValueError(
                f"the reference is a result for {what}, {reference.attrs.get(attribute)} instead of "
                f"{attrs[attribute]}; make one, reference=pyrovae.evaluation.ais(model, guide, x)"
            )
