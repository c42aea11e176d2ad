"""Image sets of the VAE literature, read from a folder and downloaded if they are missing."""

import io
import os
import zipfile
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from pyrovae.data.download import array_of_mat, array_of_npz, check, checked, data_root, fetch, find
from pyrovae.data.splits import Binarization, Splits, make_splits, shuffled

Root = str | os.PathLike[str] | None

_STATIC_MNIST_URL = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/binarized_mnist_{}.amat"
_STATIC_MNIST_SHA1 = {
    "train": "cf70514ec5f481e54ad3eb0e6c03c83326ff96f8",
    "valid": "13418487742e6ea6d48db7b5187353a20b1b1f8c",
    "test": "ca70bd7775e182596dec148d4dc1bc6bd6c4c5f4",
}
_STATIC_MNIST_ROWS = {"train": 50_000, "valid": 10_000, "test": 10_000}
_FREYFACES_URL = "https://cs.nyu.edu/~roweis/data/frey_rawface.mat"
_FREYFACES_SHA1 = "061cc7502d2c00fb9b4435227b85ab34eb71d1b3"
_CALTECH_URL = "https://people.cs.umass.edu/~marlin/data/caltech101_silhouettes_28_split1.mat"
_CALTECH_SHA1 = "52f457d5bf079d8a88ff400ce4b53aa1f653b271"
_MNIST_SHA1 = {
    "train-images-idx3-ubyte": "c3557c10f29b266e19b3eeee1553c85e0ef4a8ea",
    "train-labels-idx1-ubyte": "adbf52269f5d842899f287c269e2883e40b4f6e2",
    "t10k-images-idx3-ubyte": "65e11ec1fd220343092a5070b58418b5c2644e26",
    "t10k-labels-idx1-ubyte": "a6d52cc628797e845885543326e9f10abb8a6f89",
}
_FASHION_MNIST_SHA1 = {
    "train-images-idx3-ubyte": "b9bd999c0106c9b8b4b0cefce58c9a6060f27095",
    "train-labels-idx1-ubyte": "4bccf37222e01638381eaa326bf730337a597267",
    "t10k-images-idx3-ubyte": "880056926db704f9f713097915f99da346f5b1d1",
    "t10k-labels-idx1-ubyte": "958122e8b4b97fd4e71eca2d08ef754ed77c3ad9",
}


def mnist(binarization: Binarization = "none", *, root: Root = None, seed: int = 0) -> Splits:
    """Load MNIST: 28 x 28 digits, 50,000 for training, the next 10,000 for validation, 10,000 for testing.

    Args:
        binarization: Binarization of the images; see :class:`Splits`.
        root: Folder of the data, in torchvision's layout (``MNIST/raw``) or with the four files directly in it.
        seed: Seed of the draws of the binarization.

    Returns:
        Splits of shape ``(N, 28, 28)``, with labels.

    Raises:
        FileNotFoundError: If a file is missing and cannot be downloaded.
        ValueError: If a file's content is not MNIST, or the binarization has an unknown name.

    Source:
        *Gradient-based learning applied to document recognition* (LeCun et al., 1998). The split is that of Larochelle
        and Murray (2011). ``"static"`` draws the pixels with ``seed``; :func:`static_mnist` has the fixed binarization
        of the literature. ``"dynamic"`` is the binarization of Burda et al. (2016).

    Example:
        >>> import pyrovae as pv
        >>> pv.data.mnist("dynamic")  # doctest: +SKIP
        Splits('mnist', train=(50000, 28, 28), valid=(10000, 28, 28), test=(10000, 28, 28), binarization='dynamic')
    """
    return _mnist_like("mnist", "MNIST", _MNIST_SHA1, ("MNIST/raw", "."), binarization, root, seed)


def fashion_mnist(binarization: Binarization = "none", *, root: Root = None, seed: int = 0) -> Splits:
    """Load Fashion-MNIST: 28 x 28 images of clothing, 50,000 for training, 10,000 for validation, 10,000 for testing.

    Args:
        binarization: Binarization of the images; see :class:`Splits`.
        root: Folder of the data, in torchvision's layout (``FashionMNIST/raw``) or with the four files directly in it,
            as in Debian's ``/usr/share/datasets/fashion-mnist``.
        seed: Seed of the draws of the binarization.

    Returns:
        Splits of shape ``(N, 28, 28)``, with labels.

    Raises:
        FileNotFoundError: If a file is missing and cannot be downloaded.
        ValueError: If a file's content is not Fashion-MNIST, or the binarization has an unknown name.

    Source:
        *Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms* (Xiao et al., 2017). The
        last 10,000 training images are used for validation, as for MNIST.

    Example:
        >>> import pyrovae as pv
        >>> pv.data.fashion_mnist()  # doctest: +SKIP
        Splits('fashion_mnist', train=(50000, 28, 28), valid=(10000, 28, 28), test=(10000, 28, 28), binarization='none')
    """
    folders = ("FashionMNIST/raw", "fashion-mnist", ".")
    return _mnist_like("fashion_mnist", "FashionMNIST", _FASHION_MNIST_SHA1, folders, binarization, root, seed)


