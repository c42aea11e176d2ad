r"""Deterministic autoencoders, beside the VAE for comparison: a code :math:`h = f(x)`, and g that leads back to x.

.. math:: L_R = L(x, g(h)) + R(h), \qquad h = f(\tilde x), \qquad \tilde x \text{ a corrupted } x.

What autoencoders differ in are two parts that can be exchanged: the corruption that makes :math:`\tilde x`, and the
penalty R. With :math:`\hat x = g(h)`, L is summed over the dimensions of x:

.. math::
    -\sum_k x_k \log \hat x_k + (1 - x_k) \log (1 - \hat x_k) \quad \text{for binary data}, \qquad
    \sum_k (x_k - \hat x_k)^2 \quad \text{for real data}.

There is no prior of h, so :math:`p(x)` is not defined: an autoencoder has neither model nor guide, and nothing says
which codes are to be decoded for a new x.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from pyrovae.arguments import explained
from pyrovae.autoencoders.corruptions import Corruption, Masking
from pyrovae.autoencoders.penalties import L1, Contraction, KLSparsity, Penalty

Network = Callable[[Tensor], Tensor]
Error = Literal["cross_entropy", "squared"]

_OF_A_DENSITY = ("model", "guide", "prior", "likelihood", "posterior", "generate")


class Autoencoder(nn.Module):
    r"""An autoencoder, undercomplete or overcomplete, with any corruption and any penalty.

    ``pv.fit`` trains it as it trains a VAE; bounds of its history are then minus the loss. It has no density, so no
    ``model``, ``guide`` or anything else that a VAE has one for.

    Args:
        encoder: f, ``(N, *event)`` to ``(N, code)``.
        decoder: g, ``(N, code)`` to ``(N, *event)``: logits of binary data, values of real ones.
        error: ``"cross_entropy"``, in nats, for data in [0, 1], or ``"squared"`` for real ones.
        corruption: Makes :math:`\tilde x` of x: :class:`Masking`, :class:`GaussianNoise`, any callable.
        penalty: R, called as ``penalty(encoder, x, code)`` on what the encoder has seen, shape ``(N,)``: :class:`L1`,
            :class:`KLSparsity`, :class:`Contraction`, any callable.

    Raises:
        ValueError: If there is no such error; when run, if data for the cross-entropy are outside [0, 1], or shapes do
            not fit.
        TypeError: When run, if the encoder does not return a tensor.
        AttributeError: If asked for what only a density has.

    Source:
        *Reducing the Dimensionality of Data with Neural Networks* (Hinton and Salakhutdinov, 2006).

    Example:
        >>> import torch, pyrovae as pv
        >>> autoencoder = pv.autoencoders.Autoencoder(pv.networks.mlp((8, 8), 4), pv.networks.mlp(4, (8, 8)))
        >>> history = pv.fit(autoencoder, torch.rand(50, 8, 8).round(), epochs=2, seed=0)
        >>> autoencoder.reconstruct(torch.zeros(3, 8, 8)).shape
        torch.Size([3, 8, 8])
    """

    def __init__(
        self,
        encoder: Network,
        decoder: Network,
        *,
        error: Error = "cross_entropy",
        corruption: Corruption | None = None,
        penalty: Penalty | None = None,
    ) -> None:
        super().__init__()
        if error not in get_args(Error):
            raise ValueError(f"the error of a reconstruction is one of {get_args(Error)}, got {error!r}")
        self.encoder, self.decoder, self.error = encoder, decoder, error
        self.corruption, self.penalty = corruption, penalty

    def encode(self, x: Tensor) -> Tensor:
        """The codes of data, shape ``(N, *event)`` to ``(N, code)``."""
        code = _run("encoder", self.encoder, x)
        if code.ndim != 2 or len(code) != len(x):
            raise ValueError(
                f"the encoder gives shape {tuple(code.shape)} for data of shape {tuple(x.shape)}; let it end in one "
                f"vector a datum, shape ({len(x)}, code)"
            )
        return code

    def decode(self, z: Tensor) -> Tensor:
        """Decodes codes, shape ``(N, code)``, to ``(N, *event)``: probabilities of binary data, values of real ones."""
        output = _run("decoder", self.decoder, z)
        return output.sigmoid() if self.error == "cross_entropy" else output

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """What the codes of data are decoded to, shape ``(N, *event)``."""
        return self.decode(self.encode(x))

    def errors(self, x: Tensor, *, seen: Tensor | None = None) -> Tensor:
        """Reconstruction error of each datum, summed over its dimensions, without corruption or penalty.

        Args:
            x: What is to be reconstructed, shape ``(N, *event)``.
            seen: What the encoder sees of it, such as a corrupted x; by default x itself.

        Returns:
            Tensor, shape ``(N,)``; nats for the cross-entropy.
        """
        return self._errors(x, self.encode(x if seen is None else seen))

    def loss(self, x: Tensor) -> Tensor:
        """The loss of x from a corrupted x, penalty included, averaged over the data; in training mode or not.

        Args:
            x: Data, shape ``(N, *event)``.

        Returns:
            Tensor, shape ``()``.
        """
        seen = x if self.corruption is None else self.corruption(x)
        code = self.encode(seen)
        losses = self._errors(x, code)
        if self.penalty is not None:
            losses = losses + self.penalty(self.encoder, seen, code)
        return losses.mean()

    def _errors(self, x: Tensor, code: Tensor) -> Tensor:
        if self.error == "cross_entropy" and is_validation_enabled() and not ((x >= 0) & (x <= 1)).all():
            raise ValueError(
                f"the cross-entropy is one of data between 0 and 1, got values from {x.min():.4g} to {x.max():.4g}; "
                f"rescale or binarize them, or take error='squared'"
            )
        if x.ndim < 2:
            raise ValueError(f"data have shape (N, *event), got {tuple(x.shape)}; give numbers as data of shape (N, 1)")
        output = _run("decoder", self.decoder, code)
        if output.shape != x.shape:
            raise ValueError(
                f"the decoder gives shape {tuple(output.shape)} for data of shape {tuple(x.shape)}; let it end in "
                f"their event shape {tuple(x.shape[1:])}"
            )
        compare = mse_loss if self.error == "squared" else binary_cross_entropy_with_logits
        return compare(output, x, reduction="none").reshape(len(x), -1).sum(1)

    def __getattr__(self, name: str) -> Any:
        if name in _OF_A_DENSITY:
            raise AttributeError(
                f"{type(self).__name__} has no {name!r}: an autoencoder has no density p(x), hence no ELBO, no "
                f"likelihood and no draws; compare reconstructions (.errors), or take a pyrovae.VAE"
            )
        return super().__getattr__(name)


class SparseAutoencoder(Autoencoder):
    r"""An autoencoder with codes near zero (L1), or units that are rarely active (KL).

    Args:
        encoder: As for :class:`Autoencoder`; for ``"kl"`` its codes lie between 0 and 1, as a sigmoid gives them.
        decoder: As for :class:`Autoencoder`.
        weight: :math:`\lambda`.
        sparsity: ``"l1"``, :class:`L1`, or ``"kl"``, :class:`KLSparsity`.
        target: Mean activity of a unit, for ``"kl"``.
        error: As for :class:`Autoencoder`.

    Raises:
        ValueError: If there is no such sparsity; as :class:`Autoencoder`, :class:`L1` and :class:`KLSparsity`.

    Source:
        *Efficient Learning of Sparse Representations with an Energy-Based Model* (Ranzato et al., 2007).

    Example:
        >>> import pyrovae as pv
        >>> networks = pv.networks.mlp(64, 100), pv.networks.mlp(100, 64)
        >>> autoencoder = pv.autoencoders.SparseAutoencoder(*networks, weight=0.1)
        >>> autoencoder.penalty
        L1(weight=0.1)
    """

    def __init__(
        self,
        encoder: Network,
        decoder: Network,
        *,
        weight: float = 1e-2,
        sparsity: Literal["l1", "kl"] = "l1",
        target: float = 0.05,
        error: Error = "cross_entropy",
    ) -> None:
        if sparsity not in ("l1", "kl"):
            raise ValueError(f"sparsity is 'l1' or 'kl', got {sparsity!r}")
        penalty = L1(weight) if sparsity == "l1" else KLSparsity(weight, target)
        super().__init__(encoder, decoder, error=error, penalty=penalty)


class DenoisingAutoencoder(Autoencoder):
    """An autoencoder that finds the clean x from a corrupted one.

    Args:
        encoder: As for :class:`Autoencoder`.
        decoder: As for :class:`Autoencoder`.
        corruption: :class:`Masking`, by default of a quarter of the entries, :class:`GaussianNoise`, or any callable.
        error: As for :class:`Autoencoder`.

    Raises:
        ValueError: As :class:`Autoencoder`.

    Source:
        *Extracting and Composing Robust Features with Denoising Autoencoders* (Vincent et al., 2008).

    Example:
        >>> import pyrovae as pv
        >>> networks = pv.networks.mlp(64, 32), pv.networks.mlp(32, 64)
        >>> noise = pv.autoencoders.GaussianNoise(0.5)
        >>> autoencoder = pv.autoencoders.DenoisingAutoencoder(*networks, corruption=noise, error="squared")
    """

    def __init__(
        self,
        encoder: Network,
        decoder: Network,
        *,
        corruption: Corruption | None = None,
        error: Error = "cross_entropy",
    ) -> None:
        super().__init__(encoder, decoder, error=error, corruption=Masking() if corruption is None else corruption)


class ContractiveAutoencoder(Autoencoder):
    """An autoencoder whose code changes little with x.

    Args:
        encoder: As for :class:`Autoencoder`, without layers that mix the data, such as batch normalization.
        decoder: As for :class:`Autoencoder`.
        weight: Of :class:`Contraction`.
        error: As for :class:`Autoencoder`.

    Raises:
        ValueError: As :class:`Autoencoder` and :class:`Contraction`.

    Source:
        *Contractive Auto-Encoders: Explicit Invariance During Feature Extraction* (Rifai et al., 2011).

    Example:
        >>> import pyrovae as pv
        >>> networks = pv.networks.mlp(64, 32), pv.networks.mlp(32, 64)
        >>> autoencoder = pv.autoencoders.ContractiveAutoencoder(*networks, weight=0.1)
    """

    def __init__(
        self, encoder: Network, decoder: Network, *, weight: float = 0.1, error: Error = "cross_entropy"
    ) -> None:
        super().__init__(encoder, decoder, error=error, penalty=Contraction(weight))


def _run(role: str, network: Network, given: Tensor) -> Tensor:
    """Runs a network, or says what it cannot take."""
    with explained(role, given):
        output = network(given)
    if not isinstance(output, Tensor):
        raise TypeError(
            f"the {role} returned a {type(output).__name__}, not a tensor; an autoencoder is made of networks, not of "
            f"the likelihood or posterior of a VAE"
        )
    return output
