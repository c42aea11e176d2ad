r"""Annealed importance sampling, and bidirectional Monte Carlo, which has the truth between two bounds.

Between the guide and the posterior lie the densities

.. math:: f_t(z) = q(z \mid x)^{1 - \beta_t}\, p(x, z)^{\beta_t}, \qquad 0 = \beta_0 < \dots < \beta_T = 1.

A chain starts at :math:`z_0 \sim q(z \mid x)` and makes at each t a transition :math:`z_{t-1} \to z_t` that leaves
:math:`f_t` invariant. Its weight is unbiased, however badly the transitions mix:

.. math::
    \log w = \sum_{t=1}^T (\beta_t - \beta_{t-1}) \log \frac{p(x, z_{t-1})}{q(z_{t-1} \mid x)}, \qquad
    \mathrm{E}[w] = p(x), \quad \mathrm{E} \log \tfrac1C \sum_c w_c \le \log p(x).

The same chain run backwards from an exact draw :math:`z_T \sim p(z \mid x)` has :math:`\mathrm{E}[1 / w] = 1 / p(x)`,
so :math:`\mathrm{E}[-\log \frac1C \sum_c 1 / w_c] \ge \log p(x)`: an upper bound. An exact draw is known for data
that the model itself has made, :math:`z \sim p(z), x \sim p(x \mid z)`.

The step sizes are found for every t and datum by chains that are thrown away, so that the chains that count have fixed
transitions; otherwise the weights would not be unbiased.
"""

import time
from typing import Any

import numpy as np
import pyro
import torch
import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm

from pyrovae._waist.sites import Program
from pyrovae.arguments import Data, as_tensors
from pyrovae.evaluation import bounds
from pyrovae.evaluation.estimators import hmc
from pyrovae.evaluation.problem import Pieces
from pyrovae.evaluation.provenance import attributes, check_finite
from pyrovae.evaluation.simulation import simulate
from pyrovae.evaluation.unconstrained import Target
from pyrovae.isolation import fresh_seed, isolated, program_device

PILOT_CHAINS = 8
ACCEPTANCE = 0.65  # near the optimum of HMC in many dimensions


def ais(
    model: Program,
    guide: Program,
    x: Data,
    num_chains: int = 32,
    *,
    num_temperatures: int = 200,
    num_leapfrog: int = 5,
    seed: int | None = None,
    plate: str | None = None,
    binarization: str = "not stated",
    memory: int | None = None,
    progress: bool = True,
) -> xr.Dataset:
    r"""Estimates log p(x) of each datum by annealed importance sampling from guide to posterior, with HMC transitions.

    Where the guide is a poor proposal, importance sampling needs ever more draws; annealing needs more temperatures.
    To start from the prior, as Wu et al. do, take it for the guide: ``guide = poutine.block(model, hide_fn=lambda site:
    site["is_observed"])``.

    Args:
        model: Pyro program of p(x, z) with continuous latent sites.
        guide: Pyro program of q(z | x).
        x: Data, shape ``(N, *event)``, or a tuple of tensors that share the first dimension.
        num_chains: Chains per datum, C.
        num_temperatures: Number of densities between guide and posterior, T.
        num_leapfrog: Leapfrog steps of a transition.
        seed: Seed of the draws; by default a new one from the operating system. The result names it.
        plate: Name of the data plate; by default the outermost plate that all latent sites share.
        binarization: How the data were binarized, kept as an attribute.
        memory: Bytes that the tensors of one run may take; see :func:`log_weights`.
        progress: Whether to show a progress bar; it is quiet where the output is no terminal.

    Returns:
        Dataset with dimension ``datum``: ``log_likelihood``, the estimate of log p(x) in nats, in expectation a lower
        bound; ``mcse``, its Monte Carlo standard error by the delta method; ``ess``, the effective number of chains, 1
        to C; ``acceptance``, the mean probability with which a transition was accepted. Attributes as those of
        :func:`evaluate`.

    Raises:
        TypeError: As :func:`evaluate`.
        ValueError: As :func:`evaluate`; if a number is out of range, a latent site is discrete or auxiliary, the
            program cannot take a dimension to the left of its plates, or a density is another one at every run.
        FloatingPointError: If a log-weight is NaN or infinite.

    Source:
        *Annealed Importance Sampling* (Neal, 2001); *On the Quantitative Analysis of Decoder-Based Generative Models*
        (Wu, Burda, Salakhutdinov and Grosse, 2017).

    Example:
        >>> import torch, pyrovae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Normal(pv.networks.mlp(2, 4)),
        ...     pv.posteriors.DiagonalNormal(pv.networks.mlp(4, 2 * 2)),
        ... )
        >>> results = pv.evaluation.ais(vae.model, vae.guide, torch.zeros(3, 4), 30, num_temperatures=10, seed=0)
        >>> results.log_likelihood.shape, bool((results.mcse < 0.5).all())
        ((3,), True)
    """
    _check_numbers(num_chains=num_chains, num_temperatures=num_temperatures, num_leapfrog=num_leapfrog)
    seed, start = fresh_seed() if seed is None else seed, time.perf_counter()
    with isolated(model, guide, seed=seed):
        pieces = Pieces(model, guide, x, plate=plate, memory=memory)
        columns = _columns(pieces, num_chains, num_temperatures, num_leapfrog, progress=progress)
    return xr.Dataset(
        {
            "log_likelihood": ("datum", columns["lower"]),
            "mcse": ("datum", columns["lower_mcse"]),
            "ess": ("datum", columns["lower_ess"]),
            "acceptance": ("datum", columns["acceptance"]),
        },
        coords={"datum": np.arange(pieces.size)},
        attrs=attributes(
            pieces,
            seed=seed,
            binarization=binarization,
            start=start,
            estimator="annealed importance sampling",
            num_chains=num_chains,
            num_temperatures=num_temperatures,
            num_leapfrog=num_leapfrog,
        ),
    )


