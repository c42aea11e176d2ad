r"""Penalties on the code :math:`h = f(x)` of an encoder f.

``penalty(encoder, x, code)`` returns the penalty of each datum, shape ``(N,)``. The penalties :class:`L1`,
:class:`KLSparsity` and :class:`Contraction` are, in this order,

.. math::
    \lambda \lVert h \rVert_1, \qquad \lambda \sum_j \mathrm{KL}(\rho \,\|\, \hat\rho_j), \qquad
    \lambda \lVert \partial f / \partial x \rVert_F^2,

where :math:`\hat\rho_j` is the mean of unit j of the code over the batch, and :math:`\rho` is a target for this mean.

The first and the last penalty decrease if the encoder scales the code down, and the decoder can undo this scaling. To
compare autoencoders with these penalties, use measures that do not depend on the scale of the code.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor, nn
from torch.distributions import Bernoulli, kl_divergence
from torch.func import vjp, vmap
from torch.nn.modules.batchnorm import _BatchNorm

Encoder = Callable[[Tensor], Tensor]
Penalty = Callable[[Encoder, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class _Weighted:
    """Base of penalties that are multiplied by a weight."""

    weight: float

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"autoencoders.{type(self).__name__}: weight={self.weight} must be at least 0 and finite")


@dataclass(frozen=True)
class L1(_Weighted):
    r"""L1 penalty, :math:`\lambda \lVert h \rVert_1`.

    Args:
        weight: Weight of the penalty, :math:`\lambda`.

    Raises:
        ValueError: If ``weight`` is negative or infinite.

    Example:
        >>> import torch, pyrovae as pv
        >>> pv.autoencoders.L1(0.5)(None, None, torch.tensor([[1.0, -3.0], [0.0, 0.0]]))
        tensor([2., 0.])
    """

    def __call__(self, _encoder: Any, _x: Any, code: Tensor) -> Tensor:
        """Return the penalty of each datum, shape ``(N,)``, for codes of shape ``(N, code)``."""
        return self.weight * code.abs().sum(1)


@dataclass(frozen=True)
class KLSparsity(_Weighted):
    r"""Kullback-Leibler divergence between a target activity and a unit's mean activity, summed over the units.

    .. math:: \lambda \sum_j \rho \log \frac{\rho}{\hat\rho_j} + (1 - \rho) \log \frac{1 - \rho}{1 - \hat\rho_j},
        \qquad \hat\rho_j = \frac{1}{N} \sum_n h_{nj}

    for codes h between 0 and 1. Unit j has the mean activity :math:`\hat\rho_j` over the batch. A unit can meet the
    target by strong activity for few data, or by weak activity for all data.

    Args:
        weight: Weight of the penalty, :math:`\lambda`.
        target: Target activity :math:`\rho`, strictly between 0 and 1.

    Raises:
        ValueError: If ``weight`` or ``target`` is out of range. When run, if a code is not between 0 and 1.

    Source:
        *Sparse Autoencoder* (Ng, 2011), lecture notes. The divergence replaces the squared difference that *Sparse Deep
        Belief Net Model for Visual Area V2* (Lee, Ekanadham and Ng, 2007) uses.

    Example:
        >>> import torch, pyrovae as pv
        >>> pv.autoencoders.KLSparsity(1.0, target=0.5)(None, None, torch.tensor([[0.0], [1.0]]))
        tensor([0., 0.])
    """

    target: float = 0.05
    is_of_batch = True  # the penalty of a batch is not a mean over its data

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.target < 1:
            raise ValueError(f"autoencoders.KLSparsity: target={self.target} must lie strictly between 0 and 1")

    def __call__(self, _encoder: Any, _x: Any, code: Tensor) -> Tensor:
        """Return the penalty of a batch of codes, shape ``(N, code)``, as a tensor of N equal entries."""
        if is_validation_enabled() and not ((code >= 0) & (code <= 1)).all():
            raise ValueError(
                f"autoencoders.KLSparsity: codes must lie between 0 and 1, got {code.min():.4g} to {code.max():.4g}. "
                f"Use torch.nn.Sigmoid() as the last layer of the encoder."
            )
        activity = code.mean(0)
        target = torch.full_like(activity, self.target)
        divergence = kl_divergence(Bernoulli(target), Bernoulli(activity)).sum()
        return self.weight * divergence.expand(len(code))


@dataclass(frozen=True)
class Contraction(_Weighted):
    r"""Contraction penalty, :math:`\lambda \lVert \partial f / \partial x \rVert_F^2`, exact for any encoder.

    A training step takes one backward pass through the encoder for each unit of the code.

    Args:
        weight: Weight of the penalty, :math:`\lambda`.

    Raises:
        ValueError: If ``weight`` is negative or infinite. When called, if batch normalization in the encoder uses batch
            statistics.

    Source:
        *Contractive Auto-Encoders: Explicit Invariance During Feature Extraction* (Rifai et al., 2011).

    Example:
        >>> import torch, pyrovae as pv
        >>> encoder = torch.nn.Linear(3, 2)
        >>> penalty = pv.autoencoders.Contraction(0.1)(encoder, torch.zeros(4, 3), None)
        >>> torch.allclose(penalty, 0.1 * encoder.weight.square().sum())
        True
    """

    def __call__(self, encoder: Encoder, x: Tensor, _code: Any) -> Tensor:
        """Return the penalty of each datum, shape ``(N,)``, for data of shape ``(N, *event)``."""
        return self.weight * squared_jacobian_norm(encoder, x)


def squared_jacobian_norm(encoder: Encoder, x: Tensor) -> Tensor:
    r"""Squared Frobenius norm of the Jacobian of an encoder, :math:`\sum_{jk} (\partial f_j / \partial x_k)^2`.

    The encoder runs once on all data, and each unit of the code is then differentiated with respect to the data. The
    encoder must therefore map each datum independently of the others. If dropout is active, one dropout mask is drawn,
    as in any other run of the encoder.

    Args:
        encoder: f, ``(N, *event)`` to ``(N, code)``.
        x: Data, shape ``(N, *event)``.

    Returns:
        Tensor, shape ``(N,)``.

    Raises:
        ValueError: If batch normalization in the encoder uses batch statistics, because the data are then mixed. Batch
            normalization does so in training mode, and if it has no running statistics.

    Source:
        *Contractive Auto-Encoders: Explicit Invariance During Feature Extraction* (Rifai et al., 2011).

    Example:
        >>> import torch, pyrovae as pv
        >>> pv.autoencoders.squared_jacobian_norm(torch.sin, torch.zeros(2, 3))  # three slopes of 1
        tensor([3., 3.])
    """
    _check_unmixed(encoder)
    outcome: Any = vjp(encoder, x)
    code, pull_back = outcome
    units = torch.eye(code.shape[1], dtype=code.dtype, device=code.device).unsqueeze(1).expand(-1, *code.shape)
    (jacobian,) = vmap(pull_back)(units)  # (code, N, *event)
    return jacobian.reshape(*units.shape[:2], -1).square().sum((0, 2))


def _check_unmixed(encoder: Any) -> None:
    """Raise ValueError if a layer uses batch statistics, which make the code of a datum depend on other data."""
    for layer in encoder.modules() if isinstance(encoder, nn.Module) else ():
        if isinstance(layer, _BatchNorm) and (layer.training or layer.running_mean is None):
            raise ValueError(
                f"{type(layer).__name__} makes the code of a datum depend on the whole batch, so a single datum has no "
                f"Jacobian. Use torch.nn.LayerNorm in the encoder, or remove the layer."
            )
