"""Richer posteriors on MNIST with dynamic binarization: an inverse autoregressive flow, and a ladder VAE.

*IAF, 1 x 100*: one latent layer of 100 dimensions whose posterior is an inverse autoregressive flow (*Improved
Variational Inference with Inverse Autoregressive Flow*, Kingma et al., 2016). The published NLL is 83.04 nats, and its
source does not state the networks. This reproduction uses the gated networks of the VampPrior paper, and two flow
layers of 320 units each, the smallest flow of the paper.

*Ladder VAE, 5 layers*: the best row of *Ladder Variational Autoencoders* (Sønderby et al., 2016) on MNIST, after
fine-tuning. It has latent layers of 64, 32, 16, 8 and 4 dimensions, and the networks and the batch normalization of the
paper. The paper trains for 2,000 epochs with a KL warm-up over the first 200, and fine-tunes for 2,000 more.
"""

from dataclasses import dataclass

import pandas as pd
import tyro
from torch import Tensor

import pyrovae as pv
from experiments.reproduce import rows
from experiments.reproduce.ladder import LadderVAE
from experiments.reproduce.rows import Row
from experiments.reproduce.vampprior import HIDDEN, gated

LATENT, CONTEXT, DEPTH, WIDTH = 100, 100, 2, 320


@dataclass
class Options(rows.Options):
    """Options of the reproduction."""

    batch_size: int = 250
    """Batch size."""
    kl_warmup: int = 50
    """Epochs over which the weight of the latent sites grows to 1."""


def main(options: Options) -> pd.DataFrame:
    """Run the rows that the options name, and print the table."""
    return rows.run(rows.dynamic_mnist("flow_and_ladder", ROWS, options), options)


def with_flow(train: Tensor) -> pv.VAE:
    """Return a VAE of one latent layer with an inverse autoregressive flow as posterior."""
    event = train.shape[1:]
    encoder, decoder = gated(event, HIDDEN, HIDDEN, 2 * LATENT + CONTEXT), gated(LATENT, HIDDEN, HIDDEN, event)
    rows.set_bias(decoder, train)
    return pv.VAE(
        prior=pv.priors.StandardNormal(LATENT),
        likelihood=pv.likelihoods.Bernoulli(decoder),
        posterior=pv.posteriors.InverseAutoregressiveFlow(
            encoder, LATENT, context=CONTEXT, depth=DEPTH, hidden=(WIDTH,)
        ),
    )


def ladder(train: Tensor) -> LadderVAE:
    """Return the ladder VAE of five latent layers."""
    vae = LadderVAE(train.shape[1:])
    rows.set_bias(vae.decoder, train)
    return vae


ROWS = {"IAF, 1 x 100": Row(83.04, with_flow), "ladder VAE, 5 layers": Row(81.84, ladder)}


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
