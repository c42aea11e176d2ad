"""Train, validation and test data, and three ways to binarize them.

All random splits, and all binarizations that are drawn once, use NumPy's ``RandomState``, whose algorithms never
change. A seed therefore gives the same data with every version of NumPy.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor

from pyrovae.arguments import check_whole

Binarization = Literal["none", "static", "dynamic"]


@dataclass(frozen=True, repr=False)
class Splits:
    """Train, validation and test data, which can be unpacked: ``train, valid, test = splits``.

    Attributes:
        name: Name of the data set.
        train: Training data, shape ``(N, *event)``, in [0, 1].
        valid: Validation data, shape ``(M, *event)``.
        test: Test data, shape ``(L, *event)``.
        binarization: ``"none"``: grey values. ``"static"``: zeros and ones, drawn once with the grey values as
            probabilities. ``"dynamic"``: validation and test data are drawn once; training data stay grey, and
            ``transform`` draws new values for each batch.
        labels: Class labels of the three splits, shapes ``(N,)``, ``(M,)``, ``(L,)``, or None.

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
        """Argument ``transform`` of :func:`pyrovae.fit`: :func:`binarize` for dynamic binarization, else None."""
        return binarize if self.binarization == "dynamic" else None


def binarize(x: Tensor) -> Tensor:
    """Draw zeros and ones with grey values as probabilities.

    Args:
        x: Grey values in [0, 1], of any shape.

    Returns:
        Zeros and ones, in the shape and on the device of ``x``.

    Raises:
        TypeError: If the values are not floating-point.
        ValueError: If a value is outside [0, 1]. The check is skipped while Pyro's validation is off;
            :func:`pyrovae.fit` switches validation off after a first pass over the data.

    Source:
        *On the Quantitative Analysis of Deep Belief Networks* (Salakhutdinov and Murray, 2008).

    Example:
        >>> import torch, pyrovae as pv
        >>> pv.data.binarize(torch.tensor([0.0, 1.0]))
        tensor([0., 1.])
    """
    _check_grey("binarize", x)
    return torch.bernoulli(x)


def _check_grey(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.layout != torch.strided:
        found = f"{x.dtype}, {x.layout}" if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(
            f"{name} takes a dense floating-point tensor of grey values, got {found}. Pass torch.as_tensor(x).float(). "
            f"If x is sparse, call x.to_dense() first."
        )
    if is_validation_enabled() and not ((x >= 0) & (x <= 1)).all():
        raise ValueError(
            f"{name} takes grey values in [0, 1], but got values from {x.min():.4g} to {x.max():.4g}. Rescale them."
        )


def dequantize(x: Tensor, levels: int = 256) -> Tensor:
    """Add uniform noise u in (0, 1) to the levels n of grey values ``x = n / (levels - 1)``: ``(n + u) / levels``.

    The density of a model of grey values is unbounded, because the model can put all its mass on the levels. The
    density of dequantized values, by contrast, gives a lower bound on the log-probability of the levels; see
    :func:`pyrovae.evaluation.bits_per_dimension`. Pass ``dequantize`` to :func:`pyrovae.fit` as ``transform``, and
    apply ``dequantize`` once to validation and test data.

    Args:
        x: Grey values of any shape, multiples of ``1 / (levels - 1)`` in [0, 1].
        levels: Number of levels, at most 512.

    Returns:
        Values strictly between 0 and 1, in the shape of ``x``; the noise is drawn on the device of ``x``.

    Raises:
        TypeError: If the dtype is neither float32 nor float64.
        ValueError: If a value is not a multiple of ``1 / (levels - 1)`` in [0, 1], or ``levels`` is not between 2 and
            512.

    Source:
        *A Note on the Evaluation of Generative Models* (Theis, van den Oord and Bethge, 2016).

    Example:
        >>> import torch, pyrovae as pv
        >>> y = pv.data.dequantize(torch.tensor([0.0, 1.0]))
        >>> bool(0 < y[0] < 1 / 256), bool(255 / 256 < y[1] < 1)
        (True, True)
    """
    check_whole(levels=levels)
    if not 2 <= levels <= 512:
        raise ValueError(f"levels must be between 2 and 512, got {levels}")
    _check_grey("dequantize", x)
    if torch.finfo(x.dtype).eps > torch.finfo(torch.float32).eps:
        raise TypeError(
            f"dequantize takes float32 or float64, because {x.dtype} is too coarse for the levels. Call .float()."
        )
    level = (x * (levels - 1)).round()
    if not ((x * (levels - 1) - level).abs() < 1e-3).all():
        raise ValueError(
            f"dequantize takes multiples of 1/{levels - 1} in [0, 1], but some values of the data are not multiples; "
            f"the values lie between {x.min():.4g} and {x.max():.4g}. Set levels to the number of grey levels, and "
            f"pass data with binarization='none'."
        )
    # Odd multiples of 2^-15 are symmetric and never 0 or 1, and n + u is exact in float32, so values keep their level.
    noise = (torch.randint(2**14, x.shape, device=x.device).to(x.dtype) + 0.5) / 2**14
    return (level + noise) / levels


def make_splits(
    name: str,
    images: tuple[np.ndarray, np.ndarray, np.ndarray],
    binarization: Binarization,
    seed: int,
    labels: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
) -> Splits:
    """Return the given training, validation and test images as :class:`Splits`.

    The images have grey values in [0, 1]. :class:`Splits` describes the three kinds of binarization.

    Raises:
        ValueError: If the binarization has an unknown name.
    """
    if binarization not in get_args(Binarization):
        raise ValueError(f"binarization must be one of {get_args(Binarization)}, got {binarization!r}")
    random = generator(seed)
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
    """Return the indices of a random split: a permutation of ``size`` indices, cut at the positions ``cuts``."""
    return np.split(generator(seed).permutation(size), cuts)


def generator(seed: int) -> np.random.RandomState:
    """Return a random number generator that gives the same numbers with every version of NumPy.

    Raises:
        TypeError: If the seed is not an integer.
        ValueError: If the seed is not between 0 and 2^32 - 1.
    """
    check_whole(seed=seed)
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed, the seed of a split, must be between 0 and 2^32 - 1, got {seed}")
    return np.random.RandomState(seed)
