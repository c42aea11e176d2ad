r"""Bias and variance of gradient estimators.

The linear-Gaussian VAE has x | z ~ N(W z + b, sigma^2 I) and q = N(m(x), diag(s(x)^2)). Its ELBO has the closed form

    -|x - W m - b|^2 / (2 sigma^2) - sum_j s_j^2 |W_j|^2 / (2 sigma^2) - D/2 log(2 pi sigma^2) - KL(q || p(z)),

so its gradient is exact. The mean of many estimates is compared with the exact gradient by z-scores, in standard
errors. The root mean square of the z-scores is near 1 for an unbiased estimator. A partly trained VAE of digits has no
exact gradient, so the closed-form KL with the most draws replaces it. Noise is the root of the summed variance of the
encoder's gradient, divided by the norm of the gradient.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib.pyplot as plt
import pandas as pd
import pyro
import torch
import tyro
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import kl_divergence
from tqdm.auto import tqdm

import pyrovae as pv
from experiments import _comparison as comparison
from experiments._figures import printed
from experiments.gradient_estimators.estimators import ESTIMATORS, Estimated
from pyrovae.plots import style

BURN_IN = 50  # discarded gradients, during which an average baseline loses its initial value 0


@dataclass
class Options(comparison.Options):
    """Options of the experiment."""

    data: Literal["digits", "mnist5k", "mnist", "fashion_mnist"] = "digits"
    """Data set; ``mnist5k`` and ``digits`` need no download."""
    latent: int = 10
    """Number of latent dimensions."""
    hidden: tuple[int, ...] = (100,)
    """Widths of the hidden layers, in the order from data to latents."""
    epochs: int = 30
    """Passes over the digits before the gradients of the VAE are measured."""
    kl_warmup: int = 0
    """Epochs over which the weight of the latent sites grows to 1."""
    draws: tuple[int, ...] = (1, 10, 100)
    """Draws per gradient, L."""
    repeats: int = 400
    """Number of gradients from which mean and variance are estimated."""
    num_data: int = 10
    """Number of data per gradient."""
    dimensions: int = 20
    """Number of observed dimensions of the linear-Gaussian VAE."""
    out: Path = Path("results/gradient_estimators/moments")
    """Folder for tables and figures."""


class Problem(NamedTuple):
    """A VAE with its data, and the exact gradient if it is known."""

    vae: pv.VAE
    x: Tensor
    exact: Tensor | None = None


class Moments(NamedTuple):
    """Mean and variance of a gradient over repeats, shape ``(parameters,)``, with the milliseconds per repeat."""

    mean: Tensor
    variance: Tensor
    repeats: int
    milliseconds: float


def linear_gaussian(options: Options) -> Problem:
    """Return a linear-Gaussian VAE in float64 away from its optimum, with its exact gradient."""
    pyro.set_rng_seed(options.seed)
    size, latent = options.dimensions, options.latent
    vae = pv.VAE(
        pv.priors.StandardNormal(latent),
        pv.likelihoods.Normal(pv.networks.mlp(latent, size), scale=1.0),
        pv.posteriors.DiagonalNormal(pv.networks.mlp(size, 2 * latent)),
    ).double()
    x = 2 * torch.randn(options.num_data, size, dtype=torch.float64)
    (-exact_elbo(vae, x)).backward()
    return Problem(vae, x, encoder_gradient(vae.guide))


def exact_elbo(vae: pv.VAE, x: Tensor) -> Tensor:
    """Return the ELBO of a linear-Gaussian VAE, nats summed over the data, shape ``()``."""
    likelihood: Any = vae.likelihood
    q = vae.posterior(x)
    p = likelihood(q.mean)
    spread = (q.variance * (likelihood.network[0].weight ** 2).sum(0)).sum() / (2 * p.variance[0, 0])
    return p.log_prob(x).sum() - spread - kl_divergence(q, vae.prior()).sum()


def digits(options: Options) -> Problem:
    """Return a VAE after a few epochs of training, and some digits."""
    splits = comparison.load(options)
    vae = comparison.build(options, splits.train.shape[1:])
    comparison.train(vae, splits, options)
    return Problem(vae, splits.test[: options.num_data].to(next(vae.parameters()).device))


def encoder_gradient(guide: torch.nn.Module) -> Tensor:
    """Return the gradient that a loss has left in an encoder, shape ``(parameters,)``, float64."""
    return torch.cat([p.grad.flatten() for p in guide.parameters() if p.grad is not None]).double().cpu()


def measure(problem: Problem, name: str, draws: int, options: Options) -> Moments:
    """Return the mean and the variance of the gradient of an estimator."""
    torch.manual_seed(options.seed)
    estimated = Estimated(problem.vae, ESTIMATORS[name], problem.x.shape[1:])
    objective: Any = ESTIMATORS[name].objective(num_particles=draws, vectorize_particles=True, max_plate_nesting=1)
    gradients = []
    with pyro.validation_enabled(False), pyro.get_param_store().scope():
        for repeat in range(BURN_IN + options.repeats):
            if repeat == BURN_IN:
                start = time.perf_counter()
            estimated.zero_grad()
            shuffled = problem.x[torch.randperm(len(problem.x))]  # the average baseline sees other data, as in training
            objective.loss_and_grads(estimated.model, estimated.guide, shuffled)
            gradients.append(encoder_gradient(estimated.encoder))
    seconds = time.perf_counter() - start
    kept = torch.stack(gradients[BURN_IN:])
    return Moments(kept.mean(0), kept.var(0), options.repeats, 1000 * seconds / options.repeats)


def z_scores(moments: Moments, exact: Tensor | Moments) -> Tensor:
    """Return the difference of the mean from the exact gradient, or from another mean, in standard errors."""
    difference, squared = moments.mean, moments.variance / moments.repeats
    if isinstance(exact, Moments):
        difference, squared = difference - exact.mean, squared + exact.variance / exact.repeats
    else:
        difference = difference - exact
    moving = squared > 0  # the gradient of a pixel that is always off is zero
    return difference[moving] / squared[moving].sqrt()


def main(options: Options) -> pd.DataFrame:
    """Measure the moments. Print and write the table and the figure."""
    problems: dict[str, Callable[[Options], Problem]] = {
        "linear-Gaussian": linear_gaussian,
        f"VAE, {options.data}": digits,
    }
    tables = []
    for name, build in comparison.chosen(problems, options).items():
        tables.append(table_of(build(options), options).assign(model=name))
    table = pd.concat(tables, ignore_index=True).set_index(["model", "estimator", "L"])
    print(f"\n{options.repeats} gradients each; z: mean minus exact gradient, in standard errors;")
    print("noise: standard deviation of the gradient / its norm; ratio: variance / variance of the first estimator\n")
    print(table.to_string(float_format="{:.3g}".format))
    rows = table.reset_index()
    comparison.write(options, rows, {"moments": draw(rows)})
    return table


def table_of(problem: Problem, options: Options) -> pd.DataFrame:
    """Return one row for each estimator and number of draws."""
    names = [name for name, estimator in ESTIMATORS.items() if estimator.baseline != "network"]  # which is untrained
    cells = [(name, draws) for name in names for draws in options.draws]
    moments = {(name, draws): measure(problem, name, draws, options) for name, draws in tqdm(cells, disable=None)}
    stand_in = moments["closed-form KL", max(options.draws)]
    norm = float((stand_in.mean if problem.exact is None else problem.exact).norm())
    rows = []
    for (name, draws), own in moments.items():
        row: dict[str, str | float] = {"estimator": name, "L": draws}
        if own is not stand_in or problem.exact is not None:
            scores = z_scores(own, stand_in if problem.exact is None else problem.exact)
            row |= {"rms z": float((scores**2).mean()) ** 0.5, "max |z|": float(scores.abs().max())}
        variance, first = float(own.variance.sum()), float(moments[names[0], draws].variance.sum())
        row |= {"noise": variance**0.5 / norm, "ratio": variance / first, "ms": own.milliseconds}
        rows.append(row)
    return pd.DataFrame(rows)


@printed
def draw(table: pd.DataFrame) -> Figure:
    """Draw the noise against the number of draws, in one panel per model."""
    models = table.model.unique()
    figure, axes = plt.subplots(
        1, len(models), figsize=(style.PAGE, 2.8), sharey=True, squeeze=False, layout="constrained"
    )
    for ax, model in zip(axes[0], models, strict=True):
        for i, name in enumerate(name for name in ESTIMATORS if name in set(table.estimator)):
            own = table[(table.model == model) & (table.estimator == name)]
            dashes = ":" if name == "density alone" else "-"
            ax.loglog(
                own.L,
                own.noise,
                color=style.color(i),
                linestyle=dashes,
                marker=style.marker(i),
                markersize=4,
                label=name,
            )
        ax.axhline(1.0, color="0.6", linestyle="--", linewidth=1, zorder=0)
        ax.set(title=model, xlabel="draws per datum $L$")
    axes[0, 0].set_ylabel("standard deviation of the gradient / its norm")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
