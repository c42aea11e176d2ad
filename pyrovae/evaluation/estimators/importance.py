"""``evaluate``: bounds and diagnostics per datum, as one labelled table."""

import time
from collections.abc import Iterable
from functools import partial

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm

from pyrovae import parallel
from pyrovae._compilation.precision import Precision
from pyrovae._waist.sites import Program
from pyrovae.arguments import Data, check_whole
from pyrovae.evaluation import bounds as of_draws
from pyrovae.evaluation.diagnostics.psis import psis
from pyrovae.evaluation.estimators.sampling import Sampler
from pyrovae.evaluation.provenance import attributes
from pyrovae.isolation import fresh_seed, isolated


def evaluate(
    model: Program,
    guide: Program,
    x: Data,
    num_samples: int = 5000,
    *,
    seed: int | None = None,
    plate: str | None = None,
    k: Iterable[int] | None = None,
    binarization: str = "not stated",
    vectorize: bool = True,
    memory: int | None = None,
    compile: bool = False,  # noqa: A002  # as torch calls it
    precision: Precision | None = None,
    progress: bool = True,
) -> xr.Dataset:
    r"""Estimates bounds on log p(x) for each datum by importance sampling, with errors and diagnostics.

    Scales, masks, conditioned latents, subsampling plates and several processes are treated as :func:`log_weights`
    says. Memory is bounded for any number of data, and grows with the number of draws only by the weights of one chunk
    of data.

    Args:
        model: Pyro program of p(x, z).
        guide: Pyro program of q(z | x).
        x: Data, shape ``(N, *event)``, or a tuple of tensors that share the first dimension.
        num_samples: Draws per datum, K.
        seed: Seed of the draws; by default a new one from the operating system. The result names it.
        plate: Name of the data plate; by default the outermost plate that all latent sites share.
        k: Numbers of draws for which to report IWAE_k; by default 1, 5, 50, 500, ... and K.
        binarization: How the data were binarized, kept as an attribute: two results whose binarizations differ are not
            to be compared.
        vectorize: Whether many draws are made in one run; see :func:`log_weights`.
        memory: Bytes that the tensors of one run may take; see :func:`log_weights`.
        compile: Whether to compile the model's density; see :func:`log_weights`.
        precision: Of the products in layers, such as ``"bfloat16"``; see :func:`log_weights`.
        progress: Whether to show a progress bar; it is quiet where the output is no terminal.

    Returns:
        Dataset with dimension ``datum`` and, in nats, higher is better:

        * ``elbo``, ``elbo_mcse``: mean log-weight, and its Monte Carlo standard error;
        * ``iwae``, ``iwae_mcse``: IWAE_k, also over dimension ``k``, and its Monte Carlo standard error;
        * ``log_likelihood``, ``mcse``: the estimate of log p(x) from all draws, which is IWAE_K, and its Monte Carlo
          standard error by the delta method;
        * ``ess``: effective sample size of the draws, 1 to K;
        * ``pareto_k``: k-hat of Pareto-smoothed importance sampling; above 0.7 the estimate is not to be trusted.

        Its attributes name the programs, draws, seed, binarization, base measure, a hash of the data, seconds, library
        versions and device. ``results.mean("datum")`` gives averages, ``results.to_netcdf(path)`` a file.

    Raises:
        TypeError: As :func:`log_weights`; if ``k`` does not hold integers.
        ValueError: As :func:`log_weights`; if a ``k`` is not between 1 and K.
        FloatingPointError: If a log-weight is NaN or infinite: the model has diverged.

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
    seed = parallel.in_first(fresh_seed) if seed is None else seed
    start = time.perf_counter()
    with isolated(model, guide, seed=seed):
        sampler = Sampler(
            model,
            guide,
            x,
            num_samples,
            plate=plate,
            vectorize=vectorize,
            memory=memory,
            compile=compile,
            precision=precision,
        )
        ks = _ks(num_samples, k)
        # Written in place: small results kept between the runs' large tensors would fragment the heap without bound.
        columns = {name: np.empty((sampler.size, len(ks))[:ndim]) for name, ndim in _COLUMNS.items()}
        done = 0
        hidden = None if progress and parallel.is_first() else True  # None: where the output is no terminal
        with tqdm(total=sampler.size, unit="datum", desc="evaluate", disable=hidden) as bar:
            for summary in sampler.map(partial(_summary, ks=ks)):
                for name, values in summary.items():
                    columns[name][done : done + len(values)] = values
                done += len(summary["elbo"])
                bar.update(len(summary["elbo"]))
    return xr.Dataset(
        {name: (("datum", "k")[: values.ndim], values) for name, values in columns.items()},
        coords={"datum": np.arange(sampler.size), "k": ks},
        attrs=attributes(
            sampler.pieces,
            seed=seed,
            binarization=binarization,
            start=start,
            estimator="importance sampling",
            num_samples=num_samples,
            precision=precision or "as torch is set",
        ),
    )


_COLUMNS = {
    "elbo": 1,
    "elbo_mcse": 1,
    "iwae": 2,
    "iwae_mcse": 2,
    "log_likelihood": 1,
    "mcse": 1,
    "ess": 1,
    "pareto_k": 1,
}


def _summary(log_weights: Tensor, ks: list[int]) -> dict[str, np.ndarray]:
    """Everything that is reported of some data, by name, shape ``(n,)`` or ``(n, len(ks))``."""
    _, pareto_k = psis(log_weights)  # refuses weights that are not finite
    exact = log_weights.T.contiguous().double().T  # sums over neighbours in memory take a third of the time
    elbo, elbo_mcse = of_draws.elbo(exact)
    bounds = {k: of_draws.iwae(exact, k) for k in {*ks, len(exact)}}
    log_likelihood, mcse = bounds[len(exact)]
    iwae, iwae_mcse = zip(*(bounds[k] for k in ks), strict=True)
    columns = {
        "elbo": elbo,
        "elbo_mcse": elbo_mcse,
        "iwae": torch.stack(iwae, dim=-1),
        "iwae_mcse": torch.stack(iwae_mcse, dim=-1),
        "log_likelihood": log_likelihood,
        "mcse": mcse,
        "ess": of_draws.effective_sample_size(exact),
        "pareto_k": pareto_k,
    }
    return {name: values.cpu().numpy() for name, values in columns.items()}


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
