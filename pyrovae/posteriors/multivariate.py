"""Normal posteriors whose dimensions are correlated given x."""

import math

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.components import Described
from pyrovae.distributions import MultivariateNormal as MultivariateNormalDistribution


class MultivariateNormal(Described):
    r"""Normal posterior with a covariance of full or low rank.

    * ``MultivariateNormal(network)``: :math:`q(z \mid x) = N(z; \mu, S L L^\top S)` with
      :math:`S = \mathrm{diag}(\sigma)` and L lower triangular with ones on its diagonal. The network's output has
      ``latent * (latent + 3) / 2`` features: means, log-scales, and L below the diagonal row by row.
    * ``MultivariateNormal(network, rank=r)``: :math:`N(z; \mu, S (I + W W^\top) S)` with r columns in W. The output has
      ``latent * (r + 2)`` features: means, log-scales, and W row by row.

    The correlations depend on L or W only, because S is diagonal and multiplies from both sides. A small scale
    therefore does not push the correlations towards 1 or -1. The network's output for L is divided by the square root
    of ``latent``. Without this division, outputs of order one, as at initialization, would make the dimensions strongly
    correlated.

    Args:
        network: ``(*batch, *event) -> (*batch, width)``.
        rank: Number of columns of W; ``None`` for the full covariance.

    Raises:
        ValueError: If ``rank`` is not positive; when called, if the width of the network's output fits no number
            of latent dimensions.

    Source:
        *Stochastic Backpropagation and Approximate Inference in Deep Generative Models* (Rezende et al., 2014),
        section 4.3.

    Example:
        >>> import torch, pyrovae as pv
        >>> full = pv.posteriors.MultivariateNormal(pv.networks.mlp(4, 5 * 8 // 2))
        >>> full(torch.zeros(3, 4)).event_shape
        torch.Size([5])
        >>> low_rank = pv.posteriors.MultivariateNormal(torch.nn.Identity(), rank=1)
        >>> low_rank(torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, 1.0])).covariance_matrix.tolist()  # I + w w^T
        [[2.0, 1.0], [1.0, 2.0]]
    """

    def __init__(self, network: nn.Module, rank: int | None = None) -> None:
        super().__init__()
        if rank is not None and rank < 1:
            raise ValueError(f"posteriors.MultivariateNormal: rank={rank} must be at least 1, or None for full rank")
        self.network, self.rank = network, rank

    def forward(self, *context: Tensor) -> dist.TorchDistribution:
        """Return q(z | x) for ``x``, shape ``(*batch, *event)``. Further arguments are passed to the network too."""
        output = self.network(*context)
        latent = _latent(output.shape[-1], self.rank)
        loc, log_scale, rest = output.split([latent, latent, output.shape[-1] - 2 * latent], dim=-1)
        scale = log_scale.exp()
        if self.rank is not None:
            factor = rest.unflatten(-1, (latent, self.rank))
            return dist.LowRankMultivariateNormal(loc, scale.unsqueeze(-1) * factor, scale**2)
        rows, columns = torch.tril_indices(latent, latent, offset=-1, device=output.device)
        unit = torch.diag_embed(torch.ones_like(scale))
        unit[..., rows, columns] = rest / math.sqrt(latent)
        return MultivariateNormalDistribution(loc, scale_tril=scale.unsqueeze(-1) * unit)


def _latent(width: int, rank: int | None) -> int:
    """Return the number of latent dimensions, given the width of the network's output."""
    if rank is None:
        latent = (math.isqrt(9 + 8 * width) - 3) // 2
        if latent < 1 or latent * (latent + 3) != 2 * width:
            raise ValueError(
                f"posteriors.MultivariateNormal: the network's output is {width} wide, but a full covariance needs "
                f"latent * (latent + 3) / 2 parameters. Change the width of the network."
            )
        return latent
    if width % (rank + 2):
        raise ValueError(
            f"posteriors.MultivariateNormal: the network's output is {width} wide, but rank {rank} needs latent * "
            f"{rank + 2} parameters. Change the width of the network."
        )
    return width // (rank + 2)
