"""Information in the code of an autoencoder, and images that autoencoders and a VAE decode from random codes.

An autoencoder, its sparse, denoising and contractive variants, and a VAE are trained on the same digits with the same
networks. Only the last layer of the VAE's encoder differs, and the code of the VAE is its posterior mean. The
experiment measures the negative log-likelihood (nats) of a digit given its code, also for digits with masked pixels
and for images of another distribution. It also measures the sparsity of the code, its sensitivity to the pixels, and
the accuracy of a linear classifier on codes. Finally, images decoded from random codes are compared with images that
the same decoder makes from codes of its training data.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
import tyro
import xarray as xr
from matplotlib.figure import Figure
from torch import Tensor, nn

import pyrovae as pv
from experiments import _comparison as comparison
from experiments._codes import distances_to_nearest, hoyer_sparsity, linear_probe, precision_and_recall
from experiments._comparison import mlp
from experiments._figures import figure_of
from experiments._letters import letters
from pyrovae.autoencoders import (
    Autoencoder,
    ContractiveAutoencoder,
    DenoisingAutoencoder,
    Masking,
    SparseAutoencoder,
    squared_jacobian_norm,
)
from pyrovae.plots import style


@dataclass
class Options(comparison.Options):
    """Options of the experiment."""

    data: Literal["mnist5k", "digits", "mnist"] = "mnist5k"
    """Data set of digits with labels; the first two need no download."""
    other: Literal["letters", "fashion_mnist"] = "letters"
    """Data set of another distribution: printed letters, which need no download, or clothing of 28 x 28 pixels."""
    binarization: Literal["dynamic"] = "dynamic"
    """Method that makes grey images binary."""
    latent: int = 20
    """Number of units of the code."""
    epochs: int = 50
    """Passes over the training data."""
    kl_warmup: int = 15
    """Epochs over which the weight of the VAE's latent sites grows to 1."""
    sparsity: float = 0.3
    """Weight of the code's L1 norm in the sparse autoencoder."""
    masked: float = 0.25
    """Fraction of masked pixels, in the training of the denoising autoencoder and in the test of all models."""
    contraction: float = 1.0
    """Weight of the squared norm of the encoder's Jacobian in the contractive autoencoder."""
    num_samples: int = 2000
    """Number of random codes to decode."""
    out: Path = Path("results/autoencoders")
    """Folder for tables and figures."""


class PosteriorMean(nn.Module):
    """The posterior mean of a VAE, as the encoder of an autoencoder."""

    def __init__(self, vae: pv.VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, x: Tensor) -> Tensor:
        """Return the code of x, shape ``(N, latent)``."""
        mean: Tensor = self.vae.posterior(x).mean
        return mean


class Decoded(NamedTuple):
    """Images decoded from codes, and the distances of the codes to known codes."""

    images: dict[str, Tensor]
    distances: dict[str, Tensor]
    measures: dict[str, str]


def main(options: Options) -> pd.DataFrame:
    """Train and measure the models. Print and write the table, the results per datum and the figures."""
    splits = comparison.load(options)
    other = load_other(options, splits)
    models, histories, results, decoded = {}, {}, {}, {}
    for name, build in comparison.chosen(builders(options, splits.train.shape[1:]), options).items():
        models[name], histories[name] = train(build, splits, options)
        results[name] = measure(models[name], splits, other, options)
        decoded[name] = decode_random_codes(models[name], splits, options)
    of_other = f"Autoencoder of {other.name}"
    build = builders(options, splits.train.shape[1:])["Autoencoder"]
    models[of_other], histories[of_other] = train(build, other, options)
    results[of_other] = measure(models[of_other], splits, other, options)

    rows = {
        name: row(result, splits, other, histories[name]) | (decoded[name].measures if name in decoded else {})
        for name, result in results.items()
    }
    table = pd.DataFrame({**rows, "no code": without_code(splits, other)}).T.fillna("")
    report(splits, table)
    figures = {
        "reconstructions": reconstructions(models, splits, other, options),
        "samples": samples(decoded),
        "distances": draw_distances(decoded),
    }
    comparison.write(options, table, figures, histories, results)
    return table


def load_other(options: Options, splits: pv.data.Splits) -> pv.data.Splits:
    """Return data of the other distribution, as many as there are digits."""
    sizes = [len(split) for split in splits]
    if options.other == "letters":
        return letters(sizes, splits.train.shape[-1], seed=options.seed)
    other = pv.data.fashion_mnist(options.binarization, root=options.root)
    train, valid, test = (split[:size] for split, size in zip(other, sizes, strict=True))
    return replace(other, train=train, valid=valid, test=test, labels=None)


