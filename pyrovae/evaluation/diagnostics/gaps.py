r"""The inference gap, log p(x) minus the ELBO, as the sum of the approximation gap and the amortization gap.

.. math::
    \log p(x) - \mathcal{L}[q]
    = \underbrace{\log p(x) - \mathcal{L}[q^*]}_{\text{approximation gap}}
    + \underbrace{\mathcal{L}[q^*] - \mathcal{L}[q]}_{\text{amortization gap}},

where :math:`q` is the amortized posterior of the guide and :math:`q^*` the best member of a family for that very datum.
"""

from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch
from torch import Tensor

from pyrovae._waist.sites import Program
from pyrovae.evaluation import bounds
from pyrovae.evaluation.batches import Batch
from pyrovae.evaluation.diagnostics.local_posteriors import Family, optimize
from pyrovae.evaluation.options import Options
from pyrovae.evaluation.pairs import takes_vae
from pyrovae.evaluation.problem import Problem
from pyrovae.evaluation.provenance import attributes
from pyrovae.evaluation.report import report
from pyrovae.evaluation.unconstrained.space import Space
from pyrovae.evaluation.unconstrained.target import Target

if TYPE_CHECKING:
    import xarray as xr


@takes_vae
def inference_gaps(
    model: Program,
    guide: Program,
    x: Any,
    reference: "xr.Dataset",
    *,
    family: Family = "normal",
    num_steps: int = 500,
    num_particles: int = 10,
    learning_rate: float = 0.05,
    num_samples: int = 1000,
    **options: Unpack[Options],
) -> "xr.Dataset":
    r"""Split the inference gap of each datum into the approximation and the amortization gap.

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
        **options: See :class:`Options`.

    Returns:
        Dataset with dimension ``datum``, nats: ``log_likelihood`` and ``mcse`` of the reference; ``elbo`` and
        ``elbo_mcse`` of the guide; ``local_elbo`` and ``local_elbo_mcse`` of the local posterior;
        ``approximation_gap``, ``amortization_gap``, and their sum, ``inference_gap``. The amortization gap of a guide
        from a richer family than the normal one may be negative there.

    Raises:
        TypeError: As :func:`evaluate`.
        ValueError: As :func:`evaluate`; if the reference is of other data, in another order, or of another kind of
            model; if a number is out of range, or a latent site is discrete, masked or auxiliary.
        FloatingPointError: If the log-weights of all data are NaN or infinite.

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
    if "binarization" not in options:
        options["binarization"] = reference.attrs.get("binarization", "not stated")
    problem = Problem(model, guide, x, **options)
    spaces: list[Space] = []

    def prepare() -> int:
        _check_reference(reference, attributes(problem), problem.size)
        spaces.append(Space(problem))
        return problem.width(num_particles)

    def columns(batch: Batch) -> dict[str, Tensor]:
        target = Target(spaces[0], batch)
        local = optimize(target, family, num_steps=num_steps, num_particles=num_particles, learning_rate=learning_rate)
        return _elbos(problem, batch, target, local, num_samples)

    result = report(
        problem,
        columns,
        estimator=f"inference gaps, local {family}",
        width=prepare,
        units="nats per datum",
        family=family,
        num_steps=num_steps,
        num_samples=num_samples,
        settings={"num_particles": num_particles, "learning_rate": learning_rate},
    )
    log_p = reference.log_likelihood.values[: result.sizes["datum"]]
    return result.assign(
        approximation_gap=("datum", log_p - result.local_elbo.values),
        amortization_gap=("datum", result.local_elbo.values - result.elbo.values),
        inference_gap=("datum", log_p - result.elbo.values),
        log_likelihood=("datum", log_p),
        mcse=("datum", reference.mcse.values[: result.sizes["datum"]]),
    )


def _elbos(problem: Problem, batch: Batch, target: Target, local: Any, num_samples: int) -> dict[str, Tensor]:
    """Return ELBOs of guide and local posterior, and their standard errors, shapes ``(n,)``."""
    chunk = max(1, problem.affordable // target.size)
    of_local = []
    for done in range(0, num_samples, chunk):
        u, log_q = local(min(chunk, num_samples - done))
        of_local.append(target.log_joint(u) - log_q)
    columns = {}
    runs = {"elbo": problem.log_weights(batch, num_samples), "local_elbo": torch.cat(of_local)[:, : batch.kept]}
    for name, log_weights in runs.items():
        columns[name], columns[f"{name}_mcse"] = bounds.elbo(log_weights.double())
    return columns


def _check_reference(reference: "xr.Dataset", attrs: dict[str, Any], size: int) -> None:
    if reference.sizes["datum"] != size or (reference.datum.values != np.arange(size)).any():
        raise ValueError(
            f"the reference holds {reference.sizes['datum']} data, or holds them in another order, and x {size}; give "
            f"the whole result as it was made"
        )
    kinds = {
        "data_sha1": "other data than x",
        "model": "another model",
        "parameters_sha1": "other parameters",
        "programs_sha1": "other parameters or other code of the programs",
    }
    for attribute, what in kinds.items():
        if attribute == "programs_sha1" and attribute not in reference.attrs:
            continue  # a result of an earlier version
        if reference.attrs.get(attribute) != attrs[attribute]:
            raise ValueError(
                f"the reference is a result for {what}, {reference.attrs.get(attribute)} instead of "
                f"{attrs[attribute]}; make one, reference=pyrovae.evaluation.ais(model, guide, x)"
            )