def omniglot(binarization: Binarization = "none", *, root: Root = None, seed: int = 0) -> Splits:
    """Load Omniglot: 28 x 28 characters, 17,280 for training, 2,000 for validation, 13,180 for testing.

    Args:
        binarization: Binarization of the images; see :class:`Splits`.
        root: Folder that holds ``images_background.zip`` and ``images_evaluation.zip``, directly or in torchvision's
            ``omniglot-py``. The archives are read without unpacking.
        seed: Seed of the random split and of the draws of the binarization.

    Returns:
        Splits of shape ``(N, 28, 28)``.

    Raises:
        FileNotFoundError: If a file is missing and cannot be downloaded.
        ValueError: If a file's content is not Omniglot, or the binarization has an unknown name.

    Source:
        *Human-level concept learning through probabilistic program induction* (Lake et al., 2015). The strokes are
        bright. The background set is split at random into 17,280 drawings for training and 2,000 for validation. The
        13,180 drawings of the evaluation set are for testing; their alphabets do not occur in training. The literature
        also has a file of 28 x 28 images (Burda et al., 2016), which mixes the alphabets of training and test data.
        Results on that file and on this split are not comparable.

    Example:
        >>> import pyrovae as pv
        >>> pv.data.omniglot("dynamic")  # doctest: +SKIP
        Splits('omniglot', train=(17280, 28, 28), valid=(2000, 28, 28), test=(13180, 28, 28), binarization='dynamic')
    """
    background, evaluation = (_drawings(data_root(root), part) for part in ("images_background", "images_evaluation"))
    train, valid = shuffled(len(background), (len(background) - 2000,), seed)
    return make_splits("omniglot", (background[train], background[valid], evaluation), binarization, seed)


def static_mnist(*, root: Root = None) -> Splits:
    """Load the static binarized MNIST: 28 x 28 digits, 50,000 for training, 10,000 for validation, 10,000 for testing.

    Args:
        root: Folder that holds, directly or in ``static_mnist``, the original files
            ``binarized_mnist_{train,valid,test}.amat``, or one ``binarized_mnist.npz`` with the arrays ``train``,
            ``valid`` and ``test`` of packed bits.

    Returns:
        Splits of shape ``(N, 28, 28)``, binarization ``"static"``.

    Raises:
        FileNotFoundError: If a file is missing and cannot be downloaded.
        ValueError: If a file's content differs from the published content.

    Source:
        *The Neural Autoregressive Distribution Estimator* (Larochelle and Murray, 2011). The rows are not in random
        order, so draw subsets at random.

    Example:
        >>> import pyrovae as pv
        >>> pv.data.static_mnist().train.shape  # doctest: +SKIP
        torch.Size([50000, 28, 28])
    """
    folder, folders = data_root(root), ("static_mnist", ".")
    packed = next(find(folder, folders, "binarized_mnist.npz"), None)
    splits = []
    for split, sha1 in _STATIC_MNIST_SHA1.items():
        if packed is not None:
            pixels = np.unpackbits(array_of_npz(packed, split, (_STATIC_MNIST_ROWS[split], 98)), axis=1)
            check(_as_text(pixels), sha1, packed)
        else:
            name, url = f"binarized_mnist_{split}.amat", _STATIC_MNIST_URL.format(split)
            content = fetch(folder, folders, name, [url], partial(checked, expected=sha1))
            pixels = np.frombuffer(content.replace(b" ", b"").replace(b"\n", b""), np.uint8) - ord("0")
        splits.append(pixels.reshape(-1, 28, 28))
    return make_splits("static_mnist", _three(splits), "static", seed=0)


def freyfaces(binarization: Binarization = "none", *, root: Root = None, seed: int = 0) -> Splits:
    """Load Frey Faces: 28 x 20 grey images of one face, 1,565 for training, 200 for validation, 200 for testing.

    Args:
        binarization: Binarization of the images; see :class:`Splits`.
        root: Folder that holds, directly or in ``freyfaces``, the original ``frey_rawface.mat`` or a ``freyfaces.npz``
            with the array ``images``.
        seed: Seed of the random split and of the draws of the binarization.

    Returns:
        Splits of shape ``(N, 28, 20)``.

    Raises:
        FileNotFoundError: If the file is missing and cannot be downloaded.
        ValueError: If a file's content is not Frey Faces, or the binarization has an unknown name.

    Source:
        Video frames of Brendan Frey, distributed by Sam Roweis. The sizes of the splits are those of *VAE with a
        VampPrior* (Tomczak and Welling, 2018). The splits are drawn at random, as in that paper, but
        they are not the splits of that paper.

    Example:
        >>> import pyrovae as pv
        >>> pv.data.freyfaces()  # doctest: +SKIP
        Splits('freyfaces', train=(1565, 28, 20), valid=(200, 28, 20), test=(200, 28, 20), binarization='none')
    """
    folder, folders = data_root(root), ("freyfaces", ".")
    packed = next(find(folder, folders, "freyfaces.npz"), None)
    if packed is not None:
        pixels = _faces(packed)
    else:
        pixels = fetch(folder, folders, "frey_rawface.mat", [_FREYFACES_URL], _faces)
    train, valid, test = (pixels[part] / 255 for part in shuffled(len(pixels), (1565, 1765), seed))
    return make_splits("freyfaces", (train, valid, test), binarization, seed)


