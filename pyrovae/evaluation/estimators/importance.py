"""Importance sampling with draws from the guide: bounds and diagnostics for each datum."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor

from pyrovae._waist.sites import Program
from pyrovae.arguments import check_whole
from pyrovae.evaluation import bounds
from pyrovae.evaluation.diagnostics.psis import psis
from pyrovae.evaluation.options import Options
from pyrovae.evaluation.pairs import takes_vae
from pyrovae.evaluation.problem import Problem
from pyrovae.evaluation.report import report
from pyrovae.evaluation.sampler import Sampler, check_draws
from pyrovae.evaluation.unconstrained.edges import warn_of_rounding

if TYPE_CHECKING:
    import xarray as xr


@takes_vae
def evaluate(
    model: Program,
    guide: Program,
    x: Any,
    num_samples: int = 5000,
    *,
    k: Iterable[int] | None = None,
    **options: Unpack[Options],
) -> "xr.Dataset":
    r"""Estimate bounds on log p(x) for each datum by importance sampling, with errors and diagnostics.

    The memory in use is bounded for any number of data. With more draws, only the log-weights of one batch need more
    memory.

    Args:
        model: Pyro program of p(x, z), called as ``model(x)``, or ``model(*x)`` if ``x`` is a tuple.
        guide: Pyro program of q(z | x), called with the same arguments.
        x: Data, shape ``(N, *event)``, or a tuple of arguments whose tensors share the first dimension.
        num_samples: Draws per datum, K.
        k: Values of k for which to report IWAE_k; by default 1, 5, 50, 500, ... and K.
        **options: Keyword arguments of :class:`Options`.

    Returns:
        Dataset with dimension ``datum``. Bounds are in nats, and higher is better:

        * ``elbo``, ``elbo_mcse``: mean log-weight, and its Monte Carlo standard error;
        * ``iwae``, ``iwae_mcse``: IWAE_k, with the additional dimension ``k``, and its Monte Carlo standard error;
        * ``log_likelihood``: IWAE_K, the estimate of log p(x) from all draws;
        * ``mcse``: Monte Carlo standard error of ``log_likelihood`` by the delta method, including the rounding error
          of the log-weights;
        * ``ess``: effective sample size of the draws, 1 to K;
        * ``pareto_k``: k-hat of Pareto-smoothed importance sampling. The estimate is not reliable if k-hat exceeds 0.7.

        The attributes hold the names of the programs, number of draws, seed, binarization, base measure, fingerprints
        of data and parameters, seconds, library versions and device. ``results.mean("datum")`` computes means over the
        data. ``results.to_netcdf(path)`` writes a file.

    Raises:
        TypeError: If an option is unknown, or if a count, the seed or a value of ``k`` is not an integer.
        ValueError: If ``x`` is empty or lies outside the likelihood's support; if a number is out of range; if model
            and guide disagree about their latent sites; if the program has no data plate, or a latent site lies outside
            it; or if the log-weight of a datum depends on other data.
        FloatingPointError: If the log-weights of all data are NaN or infinite, because the model has diverged.

    Warns:
        UserWarning: If rounding moves many draws to the edge of a support.

    Source:
        *Importance Weighted Autoencoders* (Burda, Grosse and Salakhutdinov, 2016).

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyrovae as pv
        >>> def model(x):  # p(x) = N(0, 2)
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 1.0))
        >>> x = torch.tensor([0.0, 1.0])
        >>> results = pv.evaluation.evaluate(model, guide, x, num_samples=1000, seed=0)
        >>> exact = dist.Normal(0.0, 2**0.5).log_prob(x).numpy()
        >>> bool((abs(results.log_likelihood - exact) < 4 * results.mcse).all()), bool((results.mcse < 0.05).all())
        (True, True)
        >>> bool((results.elbo < results.log_likelihood).all()), bool((results.pareto_k < 0.7).all())
        (True, True)
    """
    problem = Problem(model, guide, x, **options)
    check_draws(num_samples)
    ks = _ks(num_samples, k)

    def width() -> int:
        warn_of_rounding(problem)
        return Sampler(problem, num_samples).width

    return report(
        problem,
        lambda batch: bounds.of_valid(problem.log_weights(batch, num_samples), lambda part: _summary(part, ks)),
        estimator="importance sampling",
        width=width,
        dims={"iwae": ("datum", "k"), "iwae_mcse": ("datum", "k")},
        coords={"k": ks},
        num_samples=num_samples,
    )


@takes_vae
def log_weights(model: Program, guide: Program, x: Any, num_samples: int, **options: Unpack[Options]) -> Tensor:
    r"""Draw importance log-weights, :math:`\log p(x_n, z) - \log q(z \mid x_n)` with :math:`z \sim q(z \mid x_n)`.

    Scales (subsampling, annealing) are left out of the log-weights, and masks are applied. Observed sites outside the
    data plate, such as a latent that was conditioned on, are taken as given and do not contribute. If a plate
    subsamples, the evaluation chooses the subsamples so that every datum is scored.

    An evaluation changes neither the global random generators nor parameters, buffers or training modes. If several
    processes have joined (:mod:`pyrovae.parallel`), each process computes some of the batches, and all processes
    return the result that a single process would return.

    Args:
        model: Pyro program of p(x, z), called as ``model(x)``, or ``model(*x)`` if ``x`` is a tuple.
        guide: Pyro program of q(z | x), called with the same arguments.
        x: Data, shape ``(N, *event)``, or a tuple of arguments whose tensors share the first dimension. The data are
            moved to the device of the programs' parameters.
        num_samples: Draws per datum, K.
        **options: Keyword arguments of :class:`Options`.

    Returns:
        Log-weights, shape ``(num_samples, N)``, nats. Values that are NaN or infinite are returned unchanged.

    Raises:
        TypeError: For the reasons listed at :func:`evaluate`.
        ValueError: For the reasons listed at :func:`evaluate`.

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyrovae as pv
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):  # the exact posterior, so that all log-weights equal log p(x)
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> x = torch.tensor([0.0, 1.0])
        >>> log_weights = pv.evaluation.log_weights(model, guide, x, num_samples=7)
        >>> log_weights.shape, torch.allclose(log_weights, dist.Normal(0.0, 2**0.5).log_prob(x), atol=1e-4)
        (torch.Size([7, 2]), True)
    """
    problem = Problem(model, guide, x, **options)
    check_draws(num_samples)
    found = report(
        problem,
        lambda batch: {"log_weights": problem.log_weights(batch, num_samples)},
        estimator="log-weights",
        width=lambda: Sampler(problem, num_samples).width,
        dims={"log_weights": ("draw", "datum")},
        num_samples=num_samples,
    )
    return torch.from_numpy(found.log_weights.values).to(problem.device)


def _summary(log_weights: Tensor, ks: list[int]) -> dict[str, Tensor]:
    """Return a dictionary of the bounds, errors and diagnostics of n data, shapes ``(n,)`` or ``(n, len(ks))``."""
    _, pareto_k = psis(log_weights)
    exact = log_weights.T.contiguous().double().T  # sums along contiguous memory take a third of the time
    elbo, elbo_mcse = bounds.elbo(exact)
    bound = {k: bounds.iwae(exact, k) for k in {*ks, len(exact)}}
    log_likelihood, mcse = bound[len(exact)]
    iwae, iwae_mcse = zip(*(bound[k] for k in ks), strict=True)
    return {
        "elbo": elbo,
        "elbo_mcse": elbo_mcse,
        "iwae": torch.stack(iwae, dim=-1),
        "iwae_mcse": torch.stack(iwae_mcse, dim=-1),
        "log_likelihood": log_likelihood,
        "mcse": torch.hypot(mcse, bounds.rounding_error(log_weights)),
        "ess": bounds.effective_sample_size(exact),
        "pareto_k": pareto_k,
    }


def _ks(num_samples: int, k: Iterable[int] | None) -> list[int]:
    if k is None:
        usual = [1, *(5 * 10**i for i in range(9))]
        return [*(n for n in usual if n < num_samples), num_samples]
    if not isinstance(k, Iterable):
        raise TypeError(f"k must be a sequence of numbers of draws, such as k=[1, 5, 50], got {k!r}")
    ks = []
    for n in k:
        check_whole(k=n)
        ks.append(int(n))
    ks = sorted(set(ks))
    if not ks or not 1 <= ks[0] <= ks[-1] <= num_samples:
        raise ValueError(f"the values of k must lie between 1 and num_samples={num_samples}, got {ks}")
    return ks
