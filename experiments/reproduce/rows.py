"""Code shared by the reproductions: a row of a published table is trained, evaluated on the test set, and stored.

A row is trained by ``fit`` with checkpoints, so that the same command resumes an interrupted run. The results are
stored in a small JSON file with all settings. A row that has not been run has empty cells: only the target comes from
the paper.
"""

import hashlib
import json
import math
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyro
import torch
from pyro.infer import ELBO, Trace_ELBO
from pytorch_optimizer import Muon
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

import pyrovae as pv
from experiments.benchmarks.rounds import machine

COLUMNS = (
    "published",
    "5,000 encoder draws",
    "k-hat > 0.7",
    "log p(x)",
    "reliable",
    "overstated by",
    "ELBO",
    "active units",
    "epochs",
    "hours",
)
RELIABLE = 0.95  # the table marks a row whose fraction of reliable data is smaller


@dataclass
class Options:
    """Options of every reproduction."""

    rows: tuple[str, ...] = ()
    """Names of the rows to run. Without names, the table of the rows that have been run is printed."""
    epochs: int = 500
    """Passes over the training data."""
    batch_size: int = 100
    """Batch size."""
    optimizer: Literal["adam", "muon"] = "adam"
    """Optimizer. Muon updates matrices only; Adam updates the other parameters, at a tenth of the learning rate."""
    learning_rate: float = 1e-3
    """Initial learning rate of the optimizer. A cosine schedule lowers it to a hundredth of this value."""
    kl_warmup: int = 0
    """Epochs over which the weight of the latent sites grows to 1."""
    num_samples: int = 5000
    """Draws per test datum in the evaluation."""
    compile: bool = True
    """Compile training and evaluation."""
    precision: Literal["tf32", "bfloat16"] | None = None
    """Precision of the matrix products in training. The evaluation uses the default precision of torch."""
    root: Path | None = None
    """Folder of the data [default: PYROVAE_DATA, else ~/.cache/pyrovae]."""
    device: str = "auto"
    """Device; auto is a CUDA device if there is one, else the CPU."""
    seed: int = 0
    """Seed of the initial weights, the training and the evaluation."""
    hours: float | None = None
    """Stop the training after this many hours, and evaluate the weights of that time [default: train all epochs]."""
    out: Path = Path("docs/reproduction")
    """Folder of the results of rows that are committed to the repository."""
    checkpoints: Path = Path("results/reproduce")
    """Folder of checkpoints, weights and results per datum."""
    part: str = "."
    """Subfolder of both folders, for a repeated run of a row, such as with another seed."""
    weights: Path | None = None
    """File of weights from an earlier run of one row, to evaluate without training [default: none]."""


@dataclass(frozen=True)
class Row:
    """A row of a published table.

    Attributes:
        target: The published test NLL, nats.
        build: Function of the training data that builds the untrained VAE.
        objective: Function that makes the training objective.
    """

    target: float
    build: Callable[[Tensor], Any]
    objective: Callable[[], ELBO] = Trace_ELBO


@dataclass(frozen=True)
class Paper:
    """A published table.

    Attributes:
        name: Short name, used for folders and files.
        train: Training data.
        test: Test data.
        binarization: Name of the binarization of the test data.
        rows: Rows by name.
        fit_options: Further options of ``fit``, such as validation data. They replace those of ``run_row``.
    """

    name: str
    train: Tensor
    test: Tensor
    binarization: str
    rows: Mapping[str, Row]
    fit_options: Mapping[str, Any] = field(default_factory=dict)


def dynamic_mnist(name: str, rows: Mapping[str, Row], options: Options, **fit_options: Any) -> Paper:
    """Return a table for MNIST with dynamic binarization: 60,000 training digits are binarized anew in every epoch.

    Args:
        name: Short name of the paper.
        rows: Rows by name.
        options: Options of the reproduction.
        **fit_options: Further options of ``fit``.
    """
    grey, binary = (pv.data.mnist(binarization, root=options.root) for binarization in ("none", "dynamic"))
    fit_options = {"transform": pv.data.binarize, **fit_options}
    return Paper(name, torch.cat([grey.train, grey.valid]), binary.test, "dynamic", rows, fit_options)


def run(paper: Paper, options: Options) -> pd.DataFrame:
    """Train, evaluate and store the rows that the options name, and print the table of all rows that were ever run.

    Raises:
        ValueError: If the options name an unknown row.
    """
    if unknown := set(options.rows) - set(paper.rows):
        raise ValueError(f"{paper.name} has no row {min(unknown)!r}. Choose from {list(paper.rows)}.")
    for name in options.rows:
        run_row(paper, name, options)
    table = tabulate(paper.name, {name: row.target for name, row in paper.rows.items()}, options.out / options.part)
    print(f"\n{paper.name}, {paper.binarization}: test NLL, nats, lower is better\n")
    print(table.to_string())
    return table


