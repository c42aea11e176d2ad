"""Do tighter bounds weaken the gradient of the encoder, and do better gradient estimators repair this?

With more draws the importance-weighted bound comes closer to log p(x), but its gradient carries less information about
the encoder: the signal shrinks faster than the noise (Rainforth et al., 2018). Sticking the landing (Roeder et al.,
2017) leaves out the score of the posterior, and the doubly reparameterized gradient (Tucker et al., 2019) replaces it.
The signal-to-noise ratio of the gradient is |mean| / standard deviation over many repeats, averaged over parameters. It
is measured for the encoder and the decoder, in the linear-Gaussian model of the first paper and in a VAE of digits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
import tyro
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from torch import Tensor, nn
from tqdm.auto import tqdm

import pyrovae as pv
from experiments import _comparison as comparison
from experiments._figures import printed
from pyrovae.plots import style

Gradient = Literal["reparameterized", "sticking_the_landing", "doubly_reparameterized"]
GRADIENTS: tuple[Gradient, ...] = ("reparameterized", "sticking_the_landing", "doubly_reparameterized")


@dataclass
class Options(comparison.Options):
    """Options of the experiment."""

    particles: tuple[int, ...] = (1, 3, 10, 30, 100)
    """Numbers of draws per datum of the bounds, K."""
    repeats: int = 500
    """Number of gradients from which mean and standard deviation are estimated."""
    dimensions: int = 20
    """Number of dimensions of the linear-Gaussian model."""
    epochs: int = 10
    """Passes over the digits before the gradients of the VAE are measured."""
    kl_warmup: int = 0
    """Epochs over which the weight of the latent sites grows to 1."""
    out: Path = Path("results/tighter_bounds")
    """Folder for tables and figures."""


class ShiftedNormal(nn.Module):
    """The prior of the linear-Gaussian model, z ~ N(mu, I)."""

    def __init__(self, loc: Tensor) -> None:
        super().__init__()
        self.loc = nn.Parameter(loc)

    def forward(self) -> dist.TorchDistribution:
        """Return p(z)."""
        return dist.Normal(self.loc, 1.0).to_event(1)


class LinearNormal(nn.Module):
    """The encoder of the linear-Gaussian model, q(z | x) = N(A x + b, 2 / 3 I)."""

    def __init__(self, network: nn.Linear) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        """Return q(z | x)."""
        return dist.Normal(self.network(x), (2 / 3) ** 0.5).to_event(1)


def linear_gaussian(options: Options) -> tuple[pv.VAE, Tensor]:
    """Return the model x ~ N(z, I) near its optimum, A = I / 2 and b = mu / 2, and one datum."""
    pyro.set_rng_seed(options.seed)
    size = options.dimensions
    loc, network = torch.randn(size), nn.Linear(size, size)
    vae = pv.VAE(ShiftedNormal(loc), pv.likelihoods.Normal(nn.Identity(), scale=1.0), LinearNormal(network))
    with torch.no_grad():
        network.weight.copy_(0.5 * torch.eye(size) + 0.01 * torch.randn(size, size))
        network.bias.copy_(0.5 * loc + 0.01 * torch.randn(size))
        loc.add_(0.01 * torch.randn(size))
    return vae, loc + 2**0.5 * torch.randn(1, size)


def digits(options: Options) -> tuple[pv.VAE, Tensor]:
    """Return a VAE after a few epochs of training, and ten digits."""
    splits = comparison.load(options)
    vae = comparison.build(options, splits.train.shape[1:])
    comparison.train(vae, splits, options)
    return vae, splits.test[:10].to(next(vae.parameters()).device)


def signal_to_noise(vae: pv.VAE, x: Tensor, objective: pv.objectives.IWAE, repeats: int) -> dict[str, float]:
    """Return the mean over the parameters of encoder and decoder of |mean| / standard deviation of their gradients."""
    parts = {"encoder": vae.guide.parameters(), "decoder": vae.model.parameters()}
    parameters = {name: [p for p in part if p.requires_grad] for name, part in parts.items()}
    moments = {name: [torch.zeros(2, *p.shape, dtype=torch.float64) for p in part] for name, part in parameters.items()}
    for _ in range(repeats):
        vae.zero_grad()
        objective.loss_and_grads(vae.model, vae.guide, x)
        for name, part in parameters.items():
            for moment, gradient in zip(moments[name], (p.grad for p in part), strict=True):
                if gradient is not None:
                    moment += torch.stack([gradient, gradient**2]).double().cpu()
    return {name: _mean_ratio(part, repeats) for name, part in moments.items()}


def _mean_ratio(moments: list[Tensor], repeats: int) -> float:
    mean, square = torch.cat([moment.flatten(1) for moment in moments], dim=1) / repeats
    deviation = (square - mean**2).clamp(min=0).sqrt()
    moving = deviation > 0  # the gradient of a pixel that is always off is zero
    return float((mean.abs()[moving] / deviation[moving]).mean())


def main(options: Options) -> pd.DataFrame:
    """Measure the ratios. Print and write the table and the figure."""
    models: dict[str, Callable[[Options], tuple[pv.VAE, Tensor]]] = {
        "linear-Gaussian": linear_gaussian,
        f"VAE, {options.data}": digits,
    }
    rows = []
    for model, build in comparison.chosen(models, options).items():
        vae, x = build(options)
        for gradient in GRADIENTS:
            for particles in tqdm(options.particles, desc=f"{model}, {gradient}", disable=None):
                torch.manual_seed(options.seed)
                objective = pv.objectives.IWAE(particles, gradient=gradient)
                ratios = signal_to_noise(vae, x, objective, options.repeats)
                rows.append({"model": model, "gradient": gradient, "K": particles, **ratios})
    table = pd.DataFrame(rows)
    print(f"\nsignal-to-noise ratio of the gradient, {options.repeats} repeats")
    print(f"(the expected ratio of a zero-mean gradient is {noise_floor(options):.3f})\n")
    print(
        table.pivot_table(index=["model", "gradient"], columns="K", values=["encoder", "decoder"]).round(3).to_string()
    )
    comparison.write(options, table, {"signal_to_noise": draw(table, options)})
    return table


def noise_floor(options: Options) -> float:
    """Return the expected |mean| / standard deviation of a gradient whose mean is zero."""
    return float(np.sqrt(2 / (np.pi * options.repeats)))


@printed
def draw(table: pd.DataFrame, options: Options) -> Figure:
    """Draw the ratios against K, in one row of panels per model."""
    models = table.model.unique()
    figure, axes = plt.subplots(
        len(models), 2, figsize=(style.PAGE, 2.4 * len(models) + 0.4), sharex=True, squeeze=False, layout="constrained"
    )
    for row, model in zip(axes, models, strict=True):
        for i, gradient in enumerate(GRADIENTS):
            own = table[(table.model == model) & (table.gradient == gradient)]
            look = {"color": style.color(i), "marker": style.marker(i), "linestyle": style.LINES[i], "markersize": 4}
            row[0].loglog(own.K, own.encoder, label=gradient.replace("_", " "), **look)
            row[1].loglog(own.K, own.decoder, color="0.3", marker="o", markersize=4)  # the same for all three
        row[0].axhline(noise_floor(options), color="0.4", linestyle=":", linewidth=1, label="noise alone")
        row[0].set(title=f"{model}: encoder", ylabel="signal-to-noise ratio")
        row[1].set(title=f"{model}: decoder, all three")
    for ax in axes.flat:
        ax.minorticks_off()
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.set_xticks(options.particles, [str(k) for k in options.particles])
    for ax in axes[-1]:
        ax.set_xlabel("draws per datum $K$")
    legend = axes[0, 0].get_legend_handles_labels()
    figure.legend(*legend, loc="outside lower center", ncols=len(legend[0]), frameon=False)
    return figure


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
