"""Comparison of priors: distance to the aggregate posterior, and gain in likelihood.

The same VAE is trained with each prior, and everything else stays the same. The ELBO pulls the aggregate posterior, the
average of q(z | x) over the data, towards the prior. A prior that can adapt to the aggregate posterior constrains the
latents less, and its samples look more like data.
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
    components: int = 200
    """Number of components of the mixture, and of pseudo-inputs of the VampPrior."""
    num_samples: int = 1000
    """Draws per test datum in the evaluation."""
    out: Path = Path("results/priors")
    """Folder for tables and figures."""


def main(options: Options) -> pd.DataFrame:
    """Train and evaluate one model for each prior. Print and write the table and the figures."""
    splits = comparison.load(options)
    latent, event_shape = options.latent, splits.train.shape[1:]
    priors = {
        "StandardNormal": lambda: pv.priors.StandardNormal(latent),
        "GaussianMixture": lambda: pv.priors.GaussianMixture(latent, options.components),
        "VampPrior": lambda: pv.priors.VampPrior(options.components, data=splits.train),
        "coupling flow": lambda: pv.priors.NormalizingFlow(latent, pv.flows.coupling(latent)),
        "autoregressive flow": lambda: pv.priors.NormalizingFlow(latent, pv.flows.autoregressive(latent, depth=2)),
    }

    def build(prior: Callable[[], nn.Module]) -> pv.VAE:
        # The prior is made last, so that the networks have the same initial weights under every prior.
        return pv.VAE(
            likelihood=pv.likelihoods.Bernoulli(mlp(latent, *options.hidden[::-1], event_shape)),
            posterior=pv.posteriors.DiagonalNormal(mlp(event_shape, *options.hidden, 2 * latent)),
            prior=prior(),
        )

    return comparison.run(options, splits, {name: partial(build, prior) for name, prior in priors.items()})


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
