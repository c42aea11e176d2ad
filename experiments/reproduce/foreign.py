"""Weights of other libraries: a VAE trained by pythae and one by NumPyro, evaluated by pyrovae with both protocols.

Each library trains a VAE of its own on static MNIST: pythae with its default networks, NumPyro with those of its VAE
example. The weights are then copied by name into a :class:`pyrovae.VAE`. Before the evaluation, log p(x | z) of the new
decoder is compared in double precision with that of the library. The two may differ by 1e-5 nats at most.

The libraries are imported when they are needed: ``uv run --group benchmarks python -m experiments.reproduce.foreign``.
"""

import copy
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from torch import Tensor, nn

import pyrovae as pv
from experiments.benchmarks.rounds import machine
from experiments.reproduce import rows
from experiments.reproduce.foreign_training import Trained, Training, Weights, train_numpyro, train_pythae
from experiments.reproduce.rows import Paper

Library = Literal["pythae", "numpyro"]

TOLERANCE = 1e-5  # nats, of log p(x | z)
COMPARED = 100  # number of data for the comparison of log p(x | z)


@dataclass
class Options(Training):
    """Options of the evaluation of weights from other libraries."""

    libraries: tuple[Library, ...] = ("pythae", "numpyro")
    """Libraries that train a VAE."""
    data: Literal["static_mnist", "digits"] = "static_mnist"
    """Data set. The digits are small, embedded and need no download."""
    num_samples: int = 5000
    """Draws per test datum in the evaluation."""
    num_test: int | None = None
    """Number of test data [default: all]."""
    compile: bool = True
    """Compile the evaluation."""
    root: Path | None = None
    """Folder of the data [default: PYROVAE_DATA, else ~/.cache/pyrovae]."""
    out: Path = Path("docs/reproduction")
    """Folder of the results that are committed to the repository."""
    checkpoints: Path = Path("results/reproduce")
    """Folder of weights and results per datum."""


@dataclass(frozen=True)
class Names:
    """Mapping from the tensors of a :class:`pyrovae.VAE` with one hidden layer per network to those of another library.

    Attributes:
        activation: Nonlinearity of the hidden layers.
        sources: For each tensor of the VAE, the names of the library's tensors that it concatenates, each with a
            factor. A log-variance has the factor 1/2, because a posterior's network returns the logarithm of the scale.
        transposed: Whether matrices are stored as ``(in, out)``.
    """

    activation: Callable[[], nn.Module]
    sources: Mapping[str, tuple[tuple[str, float], ...]]
    transposed: bool = False


def _sources(encoder: str, loc: str, spread: str, factor: float, hidden: str, output: str) -> Any:
    """Return the sources of weights and biases, from the names of the layers."""
    layers = {
        "guide.posterior.network.1": ((encoder, 1.0),),
        "guide.posterior.network.3": ((loc, 1.0), (spread, factor)),
        "model.likelihood.network.0": ((hidden, 1.0),),
        "model.likelihood.network.2": ((output, 1.0),),
    }
    return {
        f"{ours}.{kind}": tuple((theirs.format(kind), factor) for theirs, factor in found)
        for ours, found in layers.items()
        for kind in ("weight", "bias")
    }


def _of_stax(sources: Mapping[str, tuple[tuple[str, float], ...]]) -> dict[str, tuple[tuple[str, float], ...]]:
    """Return the sources with the names of stax, which calls weights 0 and biases 1."""
    return {
        ours: tuple((name.replace("weight", "0").replace("bias", "1"), factor) for name, factor in found)
        for ours, found in sources.items()
    }


NAMES: dict[Library, Names] = {
    "pythae": Names(
        nn.ReLU,
        _sources(
            encoder="encoder.layers.0.0.{}",
            loc="encoder.embedding.{}",
            spread="encoder.log_var.{}",
            factor=0.5,
            hidden="decoder.layers.0.0.{}",
            output="decoder.layers.1.0.{}",
        ),
    ),
    "numpyro": Names(
        nn.Softplus,
        _of_stax(
            _sources(
                encoder="encoder$params.0.{}",
                loc="encoder$params.3.0.{}",
                spread="encoder$params.3.1.0.{}",
                factor=1.0,
                hidden="decoder$params.0.{}",
                output="decoder$params.2.{}",
            )
        ),
        transposed=True,
    ),
}


