"""*Importance Weighted Autoencoders* (Burda, Grosse and Salakhutdinov, 2016), table 1: MNIST, dynamic binarization.

The rows with one latent layer have 50 dimensions and two hidden layers of 200 tanh units per network. The rows with two
layers have 100 and 50 dimensions, with 200 and 100 units. All 60,000 training digits are used, and each is binarized
anew in every epoch; the test digits are binarized once. The paper trains for 3,280 epochs in batches of 20, with
learning rates that fall in eight stages. ``--schedule paper`` does the same, and ``--schedule cosine`` is a shorter
schedule of this project.

The rows with the doubly reparameterized gradient (*Doubly Reparameterized Gradient Estimators for Monte Carlo
Objectives*, Tucker, Lawson, Gu and Maddison, 2019) are not in the paper. Their targets come from a public replication
of it, github.com/nbip/IWAE, which reports 85.18 and 84.59 for the reparameterized gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import pandas as pd
import torch
import tyro
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

import pyrovae as pv
from experiments.reproduce import rows
from experiments.reproduce.rows import Row

TARGETS = {
    1: {"VAE": {1: 86.76, 5: 86.47, 50: 86.35}, "IWAE": {5: 85.54, 50: 84.78}, "DReG": {5: 84.90, 50: 84.32}},
    2: {"VAE": {1: 85.33, 5: 85.01, 50: 84.78}, "IWAE": {5: 83.89, 50: 82.90}},
}
OBJECTIVES: dict[str, Callable[..., Any]] = {
    "VAE": partial(Trace_ELBO, vectorize_particles=True, max_plate_nesting=1),
    "IWAE": pv.objectives.IWAE,
    "DReG": partial(pv.objectives.IWAE, gradient="doubly_reparameterized"),
}
STAGES = tuple((3**i, 10 ** (-i / 7)) for i in range(8))  # epochs, and the factor of the learning rate

mlp = partial(pv.networks.mlp, activation=nn.Tanh)
normal = pv.posteriors.DiagonalNormal


@dataclass
class Options(rows.Options):
    """Options of the reproduction."""

    schedule: Literal["cosine", "paper"] = "cosine"
    """Learning-rate schedule. The paper's needs --epochs 3280 --batch-size 20, and Adam with epsilon 1e-4."""

    def __post_init__(self) -> None:
        if self.schedule == "paper" and self.epochs != sum(epochs for epochs, _ in STAGES):
            raise ValueError(f"The paper's schedule has 3280 epochs, got epochs={self.epochs}. Give --epochs 3280.")
        if self.schedule == "paper" and self.optimizer != "adam":
            raise ValueError(
                f"The paper's schedule uses Adam, got optimizer={self.optimizer!r}. Give --optimizer adam."
            )


def main(options: Options) -> pd.DataFrame:
    """Run the rows that the options name, and print the table."""
    paper = {"scheduler": stages, "optimizer": rows.published_adam()}
    schedule = paper if options.schedule == "paper" else {}
    return rows.run(rows.dynamic_mnist("iwae", ROWS, options, **schedule), options)


def build(train: Tensor, *, layers: int) -> nn.Module:
    """Return the paper's network with one or two latent layers."""
    event = train.shape[1:]
    if layers == 1:
        decoder = mlp(50, 200, 200, event)
        rows.set_bias(decoder, train)
        return pv.VAE(
            prior=pv.priors.StandardNormal(50),
            likelihood=pv.likelihoods.Bernoulli(decoder),
            posterior=normal(mlp(event, 200, 200, 2 * 50)),
        )
    decoder = mlp(100, 200, 200, event)
    rows.set_bias(decoder, train)
    return pv.HierarchicalVAE(
        priors=(normal(mlp(50, 100, 100, 2 * 100)), pv.priors.StandardNormal(50)),
        likelihood=pv.likelihoods.Bernoulli(decoder),
        posteriors=(normal(mlp(event, 200, 200, 2 * 100)), normal(mlp(100, 100, 100, 2 * 50))),
    )


def stages(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """Return the paper's schedule: 3^i epochs at 10^(-i/7) of the initial learning rate, for i = 0, ..., 7."""
    factors = [factor for epochs, factor in STAGES for _ in range(epochs)]
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: factors[min(epoch, len(factors) - 1)])


ROWS = {
    f"{layers} layer{'s' * (layers > 1)}, {objective}, k = {k}": Row(
        target, partial(build, layers=layers), partial(OBJECTIVES[objective], num_particles=k)
    )
    for layers, by_objective in TARGETS.items()
    for objective, by_k in by_objective.items()
    for k, target in by_k.items()
}


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
