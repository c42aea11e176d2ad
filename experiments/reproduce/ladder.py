r"""Ladder variational autoencoder: a hierarchy of latents whose posterior corrects the prior by the data.

.. math:: p(x, z) = p(z_L) \prod_{l < L} p(z_l \mid z_{l+1})\, p(x \mid z_1), \qquad
    q(z \mid x) = q(z_L \mid x) \prod_{l < L} q(z_l \mid x, z_{l+1}).

A deterministic pass goes up, :math:`d_l = f_l(d_{l-1})` with :math:`d_0 = x`. At each layer it gives a normal density
with mean :math:`\hat\mu_l(d_l)` and variance :math:`\hat\sigma_l^2(d_l)`. The posterior of the top layer is this
density. On the way down, the posterior of a layer is the normalized product of its density and the prior,
:math:`N(\mu_{p,l}(z_{l+1}), \sigma_{p,l}^2(z_{l+1}))`. Model and guide share the networks of the prior:

.. math:: \sigma_{q,l}^{-2} = \hat\sigma_l^{-2} + \sigma_{p,l}^{-2}, \qquad
    \mu_{q,l} = \sigma_{q,l}^2\, (\hat\mu_l \hat\sigma_l^{-2} + \mu_{p,l} \sigma_{p,l}^{-2}).

Source: *Ladder Variational Autoencoders* (Sønderby, Raiko, Maaløe, Sønderby and Winther, 2016).
"""

import math
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
from torch import Tensor, nn
from torch.nn.functional import softplus

import pyrovae as pv

LATENTS = (64, 32, 16, 8, 4)  # dimensions of z1, ..., z5
HIDDEN = (512, 256, 128, 64, 32)  # units of the networks next to z1, ..., z5
SMALLEST_VARIANCE = 1e-5  # as in the published code


class LadderVAE(nn.Module):
    """A ladder VAE of binary data, with the latent sites ``"z1"`` (next to the data), ``"z2"``, and so on.

    All networks have two hidden layers of leaky rectifiers. As in the paper, batch normalization follows every linear
    map except the map to the data. The training loss of a datum therefore depends on its batch. An evaluation uses
    running averages, so a log-weight depends on its own datum only.

    Args:
        event_shape: Shape of a datum.
        latents: Numbers of latent dimensions, from the data up.
        hidden: Widths of the hidden layers, from the data up.
        batch_norm: Whether to use batch normalization.

    Raises:
        ValueError: If ``latents`` is empty, or ``latents`` and ``hidden`` have different lengths.

    Example:
        >>> import torch
        >>> from experiments.reproduce.ladder import LadderVAE
        >>> ladder = LadderVAE((8, 8), latents=(5, 3), hidden=(16, 8))
        >>> [(loc.shape, variance.shape) for loc, variance in ladder.bottom_up(torch.zeros(7, 8, 8))]
        [(torch.Size([7, 5]), torch.Size([7, 5])), (torch.Size([7, 3]), torch.Size([7, 3]))]
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        latents: Sequence[int] = LATENTS,
        hidden: Sequence[int] = HIDDEN,
        *,
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        if not latents or len(latents) != len(hidden):
            raise ValueError(f"LadderVAE: got {len(latents)} latents and {len(hidden)} widths. Give both for a layer.")
        self.event_shape, self.latents, self.hidden = tuple(event_shape), tuple(latents), tuple(hidden)
        size = math.prod(event_shape)
        self.up = nn.ModuleList(
            _perceptron(below, width, batch_norm) for below, width in zip((size, *hidden), hidden, strict=False)
        )
        self.up_moments = nn.ModuleList(
            Moments(width, latent, batch_norm) for width, latent in zip(hidden, latents, strict=True)
        )
        self.down = nn.ModuleList(
            nn.Sequential(_perceptron(above, width, batch_norm), Moments(width, latent, batch_norm))
            for above, width, latent in zip(latents[1:], hidden, latents, strict=False)
        )
        self.decoder = nn.Sequential(_perceptron(latents[0], hidden[0], batch_norm), nn.Linear(hidden[0], size))

    def model(self, x: Tensor) -> None:
        """Run p(x, z) on data ``x``, shape ``(N, *event_shape)``."""
        top = len(self.latents)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample(f"z{top}", dist.Normal(x.new_zeros(self.latents[-1]), 1.0).to_event(1))
            for layer in range(top - 1, 0, -1):
                z = pyro.sample(f"z{layer}", _normal(*self.down[layer - 1](z)))
            logits = self.decoder(z).unflatten(-1, self.event_shape)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(len(self.event_shape)), obs=x)

    def guide(self, x: Tensor) -> None:
        """Run q(z | x) on data ``x``, shape ``(N, *event_shape)``."""
        *lower, (loc, variance) = self.bottom_up(x)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample(f"z{len(self.latents)}", _normal(loc, variance))
            for layer in range(len(self.latents) - 1, 0, -1):
                z = pyro.sample(f"z{layer}", _normal(*merge(lower[layer - 1], self.down[layer - 1](z))))

    def bottom_up(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the mean and the variance of each layer from the deterministic pass, from the data up.

        Args:
            x: Data, shape ``(N, *event_shape)``.

        Returns:
            A pair of tensors for each layer, each of shape ``(N, latent)``.
        """
        d, found = x.flatten(-len(self.event_shape)), []
        for up, moments in zip(self.up, self.up_moments, strict=True):
            d = up(d)
            found.append(moments(d))
        return found


class Moments(nn.Module):
    """Mean and variance of a layer from one linear map each, with a softplus for the variance.

    Args:
        width: Number of features.
        latent: Number of latent dimensions.
        batch_norm: Whether to use batch normalization.
    """

    def __init__(self, width: int, latent: int, batch_norm: bool) -> None:
        super().__init__()
        self.loc, self.variance = (nn.Sequential(*_linear(width, latent, batch_norm)) for _ in range(2))

    def forward(self, d: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance, each of shape ``(*batch, latent)``, for ``d``, shape ``(*batch, width)``."""
        return self.loc(d), softplus(self.variance(d)) + SMALLEST_VARIANCE


def merge(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the mean and the variance of the normalized product of two normal densities.

    Args:
        one: Mean and variance, shape ``(*batch, latent)``.
        other: Mean and variance of a shape that broadcasts with it.

    Example:
        >>> import torch
        >>> from experiments.reproduce.ladder import merge
        >>> merge((torch.tensor(0.0), torch.tensor(1.0)), (torch.tensor(4.0), torch.tensor(3.0)))
        (tensor(1.), tensor(0.7500))
    """
    (loc, variance), (other_loc, other_variance) = one, other
    weight = other_variance / (variance + other_variance)  # weight of the first density, between 0 and 1
    return weight * loc + (1 - weight) * other_loc, weight * variance


def _normal(loc: Tensor, variance: Tensor) -> dist.TorchDistribution:
    return dist.Normal(loc, variance.sqrt()).to_event(1)


def _perceptron(width_in: int, width: int, batch_norm: bool) -> nn.Sequential:
    """Return two hidden layers of leaky rectifiers."""
    return nn.Sequential(
        *_linear(width_in, width, batch_norm), nn.LeakyReLU(), *_linear(width, width, batch_norm), nn.LeakyReLU()
    )


def _linear(width_in: int, width: int, batch_norm: bool) -> list[nn.Module]:
    """Return a linear map, followed by batch normalization over all leading dimensions."""
    normalize: list[nn.Module] = [pv.networks.Batched(nn.BatchNorm1d(width), 1)] if batch_norm else []
    return [nn.Linear(width_in, width, bias=not batch_norm), *normalize]