def bdmc(
    model: Program,
    guide: Program,
    x: Data,
    num_chains: int = 32,
    *,
    num_temperatures: int = 200,
    num_leapfrog: int = 5,
    seed: int | None = None,
    plate: str | None = None,
    memory: int | None = None,
    progress: bool = True,
) -> xr.Dataset:
    r"""Sandwiches log p(x) of simulated data between a lower and an upper bound, by bidirectional Monte Carlo.

    The data are drawn from the model, so that an exact draw from the posterior is known. A narrow gap says that as many
    temperatures are enough for :func:`ais`, also on real data, as far as these are like the simulated ones.

    Args:
        model: Pyro program of p(x, z) with continuous latent sites.
        guide: Pyro program of q(z | x).
        x: A template: as many data are simulated, of the same shape; tensors of a tuple that the model does not observe
            (labels that are given, masks) are kept.
        num_chains: Chains per datum and direction, C.
        num_temperatures: Number of densities between guide and posterior, T.
        num_leapfrog: Leapfrog steps of a transition.
        seed: Seed of data and draws; by default a new one from the operating system. The result names it.
        plate: Name of the data plate; by default the outermost plate that all latent sites share.
        memory: Bytes that the tensors of one run may take; see :func:`log_weights`.
        progress: Whether to show a progress bar; it is quiet where the output is no terminal.

    Returns:
        Dataset with dimension ``datum``: ``lower`` and ``upper``, stochastic bounds on log p(x) in nats that hold in
        expectation; ``lower_mcse`` and ``upper_mcse``, their Monte Carlo standard errors, of which the latter does not
        know of the chains' common start; ``acceptance``; and the simulated data, ``simulated_0`` and so on, one for
        each argument of the model.

    Raises:
        TypeError: As :func:`ais`.
        ValueError: As :func:`ais`; if it cannot be told which argument holds the data.
        FloatingPointError: If a log-weight is NaN or infinite.

    Source:
        *Sandwiching the Marginal Likelihood Using Bidirectional Monte Carlo* (Grosse, Ghahramani and Adams, 2015).

    Example:
        >>> import torch, pyrovae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Normal(pv.networks.mlp(2, 4)),
        ...     pv.posteriors.DiagonalNormal(pv.networks.mlp(4, 2 * 2)),
        ... )
        >>> bounds = pv.evaluation.bdmc(vae.model, vae.guide, torch.zeros(50, 4), 10, num_temperatures=30, seed=0)
        >>> bool(bounds.lower.mean() < bounds.upper.mean()), bounds.simulated_0.shape
        (True, (50, 4))
    """
    _check_numbers(num_chains=num_chains, num_temperatures=num_temperatures, num_leapfrog=num_leapfrog)
    seed, start = fresh_seed() if seed is None else seed, time.perf_counter()
    with isolated(model, guide, seed=seed):
        device = program_device(model, guide, default=as_tensors("x", x)[0].device)
        template = tuple(tensor.to(device) for tensor in as_tensors("x", x))
        Pieces(model, guide, template, plate=plate, memory=memory).check_whole()
        latents, args = simulate(model, template)
        pieces = Pieces(model, guide, args, plate=plate, memory=memory)
        columns = _columns(pieces, num_chains, num_temperatures, num_leapfrog, latents, progress=progress)
    bounds = {name: ("datum", columns[name]) for name in ("lower", "lower_mcse", "upper", "upper_mcse", "acceptance")}
    simulated = {
        f"simulated_{i}": (("datum", *(f"dim_{i}_{j}" for j in range(arg.ndim - 1))), arg.cpu().numpy())
        for i, arg in enumerate(args)
    }
    return xr.Dataset(
        bounds | simulated,
        coords={"datum": np.arange(pieces.size)},
        attrs=attributes(
            pieces,
            seed=seed,
            binarization="simulated",
            start=start,
            estimator="bidirectional Monte Carlo",
            num_chains=num_chains,
            num_temperatures=num_temperatures,
            num_leapfrog=num_leapfrog,
        ),
    )