def builders(options: Options, event_shape: tuple[int, ...]) -> dict[str, Callable[[], nn.Module]]:
    """Return functions that build the models, with equal networks and equal initial weights."""

    def networks(width: int = 1) -> tuple[nn.Module, nn.Module]:
        pyro.set_rng_seed(options.seed)
        decoder = mlp(options.latent, *options.hidden[::-1], event_shape)
        return mlp(event_shape, *options.hidden, width * options.latent), decoder

    def vae() -> pv.VAE:
        encoder, decoder = networks(width=2)
        return pv.VAE(
            pv.priors.StandardNormal(options.latent),
            pv.likelihoods.Bernoulli(decoder),
            pv.posteriors.DiagonalNormal(encoder),
        )

    return {
        "Autoencoder": lambda: Autoencoder(*networks()),
        "Sparse": lambda: SparseAutoencoder(*networks(), weight=options.sparsity),
        "Denoising": lambda: DenoisingAutoencoder(*networks(), corruption=Masking(options.masked)),
        "Contractive": lambda: ContractiveAutoencoder(*networks(), weight=options.contraction),
        "VAE": vae,
    }


def train(build: Callable[[], nn.Module], splits: pv.data.Splits, options: Options) -> tuple[nn.Module, pv.History]:
    """Train a model. The KL warm-up applies to a VAE only."""
    model = build()
    warmup = options.kl_warmup if isinstance(model, pv.VAE) else 0
    return model, comparison.train(model, splits, replace(options, kl_warmup=warmup))


def as_autoencoder(model: Any) -> Autoencoder:
    """Return the model, or an autoencoder whose code is the posterior mean of a VAE."""
    if not isinstance(model, pv.VAE):
        return model
    likelihood: Any = model.likelihood
    return Autoencoder(PosteriorMean(model), likelihood.network)


@torch.no_grad()
def measure(model: nn.Module, splits: pv.data.Splits, other: pv.data.Splits, options: Options) -> xr.Dataset:
    """Return the reconstruction errors, sparsity and Jacobian norm of each test datum, and the accuracy of a probe."""
    autoencoder, device = as_autoencoder(model), _device(model)
    torch.manual_seed(options.seed)
    known = autoencoder.encode(pv.data.binarize(splits.train).to(device))
    x = splits.test.to(device)
    codes, masked = autoencoder.encode(x), Masking(options.masked)(x)
    slopes = torch.cat([squared_jacobian_norm(autoencoder.encoder, part) for part in x.split(options.batch_size)])
    per_datum = {
        "digits": autoencoder.errors(x),
        "masked": autoencoder.errors(x, seen=masked),
        "sparsity": hoyer_sparsity(codes),
        "jacobian": slopes.sqrt(),
        "relative_jacobian": (slopes / known.var(0).sum()).sqrt(),
    }
    errors = autoencoder.errors(other.test.to(device))
    assert splits.labels is not None
    return xr.Dataset(
        {name: ("datum", values.cpu().numpy()) for name, values in per_datum.items()}
        | {"other": ("other_datum", errors.cpu().numpy())},
        attrs={"probe": linear_probe(known, splits.labels[0], codes, splits.labels[2])},
    )


def without_code(splits: pv.data.Splits, other: pv.data.Splits) -> dict[str, str]:
    """Return the reference without a code: the data scored by the mean training image, and a linear probe on pixels."""

    def errors(data: pv.data.Splits) -> np.ndarray:
        mean = data.train.mean(0).clamp(1e-3, 1 - 1e-3)
        return -dist.Bernoulli(mean).to_event(2).log_prob(data.test).numpy()

    assert splits.labels is not None
    x = pv.data.binarize(splits.train)
    probe = linear_probe(x, splits.labels[0], splits.test, splits.labels[2])
    return {
        "digits": cell(errors(splits)),
        other.name: cell(errors(other)),
        "probe": share(probe, splits),
    }


def row(result: xr.Dataset, splits: pv.data.Splits, other: pv.data.Splits, history: pv.History) -> dict[str, str]:
    """Return the table row of one model."""
    return {
        "digits": cell(result.digits),
        "masked digits": cell(result.masked),
        other.name: cell(result.other),
        "sparsity": f"{float(result.sparsity.mean()):.2f}",
        "Jacobian": f"{float(result.jacobian.mean()):.2f}",
        "relative Jacobian": f"{float(result.relative_jacobian.mean()):.2f}",
        "probe": share(result.attrs["probe"], splits),
        "seconds": f"{history.seconds[-1]:.0f}",
    }


