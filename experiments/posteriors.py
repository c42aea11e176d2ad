"""Comparison of posterior families: gain in likelihood, and quality as a proposal.

The same VAE is trained with each family of q(z | x). Only the width of the encoder's last layer changes. A family that
can approximate p(z | x) makes the ELBO tighter, and thereby constrains the trained model less. Effective sample size
and k-hat measure the quality of the family as a proposal of importance sampling.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import tyro
from torch import nn

import pyrovae as pv
from experiments import _comparison as comparison
from experiments._comparison import mlp


@dataclass
class Options(comparison.Options):
    """Options of the experiment."""

    latent: int = 40
    """Number of latent dimensions."""
    context: int = 64
    """Number of features of x that condition the flows."""
    num_samples: int = 1000
    """Draws per test datum in the evaluation."""
    out: Path = Path("results/posteriors")
    """Folder for tables and figures."""


def main(options: Options) -> pd.DataFrame:
    """Train and evaluate one model for each posterior. Print and write the table and the figures."""
    splits = comparison.load(options)
    latent, context, event_shape = options.latent, options.context, splits.train.shape[1:]

    def encoder(width: int) -> nn.Module:
        return mlp(event_shape, *options.hidden, width)

    posteriors = {
        "DiagonalNormal": lambda: pv.posteriors.DiagonalNormal(encoder(2 * latent)),
        "Laplace": lambda: pv.posteriors.Laplace(encoder(2 * latent)),
        "StudentT": lambda: pv.posteriors.StudentT(encoder(2 * latent)),
        "MultivariateNormal, rank 5": lambda: pv.posteriors.MultivariateNormal(encoder(7 * latent), rank=5),
        "MultivariateNormal, full": lambda: pv.posteriors.MultivariateNormal(encoder(latent * (latent + 3) // 2)),
        "InverseAutoregressiveFlow": lambda: pv.posteriors.InverseAutoregressiveFlow(
            encoder(2 * latent + context), latent, context=context, hidden=(320,)
        ),
    }

    def build(posterior: Callable[[], nn.Module]) -> pv.VAE:
        return pv.VAE(
            prior=pv.priors.StandardNormal(latent),
            likelihood=pv.likelihoods.Bernoulli(mlp(latent, *options.hidden[::-1], event_shape)),
            posterior=posterior(),
        )

    return comparison.run(options, splits, {name: partial(build, q) for name, q in posteriors.items()})


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