def run_row(paper: Paper, name: str, options: Options) -> None:
    """Train and evaluate a row, and write its results."""
    row, folder = paper.rows[name], options.checkpoints / options.part / paper.name / slug(name)
    path = options.out / options.part / paper.name / f"{slug(name)}.json"
    pyro.set_rng_seed(options.seed)
    vae = row.build(paper.train)
    if options.weights is not None:
        automatic = "cuda" if torch.cuda.is_available() else "cpu"
        vae.to(automatic if options.device == "auto" else options.device)
        pv.load(options.weights, into=vae)
        kept = json.loads(path.read_text()) | {"weights": digest(options.weights)}
        path.write_text(json.dumps(kept | evaluated(vae.eval(), paper, options, folder), indent=2) + "\n")
        return
    history = pv.fit(vae, paper.train, **fit_options(paper, row, options, folder, path))
    if history.interrupted:
        raise SystemExit(f"{name} stopped after {len(history.train)} epochs. Give the same command to resume.")
    pv.save(vae, folder / "weights.pt")
    found = {"weights": digest(folder / "weights.pt"), **evaluated(vae, paper, options, folder)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record(name, row, history, options) | found, indent=2) + "\n")


def fit_options(paper: Paper, row: Row, options: Options, folder: Path, path: Path) -> dict[str, Any]:
    """Return the options of ``fit`` for a row.

    If a training has reached its limit of hours, the same command does not train it further. Its number of epochs is
    then read from the committed file.
    """
    epochs = options.epochs
    if options.hours is not None and path.exists():
        epochs = json.loads(path.read_text())["epochs"]
    return {
        "objective": row.objective(),
        "epochs": epochs,
        "batch_size": options.batch_size,
        "optimizer": muon if options.optimizer == "muon" else None,
        "learning_rate": options.learning_rate,
        "kl_warmup": options.kl_warmup,
        "compile": options.compile,
        "precision": options.precision,
        "checkpoint": folder,
        "seed": options.seed,
        "device": options.device,
        "scheduler": partial(LambdaLR, lr_lambda=Cosine(options.epochs)),
        "callback": None if options.hours is None else partial(_is_late, hours=options.hours),
        **paper.fit_options,
    }


def _is_late(history: pv.History, *, hours: float) -> bool:
    return history.seconds[-1] >= 3600 * hours


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, which identifies its weights."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass(frozen=True)
class Cosine:
    """Factor of a learning rate that falls to a hundredth of its initial value along a cosine.

    This is a class and not a function, so that a checkpoint stores its epochs.
    """

    epochs: int

    def __call__(self, epoch: int) -> float:
        """Return the factor after ``epoch`` epochs."""
        return 0.01 + 0.99 * (1 + math.cos(math.pi * epoch / self.epochs)) / 2


