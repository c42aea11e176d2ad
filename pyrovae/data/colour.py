"""Colour images of 32 x 32 pixels: CIFAR-10 and SVHN."""

import io
import logging
import pickle
import tarfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pyrovae.data.download import check, checked, data_root, fetch, read
from pyrovae.data.images import Root
from pyrovae.data.splits import Splits, make_splits

logger = logging.getLogger(__name__)


def cifar10(*, root: Root = None) -> Splits:
    """Load CIFAR-10: 32 x 32 colour photographs, 45,000 for training, 5,000 for validation, 10,000 for testing.

    Values are ``n / 255`` with the levels n = 0, ..., 255 for each channel. For bits per dimension, a log-likelihood is
    divided by 3 * 32 * 32 = 3,072 dimensions. Use ``bits_per_dimension(log_likelihood, (3, 32, 32))`` for a discrete
    likelihood, and add ``bin_width=1 / 256`` for a density of values from :func:`dequantize`.

    Args:
        root: Folder with ``cifar-10-python.tar.gz`` or ``cifar-10-batches-py``, as torchvision names them.

    Returns:
        Splits of shape ``(N, 3, 32, 32)``, with labels 0 to 9.

    Raises:
        FileNotFoundError: If the file is missing and cannot be downloaded.
        ValueError: If the content of a file is not CIFAR-10.

    Source:
        *Learning Multiple Layers of Features from Tiny Images* (Krizhevsky, 2009). The order of the images is random,
        so the last tenth of the 50,000 training images is used for validation.

    Example:
        >>> import pyrovae as pv
        >>> pv.data.cifar10().train.shape  # doctest: +SKIP
        torch.Size([45000, 3, 32, 32])
    """
    from torchvision.datasets import CIFAR10

    train_md5, test_md5 = dict(CIFAR10.train_list), dict(CIFAR10.test_list)
    folder, md5 = data_root(root), train_md5 | test_md5
    if (contents := _unpacked(folder / CIFAR10.base_folder, md5)) is None:
        parse = partial(_packed, base=CIFAR10.base_folder, md5=md5)
        contents = fetch(folder, (".",), CIFAR10.filename, [CIFAR10.url], parse)
    batches = {name: _Arrays(io.BytesIO(content), encoding="latin1").load() for name, content in contents.items()}
    train, test = ([batches[name] for name in names] for names in (train_md5, test_md5))
    pixels = [np.concatenate([batch["data"] for batch in part]).reshape(-1, 3, 32, 32) for part in (train, test)]
    labels = [np.concatenate([batch["labels"] for batch in part]) for part in (train, test)]
    return _split("cifar10", pixels, labels)


def svhn(*, root: Root = None) -> Splits:
    """Load SVHN: 32 x 32 colour digits of house numbers, 65,931 for training, 7,326 for validation, 26,032 for testing.

    Values, and the computation of bits per dimension, are as for :func:`cifar10`.

    Args:
        root: Folder with ``train_32x32.mat`` and ``test_32x32.mat``, or with a subfolder ``svhn`` that holds them.

    Returns:
        Splits of shape ``(N, 3, 32, 32)``, with labels 0 to 9.

    Raises:
        FileNotFoundError: If a file is missing and cannot be downloaded.
        ValueError: If the content of a file is not SVHN.

    Source:
        *Reading Digits in Natural Images with Unsupervised Feature Learning* (Netzer et al., 2011), cropped digits
        without the extra set. The last tenth of the training images is used for validation. Neighbouring images show
        the same house, so a random split would put images of one house into both sets.

    Example:
        >>> import pyrovae as pv
        >>> pv.data.svhn().train.shape  # doctest: +SKIP
        torch.Size([65931, 3, 32, 32])
    """
    import scipy.io
    from torchvision.datasets import SVHN

    pixels, labels = [], []
    for split in ("train", "test"):
        url, name, md5 = SVHN.split_list[split]
        parse = partial(checked, expected=md5, algorithm="MD5")
        arrays = scipy.io.loadmat(io.BytesIO(fetch(data_root(root), ("svhn", "."), name, [url], parse)))
        pixels.append(arrays["X"].transpose(3, 2, 0, 1))
        labels.append(arrays["y"].ravel() % 10)  # the file encodes the digit 0 as 10
    return _split("svhn", pixels, labels)


def _split(name: str, pixels: list[np.ndarray], labels: list[np.ndarray]) -> Splits:
    """Return splits with pixels scaled to [0, 1]; the last tenth of the training images is used for validation."""
    cut = len(pixels[0]) * 9 // 10
    train, test = (np.divide(part, 255, dtype=np.float32) for part in pixels)
    images = (train[:cut], train[cut:], test)
    return make_splits(name, images, "none", seed=0, labels=(labels[0][:cut], labels[0][cut:], labels[1]))


def _unpacked(folder: Path, md5: dict[str, str]) -> dict[str, bytes] | None:
    """Return the contents of the files of an unpacked archive, by name.

    Return None if a file is missing or damaged.
    """
    try:
        return {name: checked(folder / name, expected, "MD5") for name, expected in md5.items()}
    except FileNotFoundError:
        return None
    except ValueError as error:
        logger.warning("A file of the unpacked archive cannot be used. %s The packed archive is read instead.", error)
        return None


def _packed(path: Path, base: str, md5: dict[str, str]) -> dict[str, bytes]:
    """Return the contents of the files of a packed archive, by name, without writing files.

    Raises:
        ValueError: If the archive is damaged, or a file in it is missing or has the wrong content.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(read(path))) as archive:
            members = {name: archive.extractfile(f"{base}/{name}") for name in md5}
            contents = {name: member.read() for name, member in members.items() if member is not None}
            return {name: check(contents[name], expected, path, "MD5") for name, expected in md5.items()}
    except (tarfile.TarError, KeyError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is damaged, or is not an archive with the files {sorted(md5)} ({reason}).") from error


class _Arrays(pickle.Unpickler):
    """Reader of pickles that hold only arrays, lists and text; anything else raises an error without being executed."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the requested function or class, if a pickle of NumPy arrays needs it.

        Raises:
            ValueError: If the pickle requests anything else.
        """
        if (module.replace("._core", ".core"), name) in _ALLOWED:
            return super().find_class(module, name)
        raise ValueError(
            f"A file of CIFAR-10 requests the Python object {module}.{name}, which the data of CIFAR-10 do not need. "
            f"Delete the file."
        )


_ALLOWED = {
    *(("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")),
    ("_codecs", "encode"),  # bytes in a pickle of protocol 2 that Python 3 wrote
}