def main(options: Options) -> None:
    """Train a VAE with each library, and evaluate it.

    Raises:
        ModuleNotFoundError: If a library is not installed.
        ValueError: If the weights do not match their names, or log p(x | z) differs.
    """
    for library in options.libraries:
        require(library)
    splits = pv.data.digits("static") if options.data == "digits" else pv.data.static_mnist(root=options.root)
    for library in options.libraries:
        started = time.perf_counter()
        trained = TRAINERS[library](splits.train, options)
        seconds = time.perf_counter() - started
        vae = as_vae(trained.weights, NAMES[library], splits.train.shape[1:])
        difference = largest_difference(vae, trained, splits.test[:COMPARED])
        print(f"{library}: log p(x | z) of {COMPARED} data differs by {difference:.1e} nats at most")
        if not difference <= TOLERANCE:
            raise ValueError(f"log p(x | z) differs between pyrovae and {library} by {difference:.2g} nats.")
        folder = options.checkpoints / "foreign" / library
        folder.mkdir(parents=True, exist_ok=True)
        pv.save(vae, folder / "weights.pt")
        paper = Paper("foreign", splits.train, splits.test[: options.num_test], "static", {})
        given = rows.Options(num_samples=options.num_samples, compile=options.compile, seed=options.seed)
        found = rows.evaluated(vae, paper, given, folder)
        kept = record(library, options) | {
            "largest_difference": difference,
            "train_seconds": seconds,
            "weights": rows.digest(folder / "weights.pt"),
        }
        path = options.out / "foreign" / f"{library}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(kept | found, indent=2) + "\n")
        print(f"{library}: test NLL {found['nll']:.2f} by {found['num_samples']} encoder draws,", end=" ")
        print(f"{found['quoted']['nll']:.2f} by log p(x), {found['quoted']['reliable']:.1%} of the data reliable")


def record(library: Library, options: Options) -> dict[str, Any]:
    """Return the entries of the JSON file that describe the training."""
    return {
        "library": library,
        "version": version(library),
        "data": options.data,
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "learning_rate": options.learning_rate,
        "latent": options.latent,
        "seed": options.seed,
        "machine": machine("cpu"),
        "command": rows.command(),
    }


def require(library: Library) -> None:
    """Import a library.

    Raises:
        ModuleNotFoundError: If it is not installed. The message states how to install it.
    """
    try:
        import_module(library)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{library} is not installed. Run `uv run --group benchmarks python -m experiments.reproduce.foreign`, or "
            f"install it with `pip install {library}`.",
            name=error.name,
        ) from error


def as_vae(weights: Weights, names: Names, event_shape: torch.Size | tuple[int, ...]) -> pv.VAE:
    """Return a VAE with the weights of another library, in evaluation mode.

    Args:
        weights: The library's tensors by name.
        names: Mapping from the tensors of the VAE to those of the library.
        event_shape: Shape of a datum.

    Raises:
        ValueError: If a tensor is missing, is not used, or has another shape.
    """
    used = {name for found in names.sources.values() for name, _ in found}
    if wrong := sorted(used.symmetric_difference(weights)):
        state = "is missing" if wrong[0] in used else "has no counterpart in the VAE"
        raise ValueError(f"The tensor {wrong[0]!r} {state}. The library's weights are {sorted(weights)}.")
    tensors = {
        ours: torch.cat([factor * _as_tensor(weights[name], names.transposed) for name, factor in found])
        for ours, found in names.sources.items()
    }
    hidden, latent = tensors["model.likelihood.network.0.weight"].shape
    mlp = partial(pv.networks.mlp, activation=names.activation)
    vae = pv.VAE(
        prior=pv.priors.StandardNormal(latent),
        likelihood=pv.likelihoods.Bernoulli(mlp(latent, hidden, tuple(event_shape))),
        posterior=pv.posteriors.DiagonalNormal(mlp(tuple(event_shape), hidden, 2 * latent)),
    )
    for name, tensor in vae.state_dict().items():
        if name in tensors and tensors[name].shape != tensor.shape:
            raise ValueError(
                f"{' and '.join(source for source, _ in names.sources[name])} have shape {tuple(tensors[name].shape)} "
                f"together, but {name!r} has shape {tuple(tensor.shape)}."
            )
    vae.load_state_dict(tensors)
    return vae.eval()


def _as_tensor(array: np.ndarray, transposed: bool) -> Tensor:
    return torch.tensor(np.asarray(array).T if transposed else np.asarray(array))


def largest_difference(vae: pv.VAE, trained: Trained, x: Tensor) -> float:
    """Return the largest difference of log p(x | z) between the VAE and the library for encoder draws, nats."""
    exact, x = copy.deepcopy(vae).double(), x.double()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        z = exact.encode(x).sample()
        ours = exact.likelihood(z).log_prob(x)
    return float((ours - trained.log_likelihood(z, x)).abs().max())


TRAINERS: dict[Library, Callable[[Tensor, Training], Trained]] = {"pythae": train_pythae, "numpyro": train_numpyro}


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
