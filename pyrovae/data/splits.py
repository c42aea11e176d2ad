"""Train, validation and test data, and the three ways to binarize them.

All random choices (splits, static draws) come from NumPy's ``RandomState``, whose streams are frozen: a seed means the
same data with every version.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

Binarization = Literal["none", "static", "dynamic"]


@dataclass(frozen=True, repr=False)
class Splits:
    """Train, validation and test data; unpacks into the three.

    Attributes:
        name: Name of the data set.
        train: Training data, shape ``(N, *event)``, in [0, 1].
        valid: Validation data, likewise.
        test: Test data, likewise.
        binarization: ``"none"``: grey values. ``"static"``: zeros and ones, drawn once with the grey values as
            probabilities. ``"dynamic"``: validation and test data are drawn once, training data stay grey and are to
            be drawn anew for every batch by ``transform``.
        labels: Class labels of the three splits, where the data set has them.

    Example:
        >>> import pyrovae as pv
        >>> train, valid, test = pv.data.digits(binarization="static")
        >>> train.shape, sorted(set(train.flatten().tolist()))
        (torch.Size([1297, 8, 8]), [0.0, 1.0])
    """

    name: str
    train: Tensor
    valid: Tensor
    test: Tensor
    binarization: Binarization
    labels: tuple[Tensor, Tensor, Tensor] | None = None

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.train, self.valid, self.test))

    def __repr__(self) -> str:
        shapes = ", ".join(f"{split}={tuple(getattr(self, split).shape)}" for split in ("train", "valid", "test"))
        return f"Splits({self.name!r}, {shapes}, binarization={self.binarization!r})"

    @property
    def transform(self) -> Callable[[Tensor], Tensor] | None:
        """What :func:`pyrovae.fit` is to do to every batch: :func:`binarize` if the binarization is dynamic."""
        return binarize if self.binarization == "dynamic" else None


def binarize(x: Tensor) -> Tensor:
    """Draws zeros and ones with the grey values ``x`` in [0, 1] as probabilities, on the device of ``x``.

    Source:
        *On the Quantitative Analysis of Deep Belief Networks* (Salakhutdinov and Murray, 2008).

    Example:
        >>> import torch, pyrovae as pv
        >>> pv.data.binarize(torch.tensor([0.0, 1.0]))
        tensor([0., 1.])
    """
    return torch.bernoulli(x)


def make_splits(
    name: str,
    images: tuple[np.ndarray, np.ndarray, np.ndarray],
    binarization: Binarization,
    seed: int,
    labels: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
) -> Splits:
    """Binarizes images, grey values in [0, 1], and turns them into tensors.

    Raises:
        ValueError: If the binarization has an unknown name.
    """
    if binarization not in get_args(Binarization):
        raise ValueError(f"binarization must be one of {get_args(Binarization)}, got {binarization!r}")
    random = np.random.RandomState(seed)
    drawn = {"none": (), "static": (0, 1, 2), "dynamic": (1, 2)}[binarization]
    train, valid, test = (
        torch.from_numpy(np.float32(random.uniform(size=x.shape) < x) if i in drawn else np.float32(x))
        for i, x in enumerate(images)
    )
    if labels is None:
        return Splits(name, train, valid, test, binarization)
    train_y, valid_y, test_y = (torch.from_numpy(y.astype(np.int64)) for y in labels)
    return Splits(name, train, valid, test, binarization, (train_y, valid_y, test_y))


def shuffled(size: int, cuts: tuple[int, ...], seed: int) -> list[np.ndarray]:
    """Indices of a random split of ``size`` data, cut at two places."""
    return np.split(np.random.RandomState(seed).permutation(size), cuts)
