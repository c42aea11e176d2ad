r"""The inference gap, log p(x) minus the ELBO, split into the approximation gap and the amortization gap.

.. math::
    \log p(x) - \mathcal{L}[q]
    = \underbrace{\log p(x) - \mathcal{L}[q^*]}_{\text{approximation gap}}
    + \underbrace{\mathcal{L}[q^*] - \mathcal{L}[q]}_{\text{amortization gap}},

where :math:`q` is the amortized posterior of the guide. Among all members of a given family of densities, :math:`q^*`
has the highest ELBO for the datum.
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
from pyrovae.evaluation.provenance import NO_ARGUMENTS, arguments_sha1, attributes
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
    r"""Split the inference gap of each datum into the approximation gap and the amortization gap.

    Args:
        model: Pyro program of p(x, z) with continuous latent sites.
        guide: Pyro program of q(z | x).
        x: Data, shape ``(N, *event)``, or a tuple of tensors that share the first dimension.
        reference: Result of an estimator of log p(x) for the same data, as accurate as possible. Use a result of
            :func:`ais`, or a result of :func:`evaluate` if its estimates are reliable. An estimate of log p(x) that is
            too low makes the approximation gap too small.
        family: Family of the local posterior, which has separate parameters for every datum. ``"normal"`` is a normal
            density with independent dimensions. ``"flow"`` is an inverse autoregressive flow of two layers that
            transforms draws of the guide.
        num_steps: Steps of Adam, with a cosine learning-rate schedule.
        num_particles: Draws per datum in each step of Adam.
        learning_rate: Learning rate of Adam. Locations are optimized in units of the standard deviations of the guide's
            draws.
        num_samples: Draws per datum for the reported ELBOs.
        **options: Keyword arguments of :class:`Options`.

    Returns:
        Dataset with dimension ``datum``, nats:

        * ``log_likelihood``, ``mcse``: copied from the reference;
        * ``elbo``, ``elbo_mcse``: ELBO of the guide, and its Monte Carlo standard error;
        * ``local_elbo``, ``local_elbo_mcse``: ELBO of the local posterior, and its Monte Carlo standard error;
        * ``approximation_gap``, ``amortization_gap``, and their sum, ``inference_gap``. ``amortization_gap`` may be
          negative for ``family="normal"`` if the guide's own family is richer than this normal family.

    Raises:
        TypeError: For the reasons listed at :func:`evaluate`.
        ValueError: For the reasons listed at :func:`evaluate`; if the reference is a result for other data, another
            order of the data, other programs, or other ``kwargs`` or elements of the tuple ``x``; if one of these
            arguments cannot be compared with those of the reference, such as a generator or an open file; if ``family``
            is unknown; if a number of steps, particles or draws is less than 1; or if a latent site is discrete, masked
            or auxiliary.
        FloatingPointError: If the log-weights of all data are NaN or infinite.

    Source:
        *Inference Suboptimality in Variational Autoencoders* (Cremer, Li and Duvenaud, 2018).

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyrovae as pv
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):  # normal, like the posterior N(x / 2, 1 / 2), but too wide: all of the gap is amortization
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 1.0))
        >>> x = torch.tensor([0.0, 1.0])
        >>> reference = pv.evaluation.evaluate(model, guide, x, num_samples=5000, seed=0)
        >>> gaps = pv.evaluation.inference_gaps(
        ...     model, guide, x, reference, num_steps=50, num_particles=50, learning_rate=0.1, seed=0
        ... )
        >>> bool((abs(gaps.approximation_gap) < 0.03).all()), bool((gaps.amortization_gap > 0.1).all())
        (True, True)
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
        # Unlike the attributes of a result, the comparison with a reference needs a checksum of all arguments.
        attrs = attributes(problem) | {"arguments_sha1": arguments_sha1(problem)}
        _check_reference(reference, attrs, problem.size)
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
    """Return a dictionary: the ELBOs of guide and local posteriors, and their errors, shapes ``(n,)``, nats."""
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
            f"the reference (for {reference.sizes['datum']} data) and x ({size} data) differ in number or order of the "
            f"data. As the reference, pass the result of an estimator for the whole of x."
        )
    kinds = {
        "data_sha1": "other data than x",
        "model": "another model",
        "parameters_sha1": "other parameters",
        "programs_sha1": "other parameters or other code of the programs",
        "objects_sha1": "other parameters or other functions, classes or objects in the programs",
        "arguments_sha1": "other keyword arguments, or other elements of the tuple x that are not arrays",
    }
    # Results of earlier versions lack some attributes. A result without arguments_sha1 is assumed to have no arguments.
    recorded = {"arguments_sha1": NO_ARGUMENTS, **reference.attrs}
    for attribute, what in kinds.items():
        if attribute in ("programs_sha1", "objects_sha1") and attribute not in recorded:
            continue
        if recorded.get(attribute) != attrs[attribute]:
            raise ValueError(
                f"the reference is a result for {what}: the reference records {recorded.get(attribute)}, but this call "
                f"has {attrs[attribute]}. Compute a reference from the same model, guide and x, with the same kwargs=: "
                f"reference=pyrovae.evaluation.ais(model, guide, x)."
            )
