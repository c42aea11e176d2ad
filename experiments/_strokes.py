r"""Attributes of handwritten digits, measured from pixels: the thickness of the strokes, and their slant.

Both follow *Morpho-MNIST: Quantitative Assessment and Diagnostics for Representation Learning* (Castro et al., 2019).

- Slant, in degrees, positive to the right. With the central moments :math:`\mu_{pq}` of the grey values,
  :math:`\tan \alpha = -\mu_{11} / \mu_{02}` is the horizontal shear that makes the digit upright.
- Thickness, in pixels. The image is enlarged fourfold and thresholded at half of its maximum. The mean distance to the
  border is then a quarter of the width of a straight stroke, because the distance grows evenly from 0 to half the
  width. (Morpho-MNIST averages the distance over the skeleton, where it is half the width.) The measure cannot tell
  strokes below two pixels apart.
"""

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.nn.functional import interpolate

ENLARGED = 4


def slant(images: Tensor) -> Tensor:
    """Return the slant of grey images, shape ``(n, height, width)``, in degrees, shape ``(n,)``."""
    mass = images.double() / images.double().sum((1, 2), keepdim=True)
    y, x = (torch.arange(size, dtype=torch.float64) for size in images.shape[1:])
    dx = x - (mass.sum(1) * x).sum(1, keepdim=True)
    dy = y - (mass.sum(2) * y).sum(1, keepdim=True)
    shear = torch.einsum("nyx,ny,nx->n", mass, dy, dx) / (mass.sum(2) * dy**2).sum(1)
    return torch.rad2deg(torch.atan(-shear))


def thickness(images: Tensor) -> Tensor:
    """Return the stroke thickness of grey images, shape ``(n, height, width)``, in pixels, shape ``(n,)``."""
    large = interpolate(images[:, None].float(), scale_factor=ENLARGED, mode="bilinear", align_corners=False)[:, 0]
    strokes = (large > large.amax((1, 2), keepdim=True) / 2).numpy()
    # A background margin gives a stroke that reaches the edge of the image a border too.
    distances = [distance_transform_edt(np.pad(stroke, 1))[1:-1, 1:-1][stroke].mean() for stroke in strokes]
    # Distances run between pixel centres, so they exceed the distance to the border by half a pixel.
    return torch.tensor(distances) * 4 / ENLARGED - 2 / ENLARGED


ATTRIBUTES = {"thickness": thickness, "slant": slant}


def measure(images: Tensor) -> dict[str, Tensor]:
    """Return all attributes of grey images, shape ``(n, height, width)``, each of shape ``(n,)``."""
    return {name: attribute(images.detach().cpu()) for name, attribute in ATTRIBUTES.items()}