def muon(parameters: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
    """Return Muon for all matrices, whose updates are orthogonal matrices, and Adam for the other parameters.

    Source:
        *Muon: An optimizer for hidden layers in neural networks* (Jordan et al., 2024).
    """
    parameters = list(parameters)
    matrices = {"params": [each for each in parameters if each.ndim == 2], "lr": lr, "use_muon": True}
    biases = {"params": [each for each in parameters if each.ndim != 2], "lr": lr / 10, "use_muon": False}
    return Muon([matrices, biases])


def evaluated(vae: Any, paper: Paper, options: Options, folder: Path) -> dict[str, Any]:
    """Evaluate a VAE on all test data by both protocols, store the results per datum, and return the table entries."""
    test = paper.test.to(next(vae.parameters()).device)
    shared: Any = {"seed": options.seed, "compile": options.compile, "binarization": paper.binarization}
    folder.mkdir(parents=True, exist_ok=True)
    result = pv.evaluation.evaluate(
        vae.model, vae.guide, test, options.num_samples, checkpoint=folder / "published", **shared
    )
    result.to_netcdf(folder / "evaluation.nc")
    quoted = pv.evaluation.log_likelihood(vae.model, vae.guide, test, checkpoint=folder / "quoted", **shared)
    quoted.to_netcdf(folder / "log_likelihood.nc")
    active = pv.evaluation.active_units(vae.guide, test, seed=options.seed)
    size = result.sizes["datum"]
    excess = quoted.log_likelihood - result.log_likelihood
    return {
        "nll": -float(result.log_likelihood.mean()),
        "standard_error": float(result.log_likelihood.std(ddof=1)) / size**0.5,
        "elbo": float(result.elbo.mean()),
        "iwae": {int(k): float(bound) for k, bound in zip(result.k, result.iwae.mean("datum"), strict=True)},
        "k_hat_above_0.7": float((result.pareto_k > 0.7).mean()),
        "active_units": [int(active[site].sum()) for site in active.attrs["sites"]],
        "test_data": size,
        "num_samples": result.attrs["num_samples"],
        "binarization": result.attrs["binarization"],
        "seconds_of_encoder_draws": result.attrs["seconds"],
        "quoted": {
            "nll": -float(quoted.log_likelihood.mean()),
            "standard_error": float(quoted.log_likelihood.std(ddof=1)) / size**0.5,
            "monte_carlo_error": float((quoted.mcse**2).sum()) ** 0.5 / size,
            "reliable": float(quoted.reliable.mean()),
            "evaluations": float(quoted.evaluations.mean()),
            "overstated_by": float(excess.mean()),
            "overstated_by_error": float(excess.std(ddof=1)) / size**0.5,
            "seconds": quoted.attrs["seconds"],
            "machine": machine(quoted.attrs["device"]),
        },
    }


def record(name: str, row: Row, history: pv.History, options: Options) -> dict[str, Any]:
    """Return the entries of the JSON file that describe the training of a row."""
    return {
        "row": name,
        "target": row.target,
        "train_bound": None if history.best_epoch is None else history.train[history.best_epoch],
        "objective": history.objective,
        "epochs": len(history.train),
        "batch_size": options.batch_size,
        "optimizer": options.optimizer,
        "learning_rate": options.learning_rate,
        "kl_warmup": options.kl_warmup,
        "precision": options.precision,
        "seed": options.seed,
        "train_seconds": history.seconds[-1],
        "machine": machine("cpu" if options.device == "auto" else options.device),
        "command": command(),
    }


def command() -> str:
    """Return the command that started this process, for a JSON file."""
    return shlex.join(["python", "-m", f"experiments.reproduce.{Path(sys.argv[0]).stem}", *sys.argv[1:]])


def tabulate(paper: str, targets: Mapping[str, float], folder: Path) -> pd.DataFrame:
    """Return one row for each row of the paper. Rows without a result in the folder hold the target only."""
    lines = {name: _line(folder / paper / f"{slug(name)}.json", target) for name, target in targets.items()}
    return pd.DataFrame(lines).T


def _line(path: Path, target: float) -> dict[str, str]:
    line = dict.fromkeys(COLUMNS, "") | {"published": f"{target:.2f}"}
    return line | cells(json.loads(path.read_text())) if path.exists() else line


def cells(kept: Mapping[str, Any]) -> dict[str, str]:
    """Return the cells of a row that was run, by column, from its JSON file."""
    found = _quoted(kept.get("quoted")) | {
        "5,000 encoder draws": f"{kept['nll']:.2f} ± {kept['standard_error']:.2f}",
        "ELBO": f"{kept['elbo']:.2f}",
        "k-hat > 0.7": f"{kept['k_hat_above_0.7']:.0%}",
        "active units": " + ".join(str(units) for units in kept["active_units"]),
        "epochs": str(kept["epochs"]),
        "hours": f"{kept['train_seconds'] / 3600:.1f}",
    }
    return {column: found[column] for column in COLUMNS if column in found}


def _quoted(kept: Mapping[str, float] | None) -> dict[str, str]:
    """Return the cells of the estimate of log p(x). The Monte Carlo error is shown if 99% of the data are reliable."""
    if kept is None:
        return {}
    error = f" ({kept['monte_carlo_error']:.2f})" if kept["reliable"] >= 0.99 else ""
    return {
        "log p(x)": f"{kept['nll']:.2f} ± {kept['standard_error']:.2f}{error}",
        "reliable": f"{kept['reliable']:.1%}" + (", below 95%" if kept["reliable"] < RELIABLE else ""),
        "overstated by": f"{kept['overstated_by']:.2f} ± {kept['overstated_by_error']:.2f}",
    }


def slug(name: str) -> str:
    """Return the name of a row as the name of a file."""
    return name.lower().replace(" = ", "_").replace(", ", "-").replace(" ", "_")


def published_adam() -> Callable[..., torch.optim.Optimizer]:
    """Return Adam with the epsilon of Burda et al., 1e-4."""
    return partial(torch.optim.Adam, eps=1e-4, fused=True)


def set_bias(network: nn.Module, x: Tensor) -> None:
    """Set the last bias of a decoder to the logits of the data's mean, as the published code does."""
    *_, last = (layer for layer in network.modules() if isinstance(layer, nn.Linear))
    with torch.no_grad():
        last.bias.copy_(torch.logit(x.mean(0).flatten(), eps=1e-3))
