"""Data sets as float tensors, in train, validation and test splits, with an explicit choice of the binarization.

The following data sets need no download, because they ship inside a dependency or are simulated: :func:`digits`,
:func:`mnist5k`, :func:`auto_mpg` (a table of several types) and :func:`simulated_cells` (counts). The following data
sets are read from a folder, and downloaded if they are missing: :func:`mnist`, :func:`fashion_mnist`, :func:`omniglot`,
:func:`static_mnist`, :func:`freyfaces`, :func:`caltech101_silhouettes`, and the colour images :func:`cifar10` and
:func:`svhn`. The folder is the argument ``root``, else the environment variable ``PYROVAE_DATA``, else
``~/.cache/pyrovae``. A file in the folder may be gzipped. The checksum of the content is verified, and a damaged file
is downloaded again.

Training and evaluation also accept your own data: :mod:`pyrovae.data.sources` lists the kinds of data.
"""

from pyrovae.data.colour import cifar10, svhn
from pyrovae.data.embedded import digits, mnist5k
from pyrovae.data.images import caltech101_silhouettes, fashion_mnist, freyfaces, mnist, omniglot, static_mnist
from pyrovae.data.splits import Splits, binarize, dequantize
from pyrovae.data.tables import Table, auto_mpg, simulated_cells

__all__ = [
    "Splits",
    "Table",
    "auto_mpg",
    "binarize",
    "caltech101_silhouettes",
    "cifar10",
    "dequantize",
    "digits",
    "fashion_mnist",
    "freyfaces",
    "mnist",
    "mnist5k",
    "omniglot",
    "simulated_cells",
    "static_mnist",
    "svhn",
]
