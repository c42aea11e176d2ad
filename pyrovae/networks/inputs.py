"""Adapters and helpers for the inputs and outputs of networks."""

import math
from collections.abc import Sequence

import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor, nn


class Batched(nn.Module):
    """Adapter that lets a network with exactly one batch dimension accept any number of batch dimensions.

    Args:
        network: Maps ``(B, *in) -> (B, *out)``, like a convolution.
        event_dim: Number of dimensions of ``in``.

    Raises:
        ValueError: When called, if the input has fewer than ``event_dim`` dimensions.

    Example:
        >>> import torch, pyrovae as pv
        >>> convolution = torch.nn.Conv2d(1, 1, 3, padding=1)  # takes a single batch dimension
        >>> network, x = pv.networks.Batched(convolution, event_dim=3), torch.rand(7, 2, 1, 28, 28)
        >>> network(x).shape, torch.allclose(network(x)[3], convolution(x[3]), atol=1e-5)
        (torch.Size([7, 2, 1, 28, 28]), True)
    """

    def __init__(self, network: nn.Module, event_dim: int) -> None:
        super().__init__()
        self.network = network
        self.event_dim = event_dim

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x``, shape ``(*batch, *in)``, to shape ``(*batch, *out)``."""
        if x.ndim < self.event_dim:
            raise ValueError(
                f"networks.Batched: the input has shape {tuple(x.shape)}, but a datum has {self.event_dim} dimensions. "
                f"Pass data of shape (*batch, *event)."
            )
        batch, event = x.shape[: x.ndim - self.event_dim], x.shape[x.ndim - self.event_dim :]
        y: Tensor = self.network(x.reshape(math.prod(batch), *event))
        return y.reshape(*batch, *y.shape[1:])


class Joint(nn.Module):
    """Adapter that flattens several inputs and concatenates them into one vector, the input of a network.

    The leading dimensions broadcast: for ``q(z1 | x, z2)``, data ``x`` of shape ``(N, 28, 28)`` and draws ``z2`` of
    shape ``(K, N, latent)`` give an output of shape ``(K, N, *out)``.

    Args:
        network: Maps ``(*batch, features) -> (*batch, *out)``, where ``features`` counts the entries of all inputs.
        event_dims: Number of event dimensions of each input.

    Raises:
        ValueError: When called, if ``event_dims`` does not hold one number for each input, or leading dimensions do not
            broadcast.

    Example:
        >>> import torch, pyrovae as pv
        >>> network = pv.networks.Joint(torch.nn.Identity(), event_dims=(2, 1))
        >>> network(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([5.0, 6.0]))
        tensor([1., 2., 3., 4., 5., 6.])
        >>> network(torch.zeros(4, 28, 28), torch.zeros(7, 4, 5)).shape  # batch shapes (4,) and (7, 4)
        torch.Size([7, 4, 789])
    """

    def __init__(self, network: nn.Module, event_dims: Sequence[int]) -> None:
        super().__init__()
        self.network, self.event_dims = network, tuple(event_dims)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Map inputs, shapes ``(*batch, *event)``, to shape ``(*batch, *out)``."""
        if len(inputs) != len(self.event_dims):
            raise ValueError(
                f"networks.Joint: got {len(inputs)} inputs, of shapes {[tuple(part.shape) for part in inputs]}, but "
                f"event_dims={self.event_dims} has {len(self.event_dims)} entries. Pass one entry for each input."
            )
        flat = [
            part.reshape(*part.shape[: part.ndim - event_dim], -1)
            for part, event_dim in zip(inputs, self.event_dims, strict=True)
        ]
        try:
            batch = torch.broadcast_shapes(*(part.shape[:-1] for part in flat))
        except RuntimeError as error:
            raise ValueError(
                f"networks.Joint: the inputs have shapes {[tuple(part.shape) for part in inputs]} and event_dims="
                f"{self.event_dims}, but their leading dimensions do not broadcast. Pass inputs for the same data."
            ) from error
        first = flat[0]
        joined = torch.cat([part.to(first.dtype).expand(*batch, -1) for part in flat], dim=-1)
        output: Tensor = self.network(joined)
        return output


def log1p(network: nn.Module) -> nn.Module:
    """Return a network that replaces its input x by log(1 + x) before its first layer, for encoders of counts.

    Raw counts reach thousands. With such inputs, an encoder can return infinite scales at the first training step.

    Args:
        network: Maps ``(*batch, *event) -> (*batch, *out)``. Further inputs, such as a mask, are passed to this network
            unchanged.

    Returns:
        A network for nonnegative data, with the same input and output shapes as ``network``.

    Source:
        *Deep Generative Modeling for Single-Cell Transcriptomics* (Lopez et al., 2018).

    Example:
        >>> import torch, pyrovae as pv
        >>> encoder = pv.networks.log1p(pv.networks.mlp(200, 64, 2 * 10))
        >>> encoder(torch.full((3, 200), 5000.0)).abs().max() < 10
        tensor(True)
    """
    return _Log1p(network)


