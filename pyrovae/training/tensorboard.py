"""What TensorBoard shows of a run, read off it: its numbers are the same with and without.

Every epoch the columns of the history and the norm of the last gradient; every so many epochs histograms of parameters
and gradients, and pictures. The step of TensorBoard is the index of the epoch, as in the history.
"""

import os
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from pyrovae._warnings import find_stack_level
from pyrovae.training.history import History
from pyrovae.training.losses import Batch
from pyrovae.training.nonfinite import are_finite
from pyrovae.training.pictures import Pictures

_TAGS = {  # of the history's columns
    "train": "bound/train",
    "valid": "bound/valid",
    "learning_rate": "learning_rate",
    "kl_weight": "kl_weight",
    "seconds": "seconds",
    "skipped": "skipped_steps",
}


class Writer(Protocol):
    """What is asked of a ``SummaryWriter`` of one's own."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any:
        """Adds a point of a curve."""

    def add_histogram(self, tag: str, values: Tensor, global_step: int) -> Any:
        """Adds a histogram of all entries of a tensor."""

    def add_image(self, tag: str, img_tensor: Tensor, global_step: int) -> Any:
        """Adds an image, shape ``(3, height, width)``."""

    def flush(self) -> Any:
        """Puts all of it where it can be read."""


class Board:
    """TensorBoard's view of a run.

    Args:
        place: Folder of the event files, or a writer, which is then neither purged nor closed.
        every: Epochs between two sets of histograms and pictures.

    Raises:
        TypeError: If it is neither.
        ModuleNotFoundError: If there is no TensorBoard to write such files.
    """

    def __init__(self, place: str | Path | Writer, every: int) -> None:
        self.every, self.is_own = every, isinstance(place, str | os.PathLike)
        self.writer: Any = None
        self.pictures: Pictures
        if self.is_own:
            self.summary_writer = _summary_writer()
        elif not hasattr(place, "add_scalar"):
            raise TypeError(f"tensorboard= is a folder, or a SummaryWriter of torch's, got {place!r}")
        self.place: Any = place

    def begin(self, epoch: int, module: nn.Module, train: Batch, valid: Batch | None) -> None:
        """Opens it for epochs from the given one on; what is there of later ones is no longer shown.

        Raises:
            OSError: If the folder cannot be written to.
        """
        self.pictures = Pictures(module, train, valid)
        try:
            if self.is_own:
                _wait_for_a_later_name(Path(self.place))
                self.writer = self.summary_writer(str(self.place), purge_step=epoch)
            else:
                self.writer = self.place
        except OSError as error:
            raise OSError(
                f"TensorBoard's files cannot be written to {str(self.place)!r} ({error.strerror or error}); give a "
                f"folder that can be written to"
            ) from error

    def add(self, history: History, parameters: Mapping[str, Tensor]) -> None:
        """Adds the epoch that the history has last. A run is not to end by being watched: what fails is a warning."""
        if self.writer is None:
            return
        try:
            self._add(self.writer, len(history.train) - 1, history, parameters)
            self.writer.flush()  # so that no point is missing if the run goes on from the checkpoint that comes next
        except Exception as error:  # a full disk, a folder that was removed, whatever a writer of the user's raises
            self.writer = None
            warnings.warn(
                f"fit goes on without TensorBoard, for which nothing can be written ({error}); what is there is that "
                f"of the epochs before",
                stacklevel=find_stack_level(),
            )

    def close(self) -> None:
        """Closes what it has opened; all of it has been written."""
        if self.is_own and self.writer is not None:
            with suppress(OSError):
                self.writer.close()

    def _add(self, writer: Writer, epoch: int, history: History, parameters: Mapping[str, Tensor]) -> None:
        for column, tag in _TAGS.items():
            if values := getattr(history, column):
                writer.add_scalar(tag, values[-1], epoch)
        slopes = {name: p.grad for name, p in parameters.items() if p.grad is not None}
        writer.add_scalar("gradient_norm", float(get_total_norm(list(slopes.values()))), epoch)
        if epoch % self.every:
            return
        for kind, tensors in (("parameters", parameters), ("gradients", slopes)):
            for name, tensor in tensors.items():
                if are_finite([tensor]):  # not so the gradient of a step that was skipped
                    writer.add_histogram(f"{kind}/{name}", tensor, epoch)
        for name, picture in self.pictures().items():
            writer.add_image(name, picture, epoch)


def _wait_for_a_later_name(folder: Path) -> None:
    """Event files are read in the order of their names, which begin with the second, and then the process."""
    while any(folder.glob(f"events.out.tfevents.{int(time.time()):010d}.*")):
        time.sleep(0.05)


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter  # TensorBoard is optional, and its import takes a second
    except ImportError as error:
        raise ModuleNotFoundError(
            "fit(tensorboard=) writes with the package tensorboard, which is not installed; "
            "pip install 'pyrovae[tensorboard]', or leave tensorboard= out",
            name="tensorboard",
        ) from error
    return SummaryWriter
