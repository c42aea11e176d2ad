r"""Deterministic autoencoders, for comparison with the VAE: a code :math:`h = f(x)` and a reconstruction g(h).

.. math:: L_R = L(x, g(h)) + R(h), \qquad h = f(\tilde x), \qquad \tilde x \text{ a corrupted } x.

Autoencoders differ in two exchangeable components: the corruption that makes :math:`\tilde x`, and the penalty R. With
:math:`\hat x = g(h)`, the loss L is a sum over the dimensions of x:

.. math::
    -\sum_k x_k \log \hat x_k + (1 - x_k) \log (1 - \hat x_k) \quad \text{for binary data}, \qquad
    \sum_k (x_k - \hat x_k)^2 \quad \text{for real data}.

The code has no prior, so :math:`p(x)` is not defined. An autoencoder therefore has neither a model nor a guide.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from pyrovae.arguments import explained
from pyrovae.autoencoders.corruptions import Corruption, Masking
from pyrovae.autoencoders.penalties import L1, Contraction, KLSparsity, Penalty
from pyrovae.components import Described

Network = Callable[[Tensor], Tensor]
Error = Literal["cross_entropy", "squared"]

_OF_A_DENSITY = ("model", "guide", "prior", "likelihood", "posterior", "generate")


class Autoencoder(Described):
    r"""Autoencoder, undercomplete or overcomplete, with any corruption and any penalty.

    ``pv.fit`` trains an autoencoder like a VAE. The history holds minus the loss in place of bounds. An autoencoder has
    no density, so attributes such as ``model`` and ``guide`` raise an AttributeError.

    Args:
        encoder: f, ``(N, *event)`` to ``(N, code)``.
        decoder: g, ``(N, code)`` to ``(N, *event)``: logits for binary data, values for real data.
        error: Reconstruction error: ``"cross_entropy"``, in nats, for data in [0, 1], or ``"squared"`` for real data.
        corruption: :class:`Masking`, :class:`GaussianNoise`, or any callable that maps x to :math:`\tilde x`.
        penalty: :class:`L1`, :class:`KLSparsity`, :class:`Contraction`, or any callable. The call
            ``penalty(encoder, x, code)`` gets the corrupted x, and returns the penalty of each datum, shape ``(N,)``.

    Raises:
        ValueError: If ``error`` is unknown; when run, if data for the cross-entropy are outside [0, 1], or if shapes do
            not fit.
        TypeError: When run, if the encoder or the decoder does not return a tensor.
        AttributeError: If an attribute is used that requires a density.

    Source:
        *Reducing the Dimensionality of Data with Neural Networks* (Hinton and Salakhutdinov, 2006).

    Example:
        >>> import torch, pyrovae as pv
        >>> autoencoder = pv.autoencoders.Autoencoder(pv.networks.mlp((8, 8), 4), pv.networks.mlp(4, (8, 8)))
        >>> x = torch.rand(50, 8, 8).round()
        >>> before = autoencoder.errors(x).sum().item()
        >>> history = pv.fit(autoencoder, x, epochs=5, learning_rate=0.01, seed=0)
        >>> autoencoder.errors(x).sum().item() < before
        True
        >>> autoencoder.reconstruct(x).shape
        torch.Size([50, 8, 8])
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
            raise ValueError(f"autoencoders.{type(self).__name__}: error={error!r} must be one of {get_args(Error)}")
        self.encoder, self.decoder, self.error = encoder, decoder, error
        self.corruption, self.penalty = corruption, penalty

    def encode(self, x: Tensor) -> Tensor:
        """Return the codes, shape ``(N, code)``, of data of shape ``(N, *event)``."""
        code = _run("encoder", self.encoder, x)
        if code.ndim != 2 or len(code) != len(x):
            raise ValueError(
                f"the encoder returned shape {tuple(code.shape)} for data of shape {tuple(x.shape)}. Return one vector "
                f"for each datum, shape ({len(x)}, code)."
            )
        return code

    def decode(self, z: Tensor) -> Tensor:
        """Decode codes to data: to probabilities if ``error`` is ``"cross_entropy"``, otherwise to values.

        Args:
            z: Codes, shape ``(N, code)``.

        Returns:
            Tensor, shape ``(N, *event)``.
        """
        output = _run("decoder", self.decoder, z)
        return output.sigmoid() if self.error == "cross_entropy" else output

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Return the reconstruction g(f(x)) of data x, shape ``(N, *event)``."""
        return self.decode(self.encode(x))

    def errors(self, x: Tensor, *, seen: Tensor | None = None) -> Tensor:
        """Return the reconstruction error of each datum, summed over its dimensions, without the penalty.

        Args:
            x: Data to reconstruct, shape ``(N, *event)``. This method does not corrupt them.
            seen: Input of the encoder, for example x after a corruption; by default x itself.

        Returns:
            Tensor, shape ``(N,)``; nats for the cross-entropy.
        """
        return self._errors(x, self.encode(x if seen is None else seen))

    def loss(self, x: Tensor) -> Tensor:
        """Return the training loss of x, averaged over the batch.

        The loss is the error of the reconstruction of x from the corrupted x, plus the penalty. The corruption and the
        penalty also apply in evaluation mode.

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
                f"the cross-entropy needs data between 0 and 1, got values from {x.min():.4g} to {x.max():.4g}. "
                f"Rescale or binarize them, or use error='squared'."
            )
        if x.ndim < 2:
            raise ValueError(
                f"data must have shape (N, *event), got {tuple(x.shape)}. If each datum is a number, pass shape (N, 1)."
            )
        output = _run("decoder", self.decoder, code)
        if output.shape != x.shape:
            raise ValueError(
                f"the decoder returned shape {tuple(output.shape)} for data of shape {tuple(x.shape)}. Return a "
                f"tensor with the data's event shape {tuple(x.shape[1:])}."
            )
        compare = mse_loss if self.error == "squared" else binary_cross_entropy_with_logits
        return compare(output, x, reduction="none").reshape(len(x), -1).sum(1)

    def __getattr__(self, name: str) -> Any:
        if name in _OF_A_DENSITY:
            raise AttributeError(
                f"{type(self).__name__} has no {name!r}, because an autoencoder has no density p(x) and thus no ELBO, "
                f"likelihood or draws. Compare reconstructions (.errors), or use a pyrovae.VAE."
            )
        return super().__getattr__(name)


