r"""Attributes of handwritten digits, measured from pixels: the thickness of the strokes, and their slant.

Both follow *Morpho-MNIST: Quantitative Assessment and Diagnostics for Representation Learning* (Castro et al., 2019).

- Slant, in degrees, positive to the right: with the central moments :math:`\mu_{pq}` of the grey values,
  :math:`\tan \alpha = -\mu_{11} / \mu_{02}`, the horizontal shear that would set the digit upright.
- Thickness, in pixels, on the image enlarged fourfold and cut at half of its maximum. There the distance to the border
  is on average a quarter of a straight stroke's width, since it grows evenly from 0 to half the width. (Morpho-MNIST
  averages it over the skeleton, where it is half the width.) Strokes below two pixels are not told apart.
"""

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.nn.functional import interpolate

ENLARGED = 4


def slant(images: Tensor) -> Tensor:
    """Slant of grey images, shape ``(n, height, width)``, in degrees, shape ``(n,)``."""
    mass = images.double() / images.double().sum((1, 2), keepdim=True)
    y, x = (torch.arange(size, dtype=torch.float64) for size in images.shape[1:])
    dx = x - (mass.sum(1) * x).sum(1, keepdim=True)
    dy = y - (mass.sum(2) * y).sum(1, keepdim=True)
    shear = torch.einsum("nyx,ny,nx->n", mass, dy, dx) / (mass.sum(2) * dy**2).sum(1)
    return torch.rad2deg(torch.atan(-shear))


def thickness(images: Tensor) -> Tensor:
    """Thickness of the strokes of grey images, shape ``(n, height, width)``, in pixels, shape ``(n,)``."""
    large = interpolate(images[:, None].float(), scale_factor=ENLARGED, mode="bilinear", align_corners=False)[:, 0]
    strokes = (large > large.amax((1, 2), keepdim=True) / 2).numpy()
    # A border of background, to which a stroke that leaves the image has a distance too.
    distances = [distance_transform_edt(np.pad(stroke, 1))[1:-1, 1:-1][stroke].mean() for stroke in strokes]
    # The distance is that of the centres of pixels, half of one more than to the border.
    return torch.tensor(distances) * 4 / ENLARGED - 2 / ENLARGED


ATTRIBUTES = {"thickness": thickness, "slant": slant}


def measure(images: Tensor) -> dict[str, Tensor]:
    """All attributes of grey images, shape ``(n, height, width)``, each of shape ``(n,)``."""
    return {name: attribute(images.detach().cpu()) for name, attribute in ATTRIBUTES.items()}
