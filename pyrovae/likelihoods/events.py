"""Which dimensions of a likelihood's parameters are those of a datum."""

from torch import Tensor


def event_dim(parameters: Tensor, context: tuple[Tensor, ...]) -> int:
    """The number of event dimensions of parameters, shape ``(*batch, *event)``.

    What a likelihood depends on (latents, labels as one-hot vectors) has one event dimension each, and batch dimensions
    that broadcast.
    """
    return parameters.ndim - (max(tensor.ndim for tensor in context) - 1)
