"""Which prior comes closest to the aggregate posterior, and what does that buy in likelihood?

The same variational autoencoder is trained with one prior after another; nothing else is changed. The ELBO pulls the
average of q(z | x) over the data, the aggregate posterior, towards the prior. A prior that can follow it leaves the
latents freer to describe x, and its own samples look more like data.
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
    """Components of the mixture and pseudo-inputs of the VampPrior."""
    num_samples: int = 1000
    """Draws per test datum of the evaluation."""
    out: Path = Path("results/priors")
    """Folder for tables and figures."""


def main(options: Options) -> pd.DataFrame:
    """Trains and evaluates one model a prior; prints and writes the table and the figures."""
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
        # The prior is made last, so that the networks start from the same weights under every prior.
        return pv.VAE(
            likelihood=pv.likelihoods.Bernoulli(mlp(latent, *options.hidden[::-1], event_shape)),
            posterior=pv.posteriors.DiagonalNormal(mlp(event_shape, *options.hidden, 2 * latent)),
            prior=prior(),
        )

    return comparison.run(options, splits, {name: partial(build, prior) for name, prior in priors.items()})


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
