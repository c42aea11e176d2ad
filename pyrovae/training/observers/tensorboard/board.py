"""An observer that writes for TensorBoard; the numbers of a run are the same with and without it.

Every epoch it writes the columns of the history and the norm of the last gradient, and every few epochs histograms of
parameters and gradients, and pictures. The step of TensorBoard is the index of the epoch, as in the history.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor
from torch.nn.utils import get_total_norm

from pyrovae._warnings import find_stack_level
from pyrovae.training.history import History
from pyrovae.training.nonfinite import are_finite
from pyrovae.training.observers import Observer
from pyrovae.training.observers.tensorboard.pictures import Pictures

if TYPE_CHECKING:
    from pyrovae.training.run import Run

_TAGS = {  # of the history's columns
    "train": "bound/train",
    "valid": "bound/valid",
    "learning_rate": "learning_rate",
    "kl_weight": "kl_weight",
    "seconds": "seconds",
    "skipped": "skipped_steps",
}


class Writer(Protocol):
    """The methods that a ``SummaryWriter`` of the user must have."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any:
        """Adds a point of a curve."""

    def add_histogram(self, tag: str, values: Tensor, global_step: int) -> Any:
        """Adds a histogram of all entries of a tensor."""

    def add_image(self, tag: str, img_tensor: Tensor, global_step: int) -> Any:
        """Adds an image, shape ``(3, height, width)``."""

    def flush(self) -> Any:
        """Puts all of it where it can be read."""


class TensorBoard(Observer):
    """Write for TensorBoard.

    Args:
        place: Folder of the event files, or a writer, which is then neither purged nor closed.
        every: Epochs between two sets of histograms and pictures.

    Raises:
        TypeError: If ``place`` is neither.
        ModuleNotFoundError: If TensorBoard is not installed and ``place`` is a folder.
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

    def begin(self, run: Run) -> None:
        """Open the place for the epochs to come; points of later epochs that it holds are no longer shown.

        Raises:
            OSError: If the folder cannot be written to.
        """
        plan = run.plan
        held_out = plan.train if plan.valid is None else plan.valid
        self.pictures = Pictures(run.state.tensors.module, held_out.first, is_held_out=plan.valid is not None)
        try:
            if self.is_own:
                _wait_for_a_later_name(Path(self.place))
                self.writer = self.summary_writer(str(self.place), purge_step=run.state.progress.epoch)
            else:
                self.writer = self.place
        except OSError as error:
            raise OSError(
                f"TensorBoard's files cannot be written to {str(self.place)!r} ({error.strerror or error}); give a "
                f"folder that can be written to"
            ) from error

    def after_epoch(self, run: Run) -> None:
        """Add the last epoch of the history. A failure to write is a warning, because the run can go on."""
        if self.writer is None:
            return
        history = run.state.history
        try:
            self._add(self.writer, len(history.train) - 1, history, run.step.gradients.parameters)
            self.writer.flush()  # so that no point is missing if the run goes on from the checkpoint that comes next
        except Exception as error:  # a full disk, a folder that was removed, whatever a writer of the user's raises
            self.writer = None
            warnings.warn(
                f"fit goes on without TensorBoard, for which nothing can be written ({error}); the points of earlier "
                f"epochs are kept",
                stacklevel=find_stack_level(),
            )

    def close(self) -> None:
        """Close the writer unless it is the user's."""
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
    """Wait until a new event file sorts last, because files are read in the order of the second in their names."""
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
