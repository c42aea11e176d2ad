"""Importance sampling with draws from the guide: bounds and diagnostics per datum."""

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

    Memory is bounded for any number of data, and grows with the number of draws only by the weights of one batch.

    Args:
        model: Pyro program of p(x, z), called as ``model(x)``, or ``model(*x)`` if ``x`` is a tuple.
        guide: Pyro program of q(z | x), called likewise.
        x: Data, shape ``(N, *event)``, or a tuple of arguments whose tensors share the first dimension.
        num_samples: Draws per datum, K.
        k: Numbers of draws for which to report IWAE_k; by default 1, 5, 50, 500, ... and K.
        **options: See :class:`Options`.

    Returns:
        Dataset with dimension ``datum`` and, in nats, higher is better:

        * ``elbo``, ``elbo_mcse``: mean log-weight, and its Monte Carlo standard error;
        * ``iwae``, ``iwae_mcse``: IWAE_k, also over dimension ``k``, and its Monte Carlo standard error;
        * ``log_likelihood``, ``mcse``: the estimate of log p(x) from all draws, which is IWAE_K, and its Monte Carlo
          standard error by the delta method, with the rounding error of the log-weights;
        * ``ess``: effective sample size of the draws, 1 to K;
        * ``pareto_k``: k-hat of Pareto-smoothed importance sampling; above 0.7 the estimate is not reliable.

        Attributes name the programs, the number of draws, seed, binarization, base measure, fingerprints of data and
        parameters, seconds, library versions and device. ``results.mean("datum")`` gives averages,
        ``results.to_netcdf(path)`` a file.

    Raises:
        TypeError: If an option has another name, or a count, the seed or a ``k`` is not an integer.
        ValueError: If ``x`` is empty or lies outside the likelihood's support; if a number is out of range; if model
            and guide disagree about their latent sites, there is no data plate, a latent site lies outside of it, or a
            log-weight depends on other data.
        FloatingPointError: If the log-weights of all data are NaN or infinite: the model has diverged.

    Source:
        *Importance Weighted Autoencoders* (Burda, Grosse and Salakhutdinov, 2016).

    Example:
        >>> import torch, pyrovae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Normal(pv.networks.mlp(2, 4)),
        ...     pv.posteriors.DiagonalNormal(pv.networks.mlp(4, 2 * 2)),
        ... )
        >>> results = pv.evaluation.evaluate(vae.model, vae.guide, torch.zeros(10, 4), num_samples=200, seed=0)
        >>> results.iwae.sizes["k"], bool((results.elbo <= results.log_likelihood).all())
        (4, True)
    """
    problem = Problem(model, guide, x, **options)
    check_draws(num_samples)
    ks = _ks(num_samples, k)
    return report(
        problem,
        lambda batch: bounds.of_valid(problem.log_weights(batch, num_samples), lambda part: _summary(part, ks)),
        estimator="importance sampling",
        width=lambda: Sampler(problem, num_samples).width,
        dims={"iwae": ("datum", "k"), "iwae_mcse": ("datum", "k")},
        coords={"k": ks},
        num_samples=num_samples,
    )


@takes_vae
def log_weights(model: Program, guide: Program, x: Any, num_samples: int, **options: Unpack[Options]) -> Tensor:
    r"""Draw importance log-weights, :math:`\log p(x_n, z) - \log q(z \mid x_n)` with :math:`z \sim q(z \mid x_n)`.

    Scales (subsampling, annealing) are left out, and masks are kept. Observed sites outside the data plate, such as a
    latent that was conditioned on, are given and not part of the weights. A program whose plate subsamples is told
    which data to take, until all have been taken. Nothing is changed by the evaluation: no global generator, parameter,
    buffer or training mode. Processes that have joined (:mod:`pyrovae.parallel`) compute batches in turns, and all get
    the result of one process.

    Args:
        model: Pyro program of p(x, z), called as ``model(x)``, or ``model(*x)`` if ``x`` is a tuple.
        guide: Pyro program of q(z | x), called likewise.
        x: Data, shape ``(N, *event)``, or a tuple of arguments whose tensors share the first dimension. They are moved
            to the device of the programs' parameters.
        num_samples: Draws per datum, K.
        **options: See :class:`Options`; without ``checkpoint``.

    Returns:
        Log-weights, shape ``(num_samples, N)``, nats. NaN or infinite ones are returned as they are.

    Raises:
        TypeError: As :func:`evaluate`.
        ValueError: As :func:`evaluate`.

    Example:
        >>> import torch, pyrovae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Normal(pv.networks.mlp(2, 4)),
        ...     pv.posteriors.DiagonalNormal(pv.networks.mlp(4, 2 * 2)),
        ... )
        >>> pv.evaluation.log_weights(vae.model, vae.guide, torch.zeros(10, 4), num_samples=7).shape
        torch.Size([7, 10])
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
    """Return the columns of some data by name, shape ``(n,)`` or ``(n, len(ks))``."""
    _, pareto_k = psis(log_weights)
    exact = log_weights.T.contiguous().double().T  # sums over neighbours in memory take a third of the time
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
        raise TypeError(f"k must hold numbers of draws, such as k=[1, 5, 50], got {k!r}")
    ks = []
    for n in k:
        check_whole(k=n)
        ks.append(int(n))
    ks = sorted(set(ks))
    if not ks or not 1 <= ks[0] <= ks[-1] <= num_samples:
        raise ValueError(f"k must hold numbers from 1 to num_samples={num_samples}, got {ks}")
    return ks
