"""Is too little training the reason why a row misses its target? The weights of the row are trained further.

The script loads the weights of a row, trains them further, and compares the NLL by encoder draws before and after this
training, on the first test digits. It answers one of two questions:

- ``--trains encoder``: would the encoder improve? Only the parameters of the posterior are trained, with the doubly
  reparameterized gradient of *Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives* (Tucker, Lawson,
  Gu and Maddison, 2019). This training does not change log p(x).
- ``--trains all``: did the row have too few epochs? All parameters are trained with the objective of the row, by Muon.
"""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyro
import torch
import tyro
from pyro.infer import ELBO
from torch import nn

import pyrovae as pv
from experiments.benchmarks.rounds import machine
from experiments.reproduce import iwae, rows


@dataclass
class Options:
    """Options of the script."""

    row: str = "1 layer, IWAE, k = 50"
    """Name of a row of ``experiments.reproduce.iwae``."""
    weights: Path = Path("results/reproduce/iwae/1_layer-iwae-k_50/weights.pt")
    """Weights of the row."""
    trains: Literal["encoder", "all"] = "encoder"
    """Parameters that are trained."""
    epochs: int = 10
    """Number of further epochs."""
    num_particles: int = 50
    """Draws per digit in the training of the encoder."""
    batch_size: int = 250
    """Batch size."""
    learning_rate: float = 1e-3
    """Initial learning rate, of Adam for the encoder and of Muon for all parameters. It falls along a cosine."""
    digits: int = 2000
    """Number of test digits."""
    num_samples: int = 5000
    """Encoder draws per test digit."""
    compile: bool = True
    """Compile training and evaluation."""
    precision: str | None = "bfloat16"
    """Precision of the matrix products in training."""
    root: Path | None = None
    """Folder of the data [default: PYROVAE_DATA, else ~/.cache/pyrovae]."""
    seed: int = 0
    """Seed of the training and of the evaluation."""
    out: Path = Path("docs/reproduction/further_training")
    """Folder of the result."""


def main(options: Options) -> pd.DataFrame:
    """Train the row further, evaluate it before and after, write the result, and print it."""
    paper = rows.dynamic_mnist("iwae", iwae.ROWS, rows.Options(root=options.root))
    vae = paper.rows[options.row].build(paper.train)
    pv.load(options.weights, into=vae)
    before = nll(vae, paper, options)
    train(vae, paper, options)
    found = {
        "row": options.row,
        "weights": rows.digest(options.weights),
        "trains": options.trains,
        "epochs": options.epochs,
        "digits": options.digits,
        "before": before,
        "after": nll(vae, paper, options),
        "machine": machine("cpu"),
        "command": rows.command(),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{rows.slug(options.row)}-{options.trains}.json").write_text(json.dumps(found, indent=2) + "\n")
    table = pd.DataFrame({when: found[when] for when in ("before", "after")}).T
    print(table.to_string())
    return table


def train(vae: Any, paper: rows.Paper, options: Options) -> None:
    """Train a VAE in place. If only the encoder is trained, the other parameters keep their values."""
    pyro.set_rng_seed(options.seed)
    if options.trains == "encoder":
        vae.requires_grad_(False)
        encoder(vae).requires_grad_(True)
        objective: ELBO = pv.objectives.IWAE(options.num_particles, gradient="doubly_reparameterized")
    else:
        objective = paper.rows[options.row].objective()
    settings: Any = {"compile": options.compile, "precision": options.precision, "seed": options.seed}
    pv.fit(
        vae,
        paper.train,
        objective=objective,
        epochs=options.epochs,
        batch_size=options.batch_size,
        optimizer=rows.muon if options.trains == "all" else None,
        learning_rate=options.learning_rate,
        scheduler=partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=rows.Cosine(options.epochs)),
        transform=pv.data.binarize,
        **settings,
    )


def encoder(vae: Any) -> nn.Module:
    """Return the posteriors of all latent layers of a VAE or a hierarchical VAE."""
    posteriors: Any = vae.posteriors if isinstance(vae, pv.HierarchicalVAE) else [vae.posterior]
    return nn.ModuleList(posteriors)


def nll(vae: Any, paper: rows.Paper, options: Options) -> dict[str, float]:
    """Return the NLL by encoder draws, and the fraction of digits with a k-hat above 0.7."""
    shared: Any = {"seed": options.seed, "compile": options.compile, "binarization": paper.binarization}
    x = paper.test[: options.digits]
    found = pv.evaluation.evaluate(vae.eval().model, vae.guide, x, options.num_samples, **shared)
    return {"nll": -float(found.log_likelihood.mean()), "k_hat_above_0.7": float((found.pareto_k > 0.7).mean())}


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
