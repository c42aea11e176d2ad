"""What stands before a network (batch dimensions, several inputs, missing entries) and behind it (parameters apart)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Batched(nn.Module):
    """Lets a network that takes exactly one batch dimension take any number of them.

    Args:
        network: Maps ``(B, *in) -> (B, *out)``; convolutions are of this kind.
        event_dim: Number of dimensions of ``in``.

    Raises:
        ValueError: When called, if the input has fewer dimensions.

    Example:
        >>> import torch, pyrovae as pv
        >>> blur = pv.networks.Batched(torch.nn.Conv2d(1, 1, 3, padding=1), event_dim=3)
        >>> blur(torch.zeros(7, 2, 1, 28, 28)).shape
        torch.Size([7, 2, 1, 28, 28])
    """

    def __init__(self, network: nn.Module, event_dim: int) -> None:
        super().__init__()
        self.network = network
        self.event_dim = event_dim

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``x``, shape ``(*batch, *in)``, to shape ``(*batch, *out)``."""
        if x.ndim < self.event_dim:
            raise ValueError(
                f"networks.Batched: a datum has {self.event_dim} dimensions, but the input has shape {tuple(x.shape)}"
            )
        batch, event = x.shape[: x.ndim - self.event_dim], x.shape[x.ndim - self.event_dim :]
        y: Tensor = self.network(x.reshape(math.prod(batch), *event))
        return y.reshape(*batch, *y.shape[1:])


class Joint(nn.Module):
    """Lets a network of vectors take several inputs: their events are flattened and set side by side.

    The leading dimensions broadcast, so that of ``q(z1 | x, z2)`` a datum ``x``, shape ``(N, 28, 28)``, and draws
    ``z2``, shape ``(K, N, latent)``, make an output of shape ``(K, N, *out)``.

    Args:
        network: Maps ``(*batch, features) -> (*batch, *out)``, where ``features`` is that of all inputs together.
        event_dims: Number of event dimensions of each input.

    Raises:
        ValueError: When called, if the number of inputs is another, or their leading dimensions do not broadcast.

    Example:
        >>> import torch, pyrovae as pv
        >>> network = pv.networks.Joint(pv.networks.mlp(28 * 28 + 5, 16, 2 * 3), event_dims=(2, 1))
        >>> network(torch.zeros(4, 28, 28), torch.zeros(7, 4, 5)).shape
        torch.Size([7, 4, 6])
    """

    def __init__(self, network: nn.Module, event_dims: Sequence[int]) -> None:
        super().__init__()
        self.network, self.event_dims = network, tuple(event_dims)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Maps inputs, shapes ``(*batch, *event)``, to shape ``(*batch, *out)``."""
        if len(inputs) != len(self.event_dims):
            raise ValueError(
                f"networks.Joint joins {len(self.event_dims)} inputs of event dimensions {self.event_dims}, but got "
                f"{len(inputs)} of shapes {[tuple(part.shape) for part in inputs]}"
            )
        flat = [
            part.reshape(*part.shape[: part.ndim - event_dim], -1)
            for part, event_dim in zip(inputs, self.event_dims, strict=True)
        ]
        try:
            batch = torch.broadcast_shapes(*(part.shape[:-1] for part in flat))
        except RuntimeError as error:
            raise ValueError(
                f"networks.Joint: the leading dimensions of inputs of shapes {[tuple(part.shape) for part in inputs]} "
                f"and event dimensions {self.event_dims} do not broadcast"
            ) from error
        first = flat[0]
        joined = torch.cat([part.to(first.dtype).expand(*batch, -1) for part in flat], dim=-1)
        output: Tensor = self.network(joined)
        return output


class ZeroFilled(nn.Module):
    """Lets a network see data with missing entries: zeros in their place, and the mask beside.

    Args:
        network: Maps ``(*batch, 2, *event) -> (*batch, *out)``: the zero-filled data, then the mask.
        event_dim: Number of dimensions of a datum.

    Raises:
        ValueError: When called, if the mask does not have the shape of the data.

    Source:
        *MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets* (Mattei and Frellsen, 2019).

    Example:
        >>> import torch, pyrovae as pv
        >>> network = pv.networks.ZeroFilled(pv.networks.mlp((2, 28, 28), 16, 2 * 3), event_dim=2)
        >>> network(torch.rand(4, 28, 28), torch.rand(4, 28, 28) < 0.5).shape
        torch.Size([4, 6])
    """

    def __init__(self, network: nn.Module, event_dim: int) -> None:
        super().__init__()
        self.network, self.event_dim = network, event_dim

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Maps data and a mask of the observed entries, both of shape ``(*batch, *event)``, to ``(*batch, *out)``."""
        if x.shape != mask.shape:
            raise ValueError(f"a mask of shape {tuple(mask.shape)} does not fit data of shape {tuple(x.shape)}")
        observed = mask.to(x.dtype)
        filled = torch.where(mask.bool(), x, torch.zeros_like(x))
        output: Tensor = self.network(torch.stack([filled, observed], dim=-self.event_dim - 1))
        return output


def split(parameters: Tensor, count: int, owner: str) -> tuple[Tensor, ...]:
    """Cuts a network's output into parameters that stand side by side on its last dimension.

    Args:
        parameters: The output, shape ``(*batch, count * size)``.
        count: Number of parameters.
        owner: Name of the component, for the error.

    Returns:
        ``count`` tensors, shape ``(*batch, size)``.

    Raises:
        ValueError: If the last dimension cannot be cut into equal parts.

    Example:
        >>> import torch, pyrovae as pv
        >>> loc, log_scale = pv.networks.split(torch.zeros(3, 2 * 5), 2, "MyPosterior")
        >>> loc.shape
        torch.Size([3, 5])
    """
    if parameters.shape[-1] % count:
        raise ValueError(
            f"{owner}: the network's output has shape {tuple(parameters.shape)}, but {count} parameters side by side "
            f"need a last dimension divisible by {count}; give the network an output {count} times as wide as its event"
        )
    return parameters.chunk(count, dim=-1)