class SparseAutoencoder(Autoencoder):
    r"""Autoencoder with codes near zero (L1), or with units that are rarely active (KL).

    Args:
        encoder: See :class:`Autoencoder`. With ``sparsity="kl"``, the codes must lie between 0 and 1, as after a
            sigmoid.
        decoder: See :class:`Autoencoder`.
        weight: Weight of the penalty, :math:`\lambda`.
        sparsity: ``"l1"`` for :class:`L1`, or ``"kl"`` for :class:`KLSparsity`.
        target: Target for the mean activity of each unit of the code, used only with ``sparsity="kl"``.
        error: See :class:`Autoencoder`.

    Raises:
        ValueError: If ``sparsity`` is unknown; see also :class:`Autoencoder`, :class:`L1` and :class:`KLSparsity`.

    Source:
        *Efficient Learning of Sparse Representations with an Energy-Based Model* (Ranzato et al., 2007).

    Example:
        >>> import torch, pyrovae as pv
        >>> encoder, decoder = torch.nn.Identity(), torch.nn.Identity()  # the loss is the penalty of the code (2, -1)
        >>> autoencoder = pv.autoencoders.SparseAutoencoder(encoder, decoder, weight=0.1, error="squared")
        >>> autoencoder.loss(torch.tensor([[2.0, -1.0]]))
        tensor(0.3000)
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
            raise ValueError(f"autoencoders.SparseAutoencoder: sparsity={sparsity!r} must be 'l1' or 'kl'")
        penalty = L1(weight) if sparsity == "l1" else KLSparsity(weight, target)
        super().__init__(encoder, decoder, error=error, penalty=penalty)


class DenoisingAutoencoder(Autoencoder):
    """Autoencoder that reconstructs x from a corrupted x.

    Args:
        encoder: See :class:`Autoencoder`.
        decoder: See :class:`Autoencoder`.
        corruption: :class:`Masking`, :class:`GaussianNoise`, or any callable. The default, ``Masking()``, sets each
            entry to 0 with probability 1/4.
        error: See :class:`Autoencoder`.

    Raises:
        ValueError: See :class:`Autoencoder`.

    Source:
        *Extracting and Composing Robust Features with Denoising Autoencoders* (Vincent et al., 2008).

    Example:
        >>> import torch, pyrovae as pv
        >>> encoder, decoder = torch.nn.Identity(), torch.nn.Identity()
        >>> hide = pv.autoencoders.Masking(1.0)  # replaces all entries by zero
        >>> autoencoder = pv.autoencoders.DenoisingAutoencoder(encoder, decoder, corruption=hide, error="squared")
        >>> x = torch.tensor([[2.0, -1.0]])
        >>> autoencoder.loss(x), autoencoder.errors(x)  # only the loss corrupts the data
        (tensor(5.), tensor([0.]))
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
    """Autoencoder whose code changes little if x changes.

    Args:
        encoder: See :class:`Autoencoder`. The code of a datum must not depend on other data, so batch normalization
            must not use batch statistics.
        decoder: See :class:`Autoencoder`.
        weight: Weight of the :class:`Contraction` penalty.
        error: See :class:`Autoencoder`.

    Raises:
        ValueError: See :class:`Autoencoder` and :class:`Contraction`.

    Source:
        *Contractive Auto-Encoders: Explicit Invariance During Feature Extraction* (Rifai et al., 2011).

    Example:
        >>> import torch, pyrovae as pv
        >>> encoder, decoder = torch.nn.Identity(), torch.nn.Identity()  # the squared norm of the Jacobian is 2
        >>> autoencoder = pv.autoencoders.ContractiveAutoencoder(encoder, decoder, weight=0.1, error="squared")
        >>> autoencoder.loss(torch.tensor([[2.0, -1.0]]))
        tensor(0.2000)
    """

    def __init__(
        self, encoder: Network, decoder: Network, *, weight: float = 0.1, error: Error = "cross_entropy"
    ) -> None:
        super().__init__(encoder, decoder, error=error, penalty=Contraction(weight))


def _run(role: str, network: Network, given: Tensor) -> Tensor:
    """Run the encoder or the decoder, and add an explanation to errors about its input."""
    with explained(role, given):
        output = network(given)
    if not isinstance(output, Tensor):
        raise TypeError(
            f"the {role} returned a {type(output).__name__}, not a tensor. Pass a network instead of a likelihood or "
            f"posterior of a VAE."
        )
    return output
