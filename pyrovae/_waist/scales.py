"""The factors by which Pyro multiplies log-probabilities: from subsampling, annealing and ``poutine.scale``."""

from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor


class LatentScale(Messenger):
    """Pyro handler that scales the log-probabilities of latent sites. Unlike ``poutine.scale``, it accepts factor 0."""

    def __init__(self, scale: float | Tensor) -> None:
        super().__init__()
        self.scale = scale
        self.scaled: dict[float, float | Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"]:
            own = msg["scale"]
            # Sites with the same scale get the same tensor object, so that they can be compared without its value.
            msg["scale"] = own * self.scale if isinstance(own, Tensor) else self._times(own)

    def _times(self, own: float) -> float | Tensor:
        return self.scaled.setdefault(own, own * self.scale)


def same_scale(first: float | Tensor, second: float | Tensor) -> bool:
    """Return whether two scales are equal; the values of a tensor are not read if both scales are the same object."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first is second or torch.equal(first, second.to(first.device))  # a program's own scale may be on the CPU
    return not (isinstance(first, Tensor) or isinstance(second, Tensor)) and first == second


def scale_of_data(scale: float | Tensor, data_dim: int) -> float | Tensor:
    """Return a scale as a number, or as a tensor of shape ``(N,)`` if the scale depends on the datum."""
    if not isinstance(scale, Tensor):
        return scale
    if scale.numel() == 1:
        return scale.reshape(())
    if scale.ndim < -data_dim or scale.numel() != scale.shape[data_dim]:
        raise ValueError(
            f"the scale of the sites has shape {tuple(scale.shape)}, but it may vary only along dimension {data_dim}, "
            f"the dimension of the data. Pass a number, or one number per datum, as the scale."
        )
    return scale.reshape(-1)
