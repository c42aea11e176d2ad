r"""The problem of the training benchmark: data, network sizes, initial weights, and a batch for a check of the loss.

The default model, the perceptron, is :math:`p(x \mid z) = \prod_d \mathrm{Bernoulli}(x_d; \sigma(f_d(z)))` with a
standard normal prior and :math:`q(z \mid x) = N(\mu(x), \mathrm{diag}(\sigma(x)^2))`. One network returns :math:`\mu`
and :math:`\log \sigma` side by side, and another network returns :math:`f`. Both have one hidden layer of softplus
units. With the draws :math:`z_k = \mu + \sigma \epsilon_k`, the loss per datum is

.. math:: -\log \frac{1}{K} \sum_{k=1}^K \frac{p(x, z_k)}{q(z_k \mid x)}.

Each contender reports this loss and the norm of its gradient at the initial weights, for given data and noise. The
batch contains every datum twice, with noise of opposite signs, and all noise is 1 or -1. For K = 1 the sampled KL
divergence :math:`\log q(z \mid x) - \log p(z)`, averaged over the two draws of a datum, therefore equals the closed
form. Tools that sample the KL divergence can thus be compared with tools that use the closed form.

This file does not import torch, because not all contenders use it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from experiments.benchmarks.models import Name

CHECKED = 10  # data of the checked batch, before each is repeated
TOLERANCE = 1e-4  # rounding error in single precision, for sums over pixels in different orders


@dataclass
class Sizes:
    """Sizes of the problem, and the device of the computations."""

    model: Name = "perceptron"
    """Model, one of :mod:`experiments.benchmarks.models`."""
    hidden: int = 400
    """Number of hidden units of each network."""
    latent: int = 20
    """Number of latent dimensions."""
    k: int = 1
    """Draws per datum, K. One draw gives the ELBO, and more draws give the importance-weighted bound."""
    batch_size: int = 100
    """Batch size, a divisor of the number of data."""
    num_data: int = 50_000
    """Data per epoch. A contender trains for one epoch in a turn."""
    learning_rate: float = 1e-3
    """Learning rate of Adam."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device of the computations."""
    seed: int = 0
    """Seed of the initial weights and of the checked noise."""

    def __post_init__(self) -> None:
        if self.num_data % self.batch_size:
            raise ValueError(
                f"batch_size={self.batch_size} must divide num_data={self.num_data}, because all batches are equal."
            )
        if self.k > 1 and self.model != "perceptron":
            raise ValueError(f"k={self.k} draws per datum need model='perceptron', got model={self.model!r}")

    @property
    def steps(self) -> int:
        """Number of steps per epoch."""
        return self.num_data // self.batch_size


@dataclass
class Problem:
    """The problem, as every contender receives it.

    Attributes:
        sizes: Sizes of the problem.
        x: The data, shape ``(num_data, *event)``; of the perceptron zeros and ones, shape ``(num_data, pixels)``.
        noise: Noise of the checked batch, shape ``(k, 2 * CHECKED, latent)``.
        weights: The initial weights by their names in the loss by hand. Those of the perceptron are
            ``encoder.0.weight``, shape ``(hidden, pixels)``, to ``decoder.2.bias``.
    """

    sizes: Sizes
    x: np.ndarray
    noise: np.ndarray
    weights: dict[str, np.ndarray]

    @property
    def checked(self) -> np.ndarray:
        """The checked batch, shape ``(2 * CHECKED, *event)``."""
        return np.concatenate([self.x[:CHECKED]] * 2)

    def part(self, network: str) -> dict[str, np.ndarray]:
        """Return the initial weights of the ``encoder`` or the ``decoder``, by their names within it."""
        return {
            name.removeprefix(f"{network}."): value for name, value in self.weights.items() if name.startswith(network)
        }

    def write(self, folder: Path) -> None:
        """Write the problem to a folder, for :meth:`read`."""
        sizes = {field.name: getattr(self.sizes, field.name) for field in fields(Sizes)}
        (folder / "sizes.json").write_text(json.dumps(sizes))
        arrays: dict[str, Any] = {"x": self.x, "noise": self.noise, **self.weights}
        np.savez(folder / "arrays.npz", **arrays)

    @classmethod
    def read(cls, folder: Path) -> "Problem":
        """Read a problem from a folder."""
        with np.load(folder / "arrays.npz") as file:
            arrays = dict(file)
        sizes = Sizes(**json.loads((folder / "sizes.json").read_text()))
        return cls(sizes, arrays.pop("x"), arrays.pop("noise"), weights=arrays)


def checked_noise(sizes: Sizes) -> np.ndarray:
    """Draw the noise of the checked batch, 1 or -1, with opposite signs in its second half."""
    signs = np.random.RandomState(sizes.seed).choice([-1.0, 1.0], (sizes.k, CHECKED, sizes.latent))
    return np.concatenate([signs, -signs], axis=1).astype(np.float32)


def check_agreement(facts: Mapping[str, Mapping[str, Any]]) -> None:
    """Check that the contenders do the same work.

    Raises:
        ValueError: If two contenders report different losses or different norms of the gradient.
    """
    for quantity in ("loss", "gradient"):
        values = {name: stated[quantity] for name, stated in facts.items() if quantity in stated}
        for name, value in values.items():
            first = next(iter(values))
            if not abs(value - values[first]) <= TOLERANCE * abs(values[first]):
                raise ValueError(
                    f"The contenders do not do the same work. For the same weights, data and noise the {quantity} of "
                    f"{first} is {values[first]:.7g} and that of {name} is {value:.7g}. Correct the wrong contender."
                )
