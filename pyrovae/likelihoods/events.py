"""Which dimensions of a likelihood's parameters are those of a datum."""

from typing import Any

from torch import Tensor, nn


def event_dim(ndim: int, context: tuple[Tensor, ...], network: nn.Module) -> int:
    """The number of event dimensions of parameters that have so many dimensions, ``(*batch, *event)``.

    What a likelihood depends on (latents, labels as one-hot vectors) has one event dimension each, unless its network,
    a :class:`pyrovae.networks.Joint`, says otherwise; the batch dimensions broadcast.
    """
    event_dims: Any = getattr(network, "event_dims", (1,) * len(context))
    return ndim - max(tensor.ndim - own for tensor, own in zip(context, event_dims, strict=True))