def share(correct: float, splits: pv.data.Splits) -> str:
    """Return a fraction of the test data ± its standard error."""
    return f"{correct:.1%} ± {(correct * (1 - correct) / len(splits.test)) ** 0.5:.1%}"


def cell(values: Any) -> str:
    """Return the mean over the data ± its standard error."""
    return f"{float(values.mean()):.1f} ± {float(values.std(ddof=1)) / values.size**0.5:.1f}"


@torch.no_grad()
def decode_random_codes(model: Any, splits: pv.data.Splits, options: Options) -> Decoded:
    """Decode random codes, and compare the codes and the images with those of digits.

    The decoder of a VAE is trained on draws from q(z | x), so such draws serve as the codes of digits.
    """
    autoencoder, device = as_autoencoder(model), _device(model)

    def codes_of(x: Tensor) -> Tensor:
        codes: Tensor = model.posterior(x).sample() if isinstance(model, pv.VAE) else model.encode(x)
        return codes

    torch.manual_seed(options.seed)
    known = codes_of(pv.data.binarize(splits.train[: options.num_samples]).to(device))
    noise = torch.randn(options.num_samples, options.latent, device=device)
    codes = {
        "test digits": codes_of(splits.test.to(device)),
        "matched": known.mean(0) + known.std(0) * noise,
        "N(0, I)": noise,
    }
    images = {kind: autoencoder.decode(z) for kind, z in codes.items()}
    distances = {kind: distances_to_nearest(z, known) for kind, z in codes.items()}
    real = autoencoder.decode(known)
    fidelity = {kind: precision_and_recall(made, real) for kind, made in images.items()}
    farther = distances["matched"].median() / distances["test digits"].median()
    measures = {kind: f"{precision:.2f} / {recall:.2f}" for kind, (precision, recall) in fidelity.items()}
    return Decoded(images, distances, measures | {"farther": f"{float(farther):.2f}"})


def report(splits: pv.data.Splits, table: pd.DataFrame) -> None:
    """Print two tables: measures of the codes of data, and measures of images decoded from random codes."""
    of_codes = ["test digits", "N(0, I)", "matched", "farther"]
    print(f"\n{splits.name}, {len(splits.test)} test data, -log p(x | code), nats ± standard error:\n")
    print(table.drop(columns=of_codes).to_string())
    print(
        "\nprecision / recall of images decoded from codes of test digits and from random codes; farther: distance of"
    )
    print("a matched random code to the nearest known code, relative to that of a test digit's code:\n")
    print(table.loc[table["farther"] != "", of_codes].to_string())


def samples(decoded: Mapping[str, Decoded]) -> Figure:
    """Return images decoded from random codes: draws from N(0, I), and draws with the moments of the known codes."""
    kinds = ("N(0, I)", "matched")
    panels = {f"{name}, {kind}": each.images[kind][:36] for kind in kinds for name, each in decoded.items()}
    return figure_of(pv.plots.images(panels, columns=6))


@torch.no_grad()
def reconstructions(
    models: Mapping[str, nn.Module], splits: pv.data.Splits, other: pv.data.Splits, options: Options, n: int = 5
) -> Figure:
    """Draw digits, masked digits and other images above their reconstructions by each model."""
    torch.manual_seed(options.seed)
    x = splits.test[:n]
    given = torch.cat([x, Masking(options.masked)(x), other.test[:n]])
    made = {name: as_autoencoder(model).reconstruct(given.to(_device(model))) for name, model in models.items()}
    panels = {f"input: digits, masked digits, {other.name}": given, **made}
    return figure_of(pv.plots.images(panels, columns=len(given), stacked=True))


def draw_distances(decoded: Mapping[str, Decoded]) -> Figure:
    """Draw the distances of codes of test digits and of random codes to the nearest code of a training digit."""
    size = (2.4 * len(decoded), 2.6)
    figure, axes = plt.subplots(1, len(decoded), figsize=size, sharex=True, squeeze=False, layout="constrained")
    for ax, (name, each) in zip(axes[0], decoded.items(), strict=True):
        for kind, color in (("test digits", style.color(0)), ("matched", style.color(1))):
            distances = each.distances[kind].cpu().numpy()
            ax.hist(distances, bins=30, density=True, color=color, alpha=0.6, label=f"codes, {kind}")
        ax.set(title=name, xlabel="distance (standard deviations)", yticks=[], xlim=(0, None))
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