def caltech101_silhouettes(*, root: Root = None) -> Splits:
    """Load Caltech 101 Silhouettes: 28 x 28 images, 4,100 for training, 2,264 for validation, 2,307 for testing.

    Args:
        root: Folder that holds ``caltech101_silhouettes_28_split1.mat``, directly or in ``caltech101_silhouettes``.

    Returns:
        Splits of shape ``(N, 28, 28)``, binarization ``"static"``, with labels 0 to 100.

    Raises:
        FileNotFoundError: If the file is missing and cannot be downloaded.
        ValueError: If the file's content differs from the published content.

    Source:
        *Inductive Principles for Restricted Boltzmann Machine Learning* (Marlin et al., 2010). The training,
        validation and test data are those of the authors' "split 1". The object is 1 and the background 0, as in most
        papers; the file stores the opposite values.

    Example:
        >>> import pyrovae as pv
        >>> pv.data.caltech101_silhouettes().train.shape  # doctest: +SKIP
        torch.Size([4100, 28, 28])
    """
    folders = ("caltech101_silhouettes", ".")
    import scipy.io

    name = "caltech101_silhouettes_28_split1.mat"
    content = fetch(data_root(root), folders, name, [_CALTECH_URL], partial(checked, expected=_CALTECH_SHA1))
    arrays = scipy.io.loadmat(io.BytesIO(content))
    names = ("train", "val", "test")
    images = [1 - arrays[f"{name}_data"].reshape(-1, 28, 28).transpose(0, 2, 1) for name in names]
    labels = [arrays[f"{name}_labels"].ravel().astype(np.int64) - 1 for name in names]
    return make_splits("caltech101_silhouettes", _three(images), "static", seed=0, labels=_three(labels))


def _faces(path: Path) -> np.ndarray:
    """Read Frey Faces from the ``.npz`` file or the MATLAB file, shape ``(1965, 28, 20)``."""
    if path.suffix == ".npz":
        pixels = array_of_npz(path, "images", (1965, 28, 20))
    else:
        pixels = array_of_mat(path, "ff", (560, 1965)).T
    check(pixels.tobytes(), _FREYFACES_SHA1, path)
    return pixels.reshape(-1, 28, 20)


def _mnist_like(
    name: str,
    source: str,
    sha1: dict[str, str],
    folders: tuple[str, ...],
    binarization: Binarization,
    root: Root,
    seed: int,
) -> Splits:
    import torchvision.datasets

    arrays = []
    for file, expected in sha1.items():
        urls = [f"{mirror}{file}.gz" for mirror in getattr(torchvision.datasets, source).mirrors]
        content = fetch(data_root(root), folders, file, urls, partial(checked, expected=expected))
        header = 16 if "images" in file else 8
        arrays.append(np.frombuffer(content, np.uint8, offset=header))
    train_pixels, train_labels, test_pixels, test_labels = arrays
    train, test = (pixels.reshape(-1, 28, 28) / 255 for pixels in (train_pixels, test_pixels))
    images = (train[:50_000], train[50_000:], test)
    labels = (train_labels[:50_000], train_labels[50_000:], test_labels)
    return make_splits(name, images, binarization, seed, labels)


def _drawings(folder: Path, part: str) -> np.ndarray:
    """Read the drawings in one of Omniglot's archives, in the order of their names, shape ``(N, 28, 28)``."""
    from torchvision.datasets import Omniglot

    url = f"{Omniglot.download_url_prefix}/{part}.zip"
    parse = partial(checked, expected=Omniglot.zips_md5[part], algorithm="MD5")
    content = fetch(folder, (Omniglot.folder, "."), f"{part}.zip", [url], parse)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = sorted(name for name in archive.namelist() if _is_drawing(PurePosixPath(name), part))
        return np.stack([_small(archive.read(name)) for name in names])


def _is_drawing(name: PurePosixPath, part: str) -> bool:
    """Return whether an archive's member is ``part/alphabet/character/drawing.png`` and not a file added by macOS."""
    return len(name.parts) == 4 and name.parts[0] == part and name.suffix == ".png" and not name.name.startswith(".")


def _small(drawing: bytes) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(drawing), formats=["PNG"]) as image:
        return 1 - np.asarray(image.convert("L").resize((28, 28), resample=Image.Resampling.BOX)) / 255


def _as_text(pixels: np.ndarray) -> bytes:
    """Return binary images as text in the published format: one line for each image, with spaces between pixels."""
    text = np.full((len(pixels), 2 * pixels.shape[1]), ord(" "), np.uint8)
    text[:, ::2] = pixels + ord("0")
    text[:, -1] = ord("\n")
    return text.tobytes()


def _three(parts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    train, valid, test = parts
    return train, valid, test
