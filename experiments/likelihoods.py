"""Comparison of likelihoods of grey digits, in bits per dimension.

The same VAE is trained with each likelihood. Only the width of the decoder's last layer changes. Discrete likelihoods
score the grey levels themselves. Continuous likelihoods score dequantized values, whose expected log-density bounds the
log-probability of the levels from below. All of them are therefore comparable. The density of grey values without
dequantization and the Bernoulli likelihood of binarized values are not comparable, so the table leaves them out.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pyro
import tyro
import xarray as xr
from torch import nn

import pyrovae as pv
from experiments import _comparison as comparison
from experiments._comparison import mlp
from experiments._figures import figure_of


@dataclass
class Options(comparison.Options):
    """Options of the experiment."""

    data: Literal["mnist5k", "digits", "mnist", "fashion_mnist"] = "digits"
    """Data set of grey images. ``mnist5k`` and ``digits`` need no download; ``digits`` has 17 levels."""
    latent: int = 10
    """Number of latent dimensions."""
    components: int = 3
    """Number of components of the mixture of discretized logistics."""
    hidden: tuple[int, ...] = (100, 100)
    """Widths of the hidden layers, in the order from data to latents."""
    epochs: int = 200
    """Passes over the training data."""
    learning_rate: float = 2e-3
    """Initial learning rate of Adam. A cosine schedule lowers it to a hundredth of this value."""
    kl_warmup: int = 50
    """Epochs over which the weight of the latent sites grows to 1."""
    num_samples: int = 1000
    """Draws per test datum in the evaluation."""
    out: Path = Path("results/likelihoods")
    """Folder for tables and figures."""


def main(options: Options) -> pd.DataFrame:
    """Train and evaluate one model for each likelihood. Print and write the table and the figures."""
    grey = comparison.load(replace(options, binarization="none"))
    levels = 17 if options.data == "digits" else 256
    latent, event_shape, unit = options.latent, grey.train.shape[1:], 1 / (levels - 1)

    def decoder(parameters: int) -> nn.Module:
        return mlp(latent, *options.hidden[::-1], (*event_shape[:-1], parameters * event_shape[-1]))

    discrete = {
        "Categorical": lambda: pv.likelihoods.Categorical(decoder(levels), levels, unit=unit),
        "Binomial": lambda: pv.likelihoods.Binomial(decoder(1), levels - 1, unit=unit),
        "DiscretizedLogistic": lambda: pv.likelihoods.DiscretizedLogistic(decoder(2), levels, unit=unit),
        "DiscretizedLogisticMixture": lambda: pv.likelihoods.DiscretizedLogisticMixture(
            decoder(3 * options.components), options.components, levels, unit=unit
        ),
    }
    continuous = {
        "Normal, shared scale": lambda: pv.likelihoods.Normal(decoder(1), 0.2, learn_scale=True),
        "Normal, floor": lambda: pv.likelihoods.Normal(decoder(2), None, min_scale=unit / 4),
        "Laplace": lambda: pv.likelihoods.Laplace(decoder(2), None, min_scale=unit / 4),
        "StudentT": lambda: pv.likelihoods.StudentT(decoder(2), None, min_scale=unit / 4),
        "Beta": lambda: pv.likelihoods.Beta(decoder(2)),
        "ContinuousBernoulli": lambda: pv.likelihoods.ContinuousBernoulli(decoder(1)),
    }
    dequantize = partial(pv.data.dequantize, levels=levels)
    pyro.set_rng_seed(options.seed)
    noisy = replace(grey, valid=dequantize(grey.valid), test=dequantize(grey.test))

    vaes, histories, results, quoted, bits, draws = {}, {}, {}, {}, {}, {}
    for name, likelihood in comparison.chosen({**discrete, **continuous}, options).items():
        splits, transform, width = (grey, None, 1.0) if name in discrete else (noisy, dequantize, 1 / levels)
        pyro.set_rng_seed(options.seed)
        vaes[name] = vae = pv.VAE(
            prior=pv.priors.StandardNormal(latent),
            likelihood=likelihood(),
            posterior=pv.posteriors.DiagonalNormal(mlp(event_shape, *options.hidden, 2 * latent)),
        )
        histories[name] = comparison.train(vae, splits, options, transform=transform)
        results[name] = comparison.evaluate(vae, splits, options)
        quoted[name] = result = comparison.log_likelihood(vae, splits, options)
        draws[name] = comparison.latent_draws(vae, splits.test)
        bits[name] = pv.evaluation.bits_per_dimension(result.log_likelihood, event_shape, bin_width=width)

    table = summarize(bits, results, quoted, histories)
    comparison.report(grey, table)
    figures = {
        "samples": figure_of(pv.plots.images({name: comparison.samples(vae) for name, vae in vaes.items()}, columns=8)),
        "aggregate_posteriors": figure_of(pv.plots.aggregate_posteriors(draws, columns=4)),
    }
    both = {name: comparison.with_quoted(result, quoted[name]) for name, result in results.items()}
    comparison.write(options, table, figures, histories, both)
    return table


def summarize(
    bits: dict[str, xr.DataArray],
    results: dict[str, xr.Dataset],
    quoted: dict[str, xr.Dataset],
    histories: dict[str, pv.History],
) -> pd.DataFrame:
    """Return a table that starts with bits per dimension and the paired difference from the first model."""
    table = comparison.summarize(results, histories, likelihoods=quoted)
    first = next(iter(bits.values()))
    table.insert(0, "bits/dim", [_mean(values) for values in bits.values()])
    table.insert(1, "difference", ["", *(_mean(values - first) for values in list(bits.values())[1:])])
    return table


def _mean(values: xr.DataArray) -> str:
    return f"{float(values.mean()):.3f} ± {float(values.std(ddof=1)) / np.sqrt(values.size):.3f}"


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
