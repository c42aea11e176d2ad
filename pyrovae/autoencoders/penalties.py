r"""What an autoencoder pays for its code: R of ``penalty(encoder, x, code)``, shape ``(N,)``."""

import math
from collections.abc import Callable

import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor, nn
from torch.distributions import Bernoulli, kl_divergence
from torch.func import jacrev, vmap

Penalty = Callable[[nn.Module, Tensor, Tensor], Tensor]


class L1(nn.Module):
    r"""The penalty :math:`\lambda |h|_1`.

    Args:
        weight: :math:`\lambda`.

    Raises:
        ValueError: If it is negative or infinite.
    """

    def __init__(self, weight: float) -> None:
        super().__init__()
        _check(weight)
        self.weight = weight

    def forward(self, _encoder: nn.Module, _x: Tensor, code: Tensor) -> Tensor:
        """The penalty of each datum, shape ``(N,)``."""
        return self.weight * code.abs().flatten(1).sum(1)


class KLSparsity(nn.Module):
    r"""How far the mean activity of each unit is from a target.

    .. math:: \lambda \sum_j \rho \log \frac{\rho}{\hat\rho_j} + (1 - \rho) \log \frac{1 - \rho}{1 - \hat\rho_j},
        \qquad \hat\rho_j = \frac{1}{N} \sum_n h_{nj}

    for codes between 0 and 1; the mean is over the batch.

    Args:
        weight: :math:`\lambda`.
        target: :math:`\rho`, strictly between 0 and 1.

    Raises:
        ValueError: If either is out of range; when run, if codes are.

    Source:
        *Sparse Deep Belief Net Model for Visual Area V2* (Lee, Ekanadham and Ng, 2007), whose squared difference the
        usual lecture notes replace by this divergence.
    """

    def __init__(self, weight: float, target: float = 0.05) -> None:
        super().__init__()
        _check(weight)
        if not 0 < target < 1:
            raise ValueError(f"the target of a unit's activity lies strictly between 0 and 1, got {target}")
        self.weight, self.target = weight, target

    def forward(self, _encoder: nn.Module, _x: Tensor, code: Tensor) -> Tensor:
        """The penalty, the same for each datum, shape ``(N,)``."""
        if is_validation_enabled() and not ((code >= 0) & (code <= 1)).all():
            raise ValueError(
                f"the activity of a unit lies between 0 and 1, got codes from {code.min():.4g} to {code.max():.4g}; "
                f"let the encoder end in torch.nn.Sigmoid()"
            )
        activity, target = code.mean(0), torch.as_tensor(self.target).to(code)
        divergence = kl_divergence(Bernoulli(target), Bernoulli(activity)).sum()
        return self.weight * divergence.expand(len(code))


class Contraction(nn.Module):
    r"""The penalty :math:`\lambda \lVert \partial f / \partial x \rVert_F^2`, exact for any encoder.

    Args:
        weight: :math:`\lambda`.

    Raises:
        ValueError: If it is negative or infinite.

    Source:
        *Contractive Auto-Encoders: Explicit Invariance During Feature Extraction* (Rifai et al., 2011).
    """

    def __init__(self, weight: float) -> None:
        super().__init__()
        _check(weight)
        self.weight = weight

    def forward(self, encoder: nn.Module, x: Tensor, _code: Tensor) -> Tensor:
        """The penalty of each datum, shape ``(N,)``."""
        return self.weight * jacobian_norm(encoder, x).square()


def jacobian_norm(encoder: nn.Module, x: Tensor) -> Tensor:
    r"""Frobenius norm of the Jacobian :math:`\partial f / \partial x` at each datum, shape ``(N,)``.

    Args:
        encoder: f, which maps each datum by itself.
        x: Data, shape ``(N, *event)``.
    """

    def encode(datum: Tensor) -> Tensor:
        return encoder(datum.unsqueeze(0)).squeeze(0)

    jacobian: Tensor = vmap(jacrev(encode), randomness="different")(x)
    return jacobian.flatten(1).norm(dim=1)


def _check(weight: float) -> None:
    if not 0 <= weight < math.inf:
        raise ValueError(f"the weight of a penalty is finite and not negative, got weight={weight}")