class _Log1p(nn.Module):
    """A network that replaces its first input x by log(1 + x) before its first layer."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        """Return the output of the network, shape ``(*batch, *out)``, for ``x``, shape ``(*batch, *event)``."""
        output: Tensor = self.network(x.log1p(), *others)
        return output


class ZeroFilled(nn.Module):
    """Adapter for data with missing entries: the network gets the zero-filled data and the mask of observed entries.

    Entries are missing where the mask is 0, and where the data are NaN. Without a mask, only NaN means missing.

    Args:
        network: Maps ``(*batch, 2, *event) -> (*batch, *out)``: the zero-filled data, then the mask.
        event_dim: Number of dimensions of a datum.

    Raises:
        ValueError: When called, if the mask does not have the shape of the data or holds values other than 0 and 1.

    Source:
        *MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets* (Mattei and Frellsen, 2019).

    Example:
        >>> import torch, pyrovae as pv
        >>> network = pv.networks.ZeroFilled(torch.nn.Identity(), event_dim=1)
        >>> network(torch.tensor([5.0, torch.nan, 7.0]), torch.tensor([True, False, True]))
        tensor([[5., 0., 7.],
                [1., 0., 1.]])
    """

    def __init__(self, network: nn.Module, event_dim: int) -> None:
        super().__init__()
        self.network, self.event_dim = network, event_dim

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map data and a mask of the observed entries, both of shape ``(*batch, *event)``, to ``(*batch, *out)``."""
        observed = ~x.isnan()
        if mask is not None:
            if x.shape != mask.shape:
                raise ValueError(
                    f"networks.ZeroFilled: the mask has shape {tuple(mask.shape)}, but the data have shape "
                    f"{tuple(x.shape)}. Pass a mask of the shape of the data."
                )
            observed = observed & as_mask(mask, "networks.ZeroFilled")
        filled = torch.where(observed, x, torch.zeros_like(x))
        output: Tensor = self.network(torch.stack([filled, observed.to(x.dtype)], dim=-self.event_dim - 1))
        return output


def as_mask(mask: Tensor, owner: str) -> Tensor:
    """Return a mask as booleans.

    Args:
        mask: Mask of any shape: 1 or True for observed entries, 0 or False for missing ones.
        owner: Name of the component, for the error message.

    Returns:
        Boolean tensor of the same shape.

    Raises:
        ValueError: If validation is on and the mask holds other values than 0 and 1.

    Example:
        >>> import torch, pyrovae as pv
        >>> pv.networks.as_mask(torch.tensor([1.0, 0.0]), "my likelihood")
        tensor([ True, False])
    """
    if mask.dtype != torch.bool and is_validation_enabled() and not ((mask == 0) | (mask == 1)).all():
        raise ValueError(
            f"{owner}: a mask holds 1 (or True) for observed entries and 0 for missing entries, but a mask of shape "
            f"{tuple(mask.shape)} has values from {mask.min():.4g} to {mask.max():.4g}. Use mask > 0 if every positive "
            f"value means observed; to weight data, use pyro.poutine.scale in your own program."
        )
    return mask.bool()


def split(parameters: Tensor, count: int, owner: str, dim: int = -1) -> tuple[Tensor, ...]:
    """Split a network's output into parameters that are concatenated along one dimension.

    Args:
        parameters: Output of the network, shape ``(*batch, ..., count * size, ...)``.
        count: Number of parameters.
        owner: Name of the component, for the error message.
        dim: Dimension along which the parameters are concatenated, counted from the right: -1, or -3 for channels of
            images.

    Returns:
        ``count`` tensors, shape ``(*batch, ..., size, ...)``.

    Raises:
        ValueError: If the dimension cannot be split into ``count`` equal parts.

    Example:
        >>> import torch, pyrovae as pv
        >>> loc, log_scale = pv.networks.split(torch.tensor([1.0, 2.0, 3.0, 4.0]), 2, "MyPosterior")
        >>> loc, log_scale
        (tensor([1., 2.]), tensor([3., 4.]))
    """
    if parameters.ndim < -dim or parameters.shape[dim] % count:
        raise ValueError(
            f"{owner}: the network's output has shape {tuple(parameters.shape)}, but {count} concatenated parameters "
            f"need a size divisible by {count} in dimension {dim}. Make the output {count} times as large as the event "
            f"in this dimension, or pass another dimension, such as dim=-3 for channels."
        )
    return parameters.chunk(count, dim=dim)
