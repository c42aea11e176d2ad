"""*VAE with a VampPrior* (Tomczak and Welling, 2018), table 1: static MNIST, standard prior and VampPrior.

The models have gated networks with two hidden layers of 300 units, 40 latent dimensions and 500 pseudo-inputs. They are
trained in batches of 100 with a KL warm-up of 100 epochs. The two-level model (HVAE) has 40 dimensions per level. The
weights with the best validation loss are evaluated.

In *HVAE, VampPrior, published code*, a network with two inputs has one gated layer for each of them, and the
pseudo-inputs start near 0.5. Both are as in the code that the authors published (github.com/jmtomczak/vae_vampprior).
In the other rows, the first layer has both inputs, and the pseudo-inputs start at training data.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
import tyro
from torch import Tensor, nn

import pyrovae as pv
from experiments.reproduce import rows
from experiments.reproduce.rows import Paper, Row
from pyrovae.networks.dense import Shape

LATENT, HIDDEN, COMPONENTS = 40, 300, 500

gated, joint, normal = pv.networks.gated_mlp, pv.networks.Joint, pv.posteriors.DiagonalNormal
Prior = Callable[[Tensor], nn.Module]
Network = Callable[[tuple[int, int], Shape], nn.Module]  # from the widths of two inputs, and the shape of the output


@dataclass
class Options(rows.Options):
    """Options of the reproduction."""

    learning_rate: float = 5e-4
    """Initial learning rate of the optimizer. A cosine schedule lowers it to a hundredth of this value."""
    kl_warmup: int = 100
    """Epochs over which the weight of the latent sites grows to 1."""


def main(options: Options) -> pd.DataFrame:
    """Run the rows that the options name, and print the table."""
    splits = pv.data.static_mnist(root=options.root)
    return rows.run(Paper("vampprior", splits.train, splits.test, "static", ROWS, {"valid": splits.valid}), options)


def standard(_: Tensor) -> nn.Module:
    """Return the standard normal prior."""
    return pv.priors.StandardNormal(LATENT)


def vamp(train: Tensor) -> nn.Module:
    """Return the VampPrior, whose pseudo-inputs are initialized with training data."""
    return pv.priors.VampPrior(COMPONENTS, data=train)


def vamp_from_grey(train: Tensor) -> nn.Module:
    """Return the VampPrior, whose pseudo-inputs start near 0.5."""
    return pv.priors.VampPrior(COMPONENTS, train.shape[1:])


def one_level(train: Tensor, *, prior: Prior) -> pv.VAE:
    """Return a VAE with one latent layer."""
    event = train.shape[1:]
    return pv.VAE(
        likelihood=pv.likelihoods.Bernoulli(gated(LATENT, HIDDEN, HIDDEN, event)),
        posterior=normal(gated(event, HIDDEN, HIDDEN, 2 * LATENT)),
        prior=prior(train),
    )


def shared_layers(widths: tuple[int, int], out: Shape) -> nn.Module:
    """Return a network of two gated layers, both of which have both inputs."""
    return gated(sum(widths), HIDDEN, HIDDEN, out)


class SeparateLayers(nn.Module):
    """A network of two gated layers, of which the first has a separate part for each input.

    Args:
        widths: Widths of the two inputs.
        out: Event shape of the output.
    """

    def __init__(self, widths: tuple[int, int], out: Shape) -> None:
        super().__init__()
        self.widths = widths
        self.branches = nn.ModuleList(nn.Sequential(nn.Linear(width, 2 * HIDDEN), nn.GLU(-1)) for width in widths)
        self.head = gated(2 * HIDDEN, HIDDEN, out)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map both inputs, concatenated to shape ``(*batch, sum(widths))``, to shape ``(*batch, *out)``."""
        parts = zip(self.branches, inputs.split(self.widths, -1), strict=True)
        output: Tensor = self.head(torch.cat([branch(part) for branch, part in parts], -1))
        return output


def two_levels(train: Tensor, *, prior: Prior, network: Network = shared_layers) -> pv.HierarchicalVAE:
    """Return a VAE with two latent layers. The likelihood and the lower posterior depend on both other variables."""
    event = train.shape[1:]
    decoder, encoder = network((LATENT, LATENT), event), network((event.numel(), LATENT), 2 * LATENT)
    return pv.HierarchicalVAE(
        likelihood=pv.likelihoods.Bernoulli(joint(decoder, event_dims=(1, 1))),
        posteriors=(
            normal(joint(encoder, event_dims=(len(event), 1))),
            normal(gated(event, HIDDEN, HIDDEN, 2 * LATENT)),
        ),
        priors=(normal(gated(LATENT, HIDDEN, HIDDEN, 2 * LATENT)), prior(train)),
        inference="top-down",
        skip=True,
    )


ROWS = {
    "VAE, standard": Row(88.56, partial(one_level, prior=standard)),
    "VAE, VampPrior": Row(85.57, partial(one_level, prior=vamp)),
    "HVAE, standard": Row(86.05, partial(two_levels, prior=standard)),
    "HVAE, VampPrior": Row(83.19, partial(two_levels, prior=vamp)),
    "HVAE, VampPrior, published code": Row(83.19, partial(two_levels, prior=vamp_from_grey, network=SeparateLayers)),
}


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
