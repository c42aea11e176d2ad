"""Data sets as float tensors in [0, 1], split as the literature splits them, with the binarization named in the call.

Embedded in a dependency, no download: :func:`digits`, :func:`mnist5k`. Read from a folder, downloaded where missing:
:func:`mnist`, :func:`fashion_mnist`, :func:`omniglot`, :func:`static_mnist`, :func:`freyfaces`,
:func:`caltech101_silhouettes`. The folder is the argument ``root``, else the environment variable ``PYROVAE_DATA``,
else ``~/.cache/pyrovae``; a file already there is used, gzipped or not, once its content has the known checksum.
"""

from pyrovae.data.embedded import digits, mnist5k
from pyrovae.data.images import caltech101_silhouettes, fashion_mnist, freyfaces, mnist, omniglot, static_mnist
from pyrovae.data.splits import Splits, binarize, dequantize

__all__ = [
    "Splits",
    "binarize",
    "caltech101_silhouettes",
    "dequantize",
    "digits",
    "fashion_mnist",
    "freyfaces",
    "mnist",
    "mnist5k",
    "omniglot",
    "static_mnist",
]
