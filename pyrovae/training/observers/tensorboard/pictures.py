"""Images of a module: held-out images above their reconstructions, and draws from the prior."""

import inspect
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.isolation import isolated
from pyrovae.training.batches import Batch
from pyrovae.training.state import generator_states, restore_generators

logger = logging.getLogger(__name__)

_COLUMNS, _NUMBER = 8, 32


class Pictures:
    """Reconstructions and samples of a module, which every call computes from the same data and with the same seed.

    Args:
        module: Module with ``reconstruct(x, *given)`` or ``generate(n, *given)``, or both. If a method has an argument
            ``mean``, it is called with ``mean=True``.
        first: Function of n that returns the first n data of a data set. No picture is made unless a datum is an image,
            shape ``(height, width)`` or ``(1 or 3, height, width)``.
        is_held_out: True if ``first`` returns validation data. Training data are not reconstructed.
    """

    def __init__(self, module: nn.Module, first: Callable[[int], Batch], is_held_out: bool) -> None:
        self.module, self.drawers = module, dict[str, Callable[[], Tensor]]()
        self.data = first(_NUMBER)
        self.event = self.data[0].shape[1:]
        if len(self.event) == 2 or (len(self.event) == 3 and self.event[0] in (1, 3)):
            if is_held_out and hasattr(module, "reconstruct"):
                self.drawers["reconstructions"] = self._reconstructions
            if hasattr(module, "generate"):
                self.drawers["prior draws"] = self._prior_draws

    def __call__(self) -> dict[str, Tensor]:
        """Return images by name, shape ``(3, height, width)``, values in [0, 1]. Random generators stay unchanged.

        If an image cannot be drawn, it is left out from then on, and the log names the reason.
        """
        pictures = {}
        for name, draw in list(self.drawers.items()):
            states = generator_states()
            try:
                with isolated(self.module, seed=0):
                    pictures[name] = draw()
            except Exception as error:  # any error of the module's methods
                del self.drawers[name]
                logger.warning(
                    "the images of %s are left out from now on, because drawing them raised %s: %s",
                    name,
                    type(error).__name__,
                    error,
                )
            finally:
                restore_generators(states)
        return pictures

    def _reconstructions(self) -> Tensor:
        """Return one image, in which a row of reconstructions follows each row of data."""
        number = len(self.data[0])
        number -= number % _COLUMNS if number > _COLUMNS else 0
        x, *given = (tensor[:number] for tensor in self.data)
        rows = zip(x.split(_COLUMNS), _means(self.module, "reconstruct")(x, *given).split(_COLUMNS), strict=True)
        return self._grid([row for pair in rows for row in pair])

    def _prior_draws(self) -> Tensor:
        x, *given = self.data
        return self._grid([_means(self.module, "generate")(len(x), *given)])

    def _grid(self, parts: list[Tensor]) -> Tensor:
        from torchvision.utils import make_grid  # the import takes seconds

        low, high = (float(bound) for bound in self.data[0].aminmax())
        images = torch.cat(parts).reshape(-1, *(self.event if len(self.event) == 3 else (1, *self.event)))
        columns = min(_COLUMNS, len(parts[0]))
        span = min(low, 0.0), max(high, 1.0)
        return make_grid(images.float(), nrow=columns, padding=1, pad_value=0.5, normalize=True, value_range=span)


def _means(module: Any, name: str) -> Callable[..., Tensor]:
    method = getattr(module, name)
    return partial(method, mean=True) if "mean" in inspect.signature(method).parameters else method
