r"""Invertible transforms from noise to latents, for flow priors and posteriors, made of layers of the library `zuko`.

Each function returns a module ``flow``. To get the transform for the current parameters of the module, call ``flow()``,
or ``flow(context)`` with a context of shape ``(*batch, context)``. Both drawing a value and scoring a given value take
one or more passes through the network:

============================== ================= =================
transform                      draw              score
============================== ================= =================
:func:`coupling`               2 passes          1 pass
:func:`autoregressive`         ``latent`` passes 1 pass
:func:`inverse_autoregressive` 1 pass            ``latent`` passes
============================== ================= =================

The first two transforms suit priors, because a prior scores values that it has not drawn. The last transform suits
posteriors: a posterior scores its own draws, and needs no further pass for this. Flows of ``zuko`` can be used as well:
``zuko.flows.NSF(...).transform.inv``.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.distributions import AffineTransform, Distribution, Transform

if TYPE_CHECKING:
    from zuko.lazy import LazyTransform

__all__ = ["autoregressive", "coupling", "inverse_autoregressive"]

Univariate = Literal["affine", "spline"]


def coupling(
    latent: int,
    *,
    context: int = 0,
    depth: int = 4,
    hidden: Sequence[int] = (128, 128),
    univariate: Univariate = "affine",
) -> nn.Module:
    """Build coupling layers: each transforms half of the dimensions given the other half, and the halves alternate.

    Args:
        latent: Number of dimensions.
        context: Number of context features.
        depth: Number of layers.
        hidden: Widths of each layer's network.
        univariate: Type of the one-dimensional maps: ``"affine"`` (RealNVP) or monotonic rational-quadratic
            ``"spline"`` (neural spline flow).

    Returns:
        A module ``(*batch, context) -> transform``.

    Raises:
        ValueError: If ``latent`` or ``depth`` is not positive, or ``univariate`` is unknown.

    Source:
        *Density Estimation using Real NVP* (Dinh et al., 2017); *Neural Spline Flows* (Durkan et al., 2019).

    Example:
        >>> import torch, pyrovae as pv
        >>> transform, u = pv.flows.coupling(5)(), torch.randn(3, 5)
        >>> z = transform(u)
        >>> z.shape, torch.allclose(transform.inv(z), u, atol=1e-4)
        (torch.Size([3, 5]), True)
    """
    return _layers(latent, context, depth, hidden, passes=2, **_univariate(univariate)).inv


def autoregressive(
    latent: int,
    *,
    context: int = 0,
    depth: int = 4,
    hidden: Sequence[int] = (128, 128),
    univariate: Univariate = "affine",
) -> nn.Module:
    """Build masked autoregressive layers, which transform each dimension given the dimensions before it.

    Every second layer takes the dimensions in reverse order.

    Args:
        latent: Number of dimensions.
        context: Number of context features.
        depth: Number of layers.
        hidden: Widths of each layer's network.
        univariate: Type of the one-dimensional maps: ``"affine"`` or monotonic rational-quadratic ``"spline"``.

    Returns:
        A module ``(*batch, context) -> transform``.

    Raises:
        ValueError: If ``latent`` or ``depth`` is not positive, or ``univariate`` is unknown.

    Source:
        *Masked Autoregressive Flow for Density Estimation* (Papamakarios, Pavlakou and Murray, 2017).

    Example:
        >>> import torch, pyrovae as pv
        >>> transform, u = pv.flows.autoregressive(5, context=2)(torch.zeros(3, 2)), torch.randn(3, 5)
        >>> z = transform(u)
        >>> z.shape, torch.allclose(transform.inv(z), u, atol=1e-4)
        (torch.Size([3, 5]), True)
    """
    return _layers(latent, context, depth, hidden, **_univariate(univariate)).inv


def inverse_autoregressive(
    latent: int, *, context: int = 0, depth: int = 2, hidden: Sequence[int] = (128,)
) -> nn.Module:
    r"""Build inverse autoregressive layers with gates; every second layer takes the dimensions in reverse order.

    .. math:: z_t = \sigma_t \odot z_{t-1} + (1 - \sigma_t) \odot m_t, \qquad \sigma_t = \mathrm{sigmoid}(s_t + 2),

    where :math:`(m_t, s_t)` are the outputs of an autoregressive network with the inputs :math:`z_{t-1}` and the
    context. At initialization, the gate :math:`\sigma_t` is about 0.9, so each layer is close to the identity.

    Args:
        latent: Number of dimensions.
        context: Number of context features.
        depth: Number of layers.
        hidden: Widths of each layer's network.

    Returns:
        A module ``(*batch, context) -> transform``.

    Raises:
        ValueError: If ``latent`` or ``depth`` is not positive.

    Source:
        *Improving Variational Inference with Inverse Autoregressive Flow* (Kingma et al., 2016), algorithm 1.

    Example:
        >>> import torch, pyrovae as pv
        >>> transform, u = pv.flows.inverse_autoregressive(5)(), torch.randn(3, 5)
        >>> z = transform(u)
        >>> z.shape, torch.allclose(transform.inv(z), u, atol=1e-4)
        (torch.Size([3, 5]), True)
    """
    return _layers(latent, context, depth, hidden, univariate=_gate, shapes=((), ()))


def _gate(m: Tensor, s: Tensor) -> Transform:
    sigma = torch.sigmoid(s + 2)
    return AffineTransform((1 - sigma) * m, sigma)


def _import_zuko() -> Any:
    """Import zuko and return the module. Undo the change that the import makes to the validation of distributions."""
    validation = Distribution._validate_args
    import zuko

    Distribution.set_default_validate_args(validation)
    return zuko


_UNIVARIATE: dict[str, tuple[str, tuple[tuple[int, ...], ...]]] = {  # name of the zuko class, shapes of its parameters
    "affine": ("MonotonicAffineTransform", ((), ())),
    "spline": ("MonotonicRQSTransform", ((8,), (8,), (7,))),
}


def _univariate(name: str) -> dict[str, Any]:
    if name not in _UNIVARIATE:
        raise ValueError(f"univariate must be one of {sorted(_UNIVARIATE)}, got {name!r}")
    transform, shapes = _UNIVARIATE[name]
    return {"univariate": getattr(_import_zuko().transforms, transform), "shapes": shapes}


def _layers(latent: int, context: int, depth: int, hidden: Sequence[int], **kwargs: object) -> "LazyTransform":
    if latent < 1 or depth < 1:
        raise ValueError(f"latent and depth of a flow must be at least 1, got latent={latent} and depth={depth}")
    zuko = _import_zuko()
    ascending = torch.arange(latent)
    layers = [
        zuko.flows.autoregressive.MaskedAutoregressiveTransform(
            latent, context, order=ascending if i % 2 == 0 else ascending.flip(0), hidden_features=hidden, **kwargs
        )
        for i in range(depth)
    ]
    with torch.no_grad():  # scaled so that the flow starts near the identity
        for parameter in (parameter for layer in layers for parameter in _last_layer(layer)):
            parameter.mul_(0.01)
    return zuko.lazy.LazyComposedTransform(*layers)


def _last_layer(transform: nn.Module) -> Iterator[nn.Parameter]:
    """Return the parameters of the last layer of a transform's network.

    A flow with a single dimension and without a context has no network. All of its parameters are returned.
    """
    network = getattr(transform, "hyper", None)
    return network[-1].parameters() if isinstance(network, nn.Sequential) else transform.parameters()
