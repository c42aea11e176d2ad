"""Bits per dimension of colour images under a small convolutional VAE, by two estimates of log p(x).

The likelihood scores the 256 levels of each channel by a discretized logistic distribution. The first estimate is the
protocol of the literature, importance sampling with draws from the encoder; the second is
:func:`pyrovae.evaluation.log_likelihood`. The poorer the proposal, the more the first estimate overstates the negative
log-likelihood. The second estimate is therefore the one to report if it is reliable for most data. The reference codes
each channel by the frequencies of its levels in the training data, without a model of the image.

The photographs ship in scikit-learn. Each is cut into tiles of 64 x 64 pixels, assigned at random to training,
validation and test data, so that patches of different splits share no pixel. Patches of the training data overlap;
those of the other splits do not.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pyro
import torch
import tyro
import xarray as xr
from torch import Tensor

import pyrovae as pv
from experiments import _comparison as comparison
from experiments._figures import figure_of

EVENT = (3, 32, 32)
LEVELS = 256
TILE, PATCH = 64, 32


@dataclass
class Options(comparison.Options):
    """Options of the experiment."""

    data: Literal["photographs", "cifar10"] = "photographs"  # type: ignore[assignment]
    """Patches of the two photographs in scikit-learn, or CIFAR-10, which is downloaded if it is missing."""
    latents: tuple[int, ...] = (8, 32)
    """Numbers of latent dimensions. One model is trained for each."""
    channels: tuple[int, ...] = (16, 32, 64)
    """Channels of the convolutions, in the order from data to latents."""
    stride: int = 4
    """Distance in pixels between neighbouring training patches of the photographs."""
    epochs: int = 40
    """Passes over the training data."""
    kl_warmup: int = 10
    """Epochs over which the weight of the latent sites grows to 1."""
    test_size: int | None = 64
    """Number of test data to evaluate, drawn at random [default: all]."""
    out: Path = Path("results/colour")
    """Folder for tables and figures."""


def main(options: Options) -> pd.DataFrame:
    """Train and evaluate one model for each latent size. Print and write the table and the figures."""
    splits = load(options)
    vaes, histories, results, quoted = {}, {}, {}, {}
    for latent in options.latents:
        name = f"{latent} latent dimensions"
        pyro.set_rng_seed(options.seed)
        vaes[name] = vae = build(latent, options.channels)
        histories[name] = comparison.train(vae, splits, options)
        results[name] = comparison.evaluate(vae, splits, options)
        quoted[name] = comparison.log_likelihood(vae, splits, options)
    table = summarize(results, quoted, histories)
    table.loc["levels of each channel"] = ["", *[_bits(frequencies(splits))] * 2, "", "", ""]
    comparison.report(splits, table)
    images = {"test data": splits.test[:32]} | {name: comparison.samples(vae, 32) for name, vae in vaes.items()}
    figures = {"samples": figure_of(pv.plots.images(images, columns=8))}
    comparison.write(options, table, figures, histories, results)
    return table


def build(latent: int, channels: tuple[int, ...]) -> pv.VAE:
    """Return a VAE whose decoder gives a location and a log-scale for each pixel and channel, along the channels."""
    decoder = pv.networks.conv_decoder(latent, *channels[::-1], out_shape=(2 * EVENT[0], *EVENT[1:]))
    encoder = pv.networks.conv_encoder(EVENT, *channels, out_shape=2 * latent)
    return pv.VAE(
        prior=pv.priors.StandardNormal(latent),
        likelihood=pv.likelihoods.DiscretizedLogistic(decoder, LEVELS, unit=1 / (LEVELS - 1), dim=-3),
        posterior=pv.posteriors.DiagonalNormal(encoder),
    )


def load(options: Options) -> pv.data.Splits:
    """Read the data, and draw a random subset of the test data if requested."""
    splits = photographs(options.stride) if options.data == "photographs" else pv.data.cifar10(root=options.root)
    kept = np.sort(np.random.RandomState(options.seed).permutation(len(splits.test))[: options.test_size])
    return replace(splits, test=splits.test[kept], labels=None)


def photographs(stride: int) -> pv.data.Splits:
    """Return patches of the photographs, which are first cut into tiles. Three of five tiles are for training.

    Args:
        stride: Distance in pixels between neighbouring training patches of a tile.
    """
    from sklearn.datasets import load_sample_images

    tiles = np.concatenate([_cut(image, TILE, TILE) for image in load_sample_images().images])
    tiles = tiles[np.random.RandomState(0).permutation(len(tiles))]
    train, valid, test = np.split(tiles, [len(tiles) * 3 // 5, len(tiles) * 7 // 10])
    patches = (
        np.concatenate([_cut(tile, PATCH, step) for tile in part])
        for part, step in ((train, stride), (valid, PATCH), (test, PATCH))
    )
    tensors = [torch.from_numpy(part.transpose(0, 3, 1, 2)).float() / (LEVELS - 1) for part in patches]
    return pv.data.Splits("patches of photographs", tensors[0], tensors[1], tensors[2], "none")


def _cut(image: np.ndarray, size: int, stride: int) -> np.ndarray:
    """Return the squares of an image, shape ``(n, size, size, 3)``, whose corners lie ``stride`` pixels apart."""
    windows = np.lib.stride_tricks.sliding_window_view(image, (size, size), axis=(0, 1))[::stride, ::stride]
    return windows.transpose(0, 1, 3, 4, 2).reshape(-1, size, size, image.shape[-1])


def frequencies(splits: pv.data.Splits) -> xr.DataArray:
    """Return the log-likelihood of the test data under the frequencies of the levels in each channel, nats."""

    def levels(images: Tensor) -> Tensor:
        return (images * (LEVELS - 1)).round().long()

    counts = [torch.bincount(levels(splits.train)[:, c].flatten(), minlength=LEVELS) + 1.0 for c in range(EVENT[0])]
    log_probs = torch.stack([(count / count.sum()).log() for count in counts])
    found = [log_probs[c][levels(splits.test)[:, c]].sum((1, 2)) for c in range(EVENT[0])]
    return xr.DataArray(torch.stack(found).sum(0).numpy(), dims="datum")


def summarize(
    results: dict[str, xr.Dataset], quoted: dict[str, xr.Dataset], histories: dict[str, pv.History]
) -> pd.DataFrame:
    """Return a table of bits per dimension by both estimates, with their reliability."""
    rows = {}
    for name, result in results.items():
        rows[name] = {
            "ELBO, bits/dim": _bits(result.elbo),
            f"{result.attrs['num_samples']} encoder draws, bits/dim": _bits(result.log_likelihood),
            "log_likelihood, bits/dim": _bits(quoted[name].log_likelihood),
            "reliable": f"{float(quoted[name].reliable.mean()):.0%}",
            "k-hat > 0.7, encoder": f"{float((result.pareto_k > 0.7).mean()):.0%}",
            "seconds": f"{max(histories[name].seconds, default=0.0):.0f}",
        }
    return pd.DataFrame(rows).T


def _bits(log_likelihood: xr.DataArray) -> str:
    bits = pv.evaluation.bits_per_dimension(log_likelihood, EVENT)
    return f"{float(bits.mean()):.3f} ± {float(bits.std(ddof=1)) / np.sqrt(bits.size):.3f}"


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
