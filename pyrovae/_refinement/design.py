r"""Designs for regression: points that imitate standard normal draws, in orthogonal antithetic blocks.

A block holds the vectors :math:`\pm r\, q_1, \dots, \pm r\, q_D` for a random orthogonal matrix :math:`(q_1 \dots q_D)`
and a radius r. The mean of a block is exactly zero, and its second moment is exactly :math:`(r^2 / D) I`. A linear
regression on a single block is therefore as well conditioned as possible. Independent normal draws need twice as many
points for the same error. The radii of the blocks are stratified quantiles of the chi distribution, scaled to a mean
square of D.
"""

import math

import torch
from scipy.stats import chi
from torch import Tensor


def orthogonal_design(num_points: int, dim: int, *, like: Tensor) -> Tensor:
    r"""Draw points with mean exactly 0 and second moment exactly I, for a linear regression.

    Args:
        num_points: Number of points, S, a multiple of ``2 * dim``.
        dim: Number of dimensions, D.
        like: Tensor that determines the dtype and device of the design.

    Returns:
        Points, shape ``(S, D)``. The second half is the negative of the first half.

    Source:
        *Orthogonal Random Features* (Yu et al., 2016); *Cubature Kalman Filters* (Arasaratnam and Haykin, 2009).
    """
    num_blocks = num_points // (2 * dim)
    normal = torch.randn(num_blocks, dim, dim, dtype=like.dtype, device=like.device)
    directions, _ = torch.linalg.qr(normal)
    quantiles = (torch.arange(num_blocks, dtype=torch.float64) + 0.5) / num_blocks
    radii = torch.from_numpy(chi.ppf(quantiles.numpy(), dim))
    radii = (radii * math.sqrt(dim) / radii.square().mean().sqrt()).to(like)
    half = (radii[:, None, None] * directions.mT).reshape(-1, dim)
    return torch.cat([half, -half])
