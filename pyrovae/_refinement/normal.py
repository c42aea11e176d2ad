"""Normal densities with full covariance, one for each datum, stored as linear maps of standard normal vectors."""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class Normal:
    r"""Normal densities :math:`N(m, A A^\top)` of N data.

    Attributes:
        mean: m, shape ``(N, D)``.
        root: A, shape ``(N, D, D)``, any square root of the covariance.
        inverse_root: The inverse of A, shape ``(N, D, D)``.
        log_det: log |det A|, shape ``(N,)``.
    """

    mean: Tensor
    root: Tensor
    inverse_root: Tensor
    log_det: Tensor

    @classmethod
    def from_covariance(cls, mean: Tensor, covariance: Tensor) -> Self:
        """Build the densities from means, shape ``(N, D)``, and covariances, shape ``(N, D, D)``.

        A covariance that is singular or not finite is replaced by its diagonal.
        """
        root, info = torch.linalg.cholesky_ex(covariance)
        regular = (info == 0)[:, None, None] & root.isfinite().all(-1).all(-1)[:, None, None]
        scale = covariance.diagonal(dim1=-2, dim2=-1).nan_to_num(nan=1.0, posinf=1.0).clamp_min(1e-12).sqrt()
        root = torch.where(regular, root, torch.diag_embed(scale))
        identity = torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device).expand_as(root)
        inverse_root = torch.linalg.solve_triangular(root, identity, upper=False)
        return cls(mean, root, inverse_root, root.diagonal(dim1=-2, dim2=-1).log().sum(-1))

    def place(self, standard: Tensor) -> Tensor:
        """Map standard normal vectors v, ``(S, D)`` or ``(S, N, D)``, to u = m + A v, shape ``(S, N, D)``."""
        if standard.ndim == 2:
            return self.mean + (standard @ self.root.mT).movedim(0, 1)
        return self.mean + (standard.movedim(0, 1) @ self.root.mT).movedim(0, 1)

    def pull(self, gradient: Tensor) -> Tensor:
        """Convert gradients with respect to u = m + A v to gradients with respect to v.

        The gradients have shape ``(S, N, D)``. The result has the data first, shape ``(N, S, D)``.
        """
        return gradient.movedim(0, 1) @ self.root

    def squared_distance(self, u: Tensor) -> Tensor:
        """Return the squared Mahalanobis distance of u from the mean, shape ``(S, N)``."""
        return self.whiten(u).square().sum(-1)

    def log_prob(self, u: Tensor, width: float = 1.0, df: float = math.inf) -> Tensor:
        """Return the log-density of each datum at u.

        The densities are normal or Student's t densities with the means of ``self``. All scales of ``self`` are
        multiplied by ``width``.

        Args:
            u: Values, shape ``(S, N, D)``.
            width: Factor by which all scales are multiplied.
            df: Degrees of freedom of the Student's t densities; infinity, the default, gives normal densities.

        Returns:
            Log-densities, shape ``(S, N)``, nats.
        """
        return self.log_prob_at(self.squared_distance(u), width, df)

    def log_prob_at(self, squared_distance: Tensor, width: float = 1.0, df: float = math.inf) -> Tensor:
        """Return the result of :meth:`log_prob` for given squared Mahalanobis distances of u, shape ``(S, N)``."""
        dim, square = self.mean.shape[-1], squared_distance / width**2
        if math.isinf(df):
            standard = -0.5 * (square + dim * LOG_2PI)
        else:
            constant = math.lgamma((df + dim) / 2) - math.lgamma(df / 2) - 0.5 * dim * math.log(df * math.pi)
            standard = constant - 0.5 * (df + dim) * torch.log1p(square / df)
        return standard - dim * math.log(width) - self.log_det

    def entropy(self) -> Tensor:
        """Return the entropy, shape ``(N,)``, nats."""
        return self.log_det + 0.5 * self.mean.shape[-1] * (1 + LOG_2PI)

    def transform(self, vectors: Tensor, scales: Tensor, shift: Tensor) -> Self:
        """Shift and scale the densities along given directions in the whitened coordinates v, where u = m + A v.

        Args:
            vectors: Orthonormal columns V, shape ``(N, D, D)``.
            scales: Positive factors s along the columns, shape ``(N, D)``.
            shift: Shift b of the mean along the columns, shape ``(N, D)``.

        Returns:
            New densities, with mean m + A V b and root A V diag(s). Here m and A are the mean and the root of ``self``.
        """
        rotated = self.root @ vectors
        return type(self)(
            self.mean + (rotated @ shift[..., None])[..., 0],
            rotated * scales[:, None, :],
            (vectors.mT @ self.inverse_root) / scales[:, :, None],
            self.log_det + scales.log().sum(-1),
        )

    def within(self, mean: Tensor, covariance: Tensor) -> Self:
        """Return the normal densities of u = m + A v, where v has the given mean and covariance.

        ``self`` has mean m and root A.
        """
        inner = type(self).from_covariance(mean, covariance)
        return type(self)(
            self.mean + (self.root @ mean[..., None])[..., 0],
            self.root @ inner.root,
            inner.inverse_root @ self.inverse_root,
            self.log_det + inner.log_det,
        )

    def whiten(self, u: Tensor) -> Tensor:
        """Map u, shape ``(S, N, D)``, to whitened coordinates v of the same shape, where u = m + A v."""
        return ((u - self.mean).movedim(0, 1) @ self.inverse_root.mT).movedim(1, 0)

    def where(self, condition: Tensor, other: Self) -> Self:
        """Return, for each datum, the density of ``self`` if ``condition`` is true, else the density of ``other``.

        The shape of ``condition`` is ``(N,)``.
        """
        matrix = condition[:, None, None]
        return type(self)(
            torch.where(condition[:, None], self.mean, other.mean),
            torch.where(matrix, self.root, other.root),
            torch.where(matrix, self.inverse_root, other.inverse_root),
            torch.where(condition, self.log_det, other.log_det),
        )

    def select(self, indices: Tensor) -> Self:
        """Return the densities of the data at ``indices``."""
        return type(self)(self.mean[indices], self.root[indices], self.inverse_root[indices], self.log_det[indices])

    def put(self, indices: Tensor, other: Self) -> None:
        """Replace, in place, the densities of the data at ``indices`` by those of ``other``."""
        self.mean[indices], self.root[indices] = other.mean, other.root
        self.inverse_root[indices], self.log_det[indices] = other.inverse_root, other.log_det
