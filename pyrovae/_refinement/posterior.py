"""Protocol of the posteriors to which normal densities are fitted: unnormalized densities of real vectors."""

from typing import Protocol, Self

import torch
from torch import Tensor


class Posterior(Protocol):
    """Unnormalized posterior p(x, u) and guide q(u | x) of each of N data, for real vectors u of length D.

    Attributes:
        size: Number of data, N.
        dim: Number of latent dimensions, D.
        cuttable: False if an evaluation for a subset of the data costs as much as one for all data.
    """

    size: int
    dim: int
    cuttable: bool

    def draw(self, num_samples: int) -> tuple[Tensor, Tensor]:
        """Draw u from the guide; return u, ``(num_samples, N, D)``, and log q(u | x), ``(num_samples, N)``, nats."""

    def log_joint(self, u: Tensor) -> Tensor:
        """Return log p(x, u), shape ``(num_samples, N)``, nats, for u of shape ``(num_samples, N, D)``."""

    def log_densities(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p(x, u) and log q(u | x), each of shape ``(num_samples, N)``, nats."""

    def subset(self, indices: Tensor) -> Self:
        """Return the posteriors of the data at ``indices``, a tensor of shape ``(n,)``."""


def value_and_gradient(posterior: Posterior, u: Tensor, batch_size: int | None = None) -> tuple[Tensor, Tensor]:
    """Return log p(x, u) and its gradient with respect to u.

    Args:
        posterior: Posteriors of N data.
        u: Values, shape ``(num_samples, N, D)``.
        batch_size: Largest number of log-densities (draws times data) in one computation; by default all.

    Returns:
        log p(x, u), shape ``(num_samples, N)``, and the gradient, shape ``(num_samples, N, D)``, both in the dtype of
        ``u``.
    """
    rows = len(u) if batch_size is None else max(1, batch_size // u.shape[1])
    values, gradients = [], []
    for part in u.split(rows):
        if hasattr(posterior, "value_and_gradient"):  # for example a compiled graph
            value, gradient = posterior.value_and_gradient(part)
            values.append(value)
            gradients.append(gradient)
            continue
        with torch.enable_grad():
            leaf = part.detach().requires_grad_()
            value = posterior.log_joint(leaf)
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
        values.append(value.detach())
        gradients.append(gradient)
    return torch.cat(values).to(u.dtype), torch.cat(gradients)  # data in double precision give values in double
