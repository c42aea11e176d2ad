"""Base class of likelihoods with one network, in which the entries of a datum are independent given z."""

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
from torch import Tensor, nn

from pyrovae.arguments import check_whole
from pyrovae.components import Described
from pyrovae.networks import split


class Likelihood(Described):
    """Base class of likelihoods whose network returns one or several parameters for the distribution of each entry.

    A subclass sets ``num_parameters``, the number of these parameters. It implements ``_distribution``, which takes one
    tensor for each parameter and returns the distribution of the entries.
    """

    _distribution: Callable[..., Any]

    num_parameters = 1

    def __init__(self, network: nn.Module, dim: int = -1) -> None:
        super().__init__()
        check_whole(dim=dim)
        if dim >= 0:
            raise ValueError(
                f"likelihoods.{type(self).__name__}: dim={dim} must be negative, because batch dimensions are on the "
                f"left. Use dim=-1 for vectors and dim=-3 for the channels of images."
            )
        self.network, self.dim = network, int(dim)

    def forward(self, *context: Tensor) -> dist.TorchDistribution:
        """Return p(x | z) for ``z``, shape ``(*batch, latent)``. Further arguments are passed to the network too."""
        output = self.network(*context)
        own = event_dim(output.ndim, context, self.network)
        name = f"likelihoods.{type(self).__name__}"
        if self.num_parameters > 1 and own < -self.dim:
            raise ValueError(
                f"{name}: dim={self.dim}, but the network's output, shape {tuple(output.shape)}, has only {own} event "
                f"dimensions. Use a dim from {-own} to -1, or a network that "
                f"returns images."
            )
        parameters = split(output, self.num_parameters, name, self.dim)
        return self._distribution(*parameters).to_event(own)


def event_dim(ndim: int, context: tuple[Tensor, ...], network: nn.Module) -> int:
    """Return the number of event dimensions of a network's output, shape ``(*batch, *event)``.

    The output has the batch dimensions of the inputs, which broadcast; its other dimensions are event dimensions. A
    :class:`pyrovae.networks.Joint` states the number of event dimensions of each of its inputs. The inputs of any other
    network (latents, or labels as one-hot vectors) have one event dimension each.

    Args:
        ndim: Number of dimensions of the output.
        context: Inputs of the network.
        network: Network that returned the output.
    """
    event_dims: Any = getattr(network, "event_dims", (1,) * len(context))
    return ndim - max(tensor.ndim - own for tensor, own in zip(context, event_dims, strict=True))
