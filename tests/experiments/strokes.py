"""Images of straight strokes of known thickness and slant."""

import math

import torch
from torch import Tensor


def stroke(width: float, degrees: float, size: int = 28, length: float = 24.0) -> Tensor:
    """Draw a straight stroke that leans to the right. A grey value is the fraction of the pixel that it covers."""
    fine = (torch.arange(size * 16, dtype=torch.float64) + 0.5) / 16 - size / 2
    y, x = fine[:, None], fine
    angle = math.radians(degrees)
    across = (x + y * math.tan(angle)) * math.cos(angle)
    covered = ((across.abs() <= width / 2) & (y.abs() <= length / 2)).double()
    return covered.reshape(size, 16, size, 16).mean((1, 3))