def _columns(
    pieces: Pieces,
    num_chains: int,
    num_temperatures: int,
    num_leapfrog: int,
    exact: dict[str, Tensor] | None = None,
    *,
    progress: bool,
) -> dict[str, np.ndarray]:
    """Anneals all data, upwards and, where exact draws of the latents are given, downwards too."""
    pieces.check_repeats()
    parts: list[dict[str, Tensor]] = []
    width = max(1, pieces.affordable // max(num_chains, PILOT_CHAINS))
    with (
        pyro.validation_enabled(False),
        tqdm(total=pieces.size, unit="datum", desc="anneal", disable=None if progress else True) as bar,
    ):
        done = 0
        for piece in pieces.cut(width):
            path = _Path(Target(pieces, piece), num_temperatures, num_leapfrog)
            part = _summary(path.upwards(num_chains), "lower") | {"acceptance": path.acceptance}
            if exact is not None:
                top = path.target.flatten(path.target.select(exact, done)).expand(num_chains, -1, -1)
                downwards = _summary(-path.downwards(top), "upper")
                part |= downwards | {"upper": -downwards["upper"]}
            parts.append({name: column[: piece.kept] for name, column in part.items()})
            done += piece.kept
            bar.update(piece.kept)
    return {name: torch.cat([part[name] for part in parts]).cpu().numpy() for name in parts[0]}


def _summary(log_weights: Tensor, name: str) -> dict[str, Tensor]:
    check_finite(log_weights)
    estimate, mcse = bounds.log_likelihood(log_weights.double())
    ess = bounds.effective_sample_size(log_weights.double())
    return {name: estimate, f"{name}_mcse": mcse, f"{name}_ess": ess}


class _Path:
    """The densities between guide and posterior of some data, and tuned transitions that leave each invariant."""

    def __init__(self, target: Target, num_temperatures: int, num_leapfrog: int) -> None:
        self.target, self.num_leapfrog = target, num_leapfrog
        draws, _ = target.draw(64)
        self.scale = draws.std(0)  # of the guide in each dimension, shape (N, D)
        # As in Wu et al.: a sigmoid, which goes slowly at both ends.
        ramp = torch.sigmoid(torch.linspace(-4, 4, num_temperatures + 1, dtype=torch.float64))
        self.betas = ((ramp - ramp[0]) / (ramp[-1] - ramp[0])).tolist()
        self.steps = self._tune()
        self.acceptance = torch.ones(target.size, dtype=torch.float64)

    def upwards(self, num_chains: int) -> Tensor:
        """Log-weights of chains from guide to posterior, shape ``(num_chains, N)``."""
        u, _ = self.target.draw(num_chains)
        log_w, acceptances = self._gain(1, u), []
        for t in range(1, len(self.betas) - 1):
            u, acceptance = self._move(t, u, self.steps[t - 1])
            acceptances.append(acceptance.mean(0))
            log_w = log_w + self._gain(t + 1, u)
        if acceptances:
            self.acceptance = torch.stack(acceptances).mean(0)
        return log_w

    def downwards(self, u: Tensor) -> Tensor:
        """Log-weights of chains from posterior draws u to the guide, shape ``(num_chains, N)``."""
        log_w = self._gain(len(self.betas) - 1, u)
        for t in reversed(range(1, len(self.betas) - 1)):
            u, _ = self._move(t, u, self.steps[t - 1])
            log_w = log_w + self._gain(t, u)
        return log_w

    def _gain(self, t: int, u: Tensor) -> Tensor:
        log_joint, log_guide = self.target.log_densities(u)
        return (self.betas[t] - self.betas[t - 1]) * (log_joint - log_guide)

    def _move(self, t: int, u: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        beta = self.betas[t]

        def log_density(u: Tensor) -> Tensor:
            log_joint, log_guide = self.target.log_densities(u)
            return beta * log_joint + (1 - beta) * log_guide

        return hmc.transition(log_density, u, step.unsqueeze(-1) * self.scale, self.num_leapfrog)

    def _tune(self) -> list[Tensor]:
        """Step sizes of each datum at each temperature, shape ``(N,)``, from chains of their own."""
        u, _ = self.target.draw(PILOT_CHAINS)
        step, steps = u.new_full((self.target.size,), self.target.dim**-0.25), []
        for t in (*[1] * 10, *range(1, len(self.betas) - 1)):  # ten moves more to find the first size
            u, acceptance = self._move(t, u, step)
            steps.append(step)
            step = step * (acceptance.mean(0) - ACCEPTANCE).mul(0.5).exp()
        return steps[10:]


def _check_numbers(**numbers: Any) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
