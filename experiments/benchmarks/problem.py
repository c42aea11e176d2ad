r"""The problem that every contender solves: data, network sizes, initial weights, and a batch on which all must agree.

The model is :math:`p(x \mid z) = \prod_d \mathrm{Bernoulli}(x_d; \sigma(f_d(z)))` with a standard normal prior and
:math:`q(z \mid x) = N(\mu(x), \mathrm{diag}(\sigma(x)^2))`. One network gives :math:`\mu` and :math:`\log \sigma` side
by side, another one :math:`f`; both have one hidden layer of softplus units. The loss is, per datum and with draws
:math:`z_k = \mu + \sigma \epsilon_k`,

.. math:: -\log \frac{1}{K} \sum_{k=1}^K \frac{p(x, z_k)}{q(z_k \mid x)}.

A contender states this loss and the norm of its gradient at the initial weights, for data and noise that are given.
Every datum is there twice, with noise of opposite signs, and all noise is 1 or -1. So for K = 1 the sampled KL
divergence :math:`\log q(z \mid x) - \log p(z)`, averaged over a datum's two draws, is the closed form, and tools that
use the one can be compared with tools that use the other.

There is no torch in this file, since not all contenders use it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

CHECKED = 10  # data of the checked batch, before they are doubled
TOLERANCE = 1e-4  # of single precision, for sums over pixels in another order


@dataclass
class Sizes:
    """Sizes of the problem, and where it is solved."""

    hidden: int = 400
    """Number of hidden units of either network."""
    latent: int = 20
    """Number of latent dimensions."""
    k: int = 1
    """Draws per datum: 1 is the ELBO, more the importance-weighted bound."""
    batch_size: int = 100
    """Data per step, a divisor of the number of data."""
    num_data: int = 50_000
    """Data per epoch, which is what a contender works through in one turn."""
    learning_rate: float = 1e-3
    """Learning rate of Adam."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to compute."""
    seed: int = 0
    """Seed of the initial weights and of the checked noise."""

    def __post_init__(self) -> None:
        if self.num_data % self.batch_size:
            raise ValueError(
                f"every step has as many data, so batch_size={self.batch_size} must divide num_data={self.num_data}"
            )

    @property
    def steps(self) -> int:
        """Steps per epoch."""
        return self.num_data // self.batch_size


@dataclass
class Problem:
    """What every contender is given.

    Attributes:
        sizes: Its sizes.
        x: The data, zeros and ones, shape ``(num_data, pixels)``.
        noise: Noise of the checked batch, shape ``(k, 2 * CHECKED, latent)``.
        weights: The initial weights: ``encoder.0.weight``, shape ``(hidden, pixels)``, to ``decoder.2.bias``.
    """

    sizes: Sizes
    x: np.ndarray
    noise: np.ndarray
    weights: dict[str, np.ndarray]

    @property
    def checked(self) -> np.ndarray:
        """The checked batch, shape ``(2 * CHECKED, pixels)``."""
        return np.tile(self.x[:CHECKED], (2, 1))

    def part(self, network: str) -> dict[str, np.ndarray]:
        """The initial weights of the ``encoder`` or the ``decoder``, under their names within it."""
        return {
            name.removeprefix(f"{network}."): value for name, value in self.weights.items() if name.startswith(network)
        }

    def write(self, folder: Path) -> None:
        """Writes the problem for :meth:`read`."""
        sizes = {field.name: getattr(self.sizes, field.name) for field in fields(Sizes)}
        (folder / "sizes.json").write_text(json.dumps(sizes))
        arrays: dict[str, Any] = {"x": self.x, "noise": self.noise, **self.weights}
        np.savez(folder / "arrays.npz", **arrays)

    @classmethod
    def read(cls, folder: Path) -> "Problem":
        """Reads a problem."""
        with np.load(folder / "arrays.npz") as file:
            arrays = dict(file)
        sizes = Sizes(**json.loads((folder / "sizes.json").read_text()))
        return cls(sizes, arrays.pop("x"), arrays.pop("noise"), weights=arrays)


def checked_noise(sizes: Sizes) -> np.ndarray:
    """Draws the noise of the checked batch, 1 or -1, with the opposite signs in its second half."""
    signs = np.random.RandomState(sizes.seed).choice([-1.0, 1.0], (sizes.k, CHECKED, sizes.latent))
    return np.concatenate([signs, -signs], axis=1).astype(np.float32)


def check_agreement(facts: Mapping[str, Mapping[str, Any]]) -> None:
    """Checks that the contenders do the same work.

    Raises:
        ValueError: If two of them state another loss or another norm of its gradient.
    """
    for quantity in ("loss", "gradient"):
        values = {name: stated[quantity] for name, stated in facts.items() if quantity in stated}
        for name, value in values.items():
            first = next(iter(values))
            if not abs(value - values[first]) <= TOLERANCE * abs(values[first]):
                raise ValueError(
                    f"the contenders do not do the same work: for the same weights, data and noise the {quantity} of "
                    f"{first} is {values[first]:.7g} and that of {name} {value:.7g}; correct the one that is wrong"
                )
