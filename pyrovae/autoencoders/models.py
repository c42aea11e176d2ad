r"""Deterministic autoencoders, beside the VAE for comparison: a code :math:`h = f(x)`, and g that leads back to x.

.. math:: L_R = L(x, g(f(\tilde x))) + R(h), \qquad \tilde x \text{ a corrupted } x.

What autoencoders differ in are two parts that can be exchanged, the corruption that makes :math:`\tilde x` and the
penalty R. L is summed over the dimensions of x:

.. math::
    -\sum_k x_k \log \hat x_k + (1 - x_k) \log (1 - \hat x_k) \quad \text{for binary data}, \qquad
    \sum_k (x_k - \hat x_k)^2 \quad \text{for real data}.

L is the negative logarithm of a likelihood up to a constant, but there is no prior of h, so that :math:`p(x)` is not
defined: an autoencoder has neither model nor guide, and nothing that says which codes to decode for a new x.
"""

from typing import Any, Literal, get_args

from pyro.infer.util import is_validation_enabled
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from pyrovae.arguments import explained
from pyrovae.autoencoders.corruptions import Corruption, Masking
from pyrovae.autoencoders.penalties import L1, Contraction, KLSparsity, Penalty

Error = Literal["cross_entropy", "squared"]


class Autoencoder(nn.Module):
    r"""An autoencoder, undercomplete or overcomplete.

    ``pv.fit`` trains it as it trains a VAE; bounds of its history are then minus the loss. It has no ``model`` and no
    ``guide``, since it has no density.

    Args:
        encoder: f, ``(N, *event)`` to ``(N, code)``.
        decoder: g, ``(N, code)`` to ``(N, *event)``: logits of binary data, means of real ones.
        error: ``"cross_entropy"`` for binary data, ``"squared"`` for real ones.
        corruption: Makes :math:`\tilde x` of x, in training mode only: :class:`Masking`, :class:`GaussianNoise`, any
            callable.
        penalty: R, called as ``penalty(encoder, x, code)``, shape ``(N,)``: :class:`L1`, :class:`KLSparsity`,
            :class:`Contraction`, any callable.

    Raises:
        ValueError: If there is no such error; when run, if data for the cross-entropy are outside [0, 1], or
            reconstructions have another shape than the data.
        AttributeError: If asked for a model or a guide.

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
        encoder: nn.Module,
        decoder: nn.Module,
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
        """The code of x, shape ``(N, code)``."""
        with explained("encoder", x):
            code: Tensor = self.encoder(x)
        return code

    def decode(self, code: Tensor) -> Tensor:
        """What a code is decoded to, shape ``(N, *event)``: probabilities of binary data, means of real ones."""
        output = self._output(code)
        return output.sigmoid() if self.error == "cross_entropy" else output

    def reconstruct(self, x: Tensor) -> Tensor:
        """What the code of x is decoded to, shape ``(N, *event)``."""
        return self.decode(self.encode(x))

    def errors(self, x: Tensor, of: Tensor | None = None) -> Tensor:
        """Reconstruction error of each datum, shape ``(N,)``, summed over its dimensions.

        Args:
            x: What to reconstruct, shape ``(N, *event)``.
            of: What to reconstruct it from, such as a corrupted x; by default x itself.
        """
        return self._errors(x, self.encode(x if of is None else of))

    def loss(self, x: Tensor) -> Tensor:
        """The loss, averaged over the data, shape ``()``.

        Args:
            x: Data, shape ``(N, *event)``.
        """
        corrupted = self.corruption(x) if self.corruption is not None and self.training else x
        code = self.encode(corrupted)
        losses = self._errors(x, code)
        if self.penalty is not None:
            losses = losses + self.penalty(self.encoder, corrupted, code)
        return losses.mean()

    def _errors(self, x: Tensor, code: Tensor) -> Tensor:
        if self.error == "cross_entropy" and is_validation_enabled() and not ((x >= 0) & (x <= 1)).all():
            raise ValueError(
                f"the cross-entropy is of data between 0 and 1, got values from {x.min():.4g} to {x.max():.4g}; "
                f"rescale or binarize them, or take error='squared'"
            )
        if x.ndim < 2:
            raise ValueError(f"data have shape (N, *event), got {tuple(x.shape)}; give numbers as data of shape (N, 1)")
        output = self._output(code)
        if output.shape != x.shape:
            raise ValueError(
                f"the decoder gives shape {tuple(output.shape)} for data of shape {tuple(x.shape)}; let it end in the "
                f"event shape {tuple(x.shape[1:])}"
            )
        if self.error == "squared":
            return mse_loss(output, x, reduction="none").flatten(1).sum(1)
        return binary_cross_entropy_with_logits(output, x, reduction="none").flatten(1).sum(1)

    def _output(self, code: Tensor) -> Tensor:
        with explained("decoder", code):
            output: Tensor = self.decoder(code)
        return output

    def __getattr__(self, name: str) -> Any:
        if name in ("model", "guide"):
            raise AttributeError(
                f"{type(self).__name__} has no {name}: an autoencoder has no density, hence no ELBO and no likelihood; "
                f"compare reconstruction errors (.errors), or use pyrovae.VAE"
            )
        return super().__getattr__(name)


class SparseAutoencoder(Autoencoder):
    r"""An autoencoder with few active units of its code, or units that are rarely active.

    Args:
        encoder: As for :class:`Autoencoder`; for ``"kl"`` its codes lie between 0 and 1, as a sigmoid gives them.
        decoder: As for :class:`Autoencoder`.
        weight: :math:`\lambda`.
        sparsity: ``"l1"``, :class:`L1`, or ``"kl"``, :class:`KLSparsity`.
        target: Mean activity of a unit, for ``"kl"``.
        error: As for :class:`Autoencoder`.

    Raises:
        ValueError: If there is no such sparsity; as :class:`Autoencoder`, :class:`L1` and :class:`KLSparsity`.

    Example:
        >>> import pyrovae as pv
        >>> networks = pv.networks.mlp(64, 100), pv.networks.mlp(100, 64)
        >>> autoencoder = pv.autoencoders.SparseAutoencoder(*networks, weight=0.1)
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
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
        corruption: :class:`Masking`, by default of a quarter of the inputs, or :class:`GaussianNoise`.
        error: As for :class:`Autoencoder`.

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
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        corruption: Corruption | None = None,
        error: Error = "cross_entropy",
    ) -> None:
        super().__init__(encoder, decoder, error=error, corruption=corruption or Masking())


class ContractiveAutoencoder(Autoencoder):
    """An autoencoder whose code changes little with x.

    Args:
        encoder: As for :class:`Autoencoder`; without layers that mix the data, such as batch normalization.
        decoder: As for :class:`Autoencoder`.
        weight: Of :class:`Contraction`.
        error: As for :class:`Autoencoder`.

    Source:
        *Contractive Auto-Encoders: Explicit Invariance During Feature Extraction* (Rifai et al., 2011).

    Example:
        >>> import pyrovae as pv
        >>> networks = pv.networks.mlp(64, 32), pv.networks.mlp(32, 64)
        >>> autoencoder = pv.autoencoders.ContractiveAutoencoder(*networks, weight=0.1)
    """

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, *, weight: float = 0.1, error: Error = "cross_entropy"
    ) -> None:
        super().__init__(encoder, decoder, error=error, penalty=Contraction(weight))
