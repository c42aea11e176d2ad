"""An observer that writes event files for TensorBoard. It does not change the results of a run.

After every epoch it writes the columns of the history and the norm of the last gradient. Every few epochs it writes
histograms of parameters and gradients, and images. TensorBoard's step is the index of the epoch, as in the
history.
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

_TAGS = {  # tags of the history's columns
    "train": "bound/train",
    "valid": "bound/valid",
    "learning_rate": "learning_rate",
    "kl_weight": "kl_weight",
    "seconds": "seconds",
    "skipped": "skipped_steps",
}


class Writer(Protocol):
    """The methods that a user's ``SummaryWriter`` must have."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any:
        """Add a point to a curve."""

    def add_histogram(self, tag: str, values: Tensor, global_step: int) -> Any:
        """Add a histogram of all entries of a tensor."""

    def add_image(self, tag: str, img_tensor: Tensor, global_step: int) -> Any:
        """Add an image, shape ``(3, height, width)``."""

    def flush(self) -> Any:
        """Write all additions to disk."""


class TensorBoard(Observer):
    """Observer that writes a run for TensorBoard.

    Args:
        place: Folder of the event files, or a user's writer. If the folder holds points of an earlier run, TensorBoard
            hides them. If the run continues from a checkpoint, TensorBoard hides only the points of the epochs after
            the checkpoint. With a user's writer, no points are hidden, and the writer is not closed.
        every: Number of epochs between two sets of histograms and images.

    Raises:
        TypeError: If ``place`` is neither a path nor a writer.
        ModuleNotFoundError: If ``place`` is a folder and TensorBoard is not installed.
    """

    def __init__(self, place: str | Path | Writer, every: int) -> None:
        self.every, self.is_own = every, isinstance(place, str | os.PathLike)
        self.writer: Any = None
        self.pictures: Pictures
        if self.is_own:
            self.summary_writer = _summary_writer()
        elif not hasattr(place, "add_scalar"):
            raise TypeError(f"tensorboard must be a folder or a SummaryWriter of torch, got {place!r}")
        self.place: Any = place

    def begin(self, run: Run) -> None:
        """Prepare the writer.

        A writer that is created for a folder tells TensorBoard to hide the points of an earlier run. If the run
        continues from a checkpoint, only the points after the epoch of the checkpoint are hidden.

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
                f"TensorBoard's files cannot be written to {str(self.place)!r} ({error.strerror or error}). Pass a "
                f"folder that is writable."
            ) from error

    def after_epoch(self, run: Run) -> None:
        """Add the last epoch of the history. A failure to write causes a warning, because the run can continue."""
        if self.writer is None:
            return
        history = run.state.history
        try:
            self._add(self.writer, len(history.train) - 1, history, run.step.gradients.parameters)
            self.writer.flush()  # before the next checkpoint, so that a run that continues from it misses no points
        except Exception as error:  # a full disk, a removed folder, or any error of a user's writer
            self.writer = None
            warnings.warn(
                f"fit continues without TensorBoard, whose files cannot be written ({error}). The values of earlier "
                f"epochs are kept.",
                stacklevel=find_stack_level(),
            )

    def close(self) -> None:
        """Close the writer unless it belongs to the user."""
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
                if are_finite([tensor]):  # the gradient of a skipped step is not
                    writer.add_histogram(f"{kind}/{name}", tensor, epoch)
        for name, picture in self.pictures().items():
            writer.add_image(name, picture, epoch)


def _wait_for_a_later_name(folder: Path) -> None:
    """Wait until no event file has the current second in its name. The name of a new file then sorts last."""
    while any(folder.glob(f"events.out.tfevents.{int(time.time()):010d}.*")):
        time.sleep(0.05)


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter  # TensorBoard is optional, and its import takes a second
    except ImportError as error:
        raise ModuleNotFoundError(
            "fit(tensorboard=) needs the package tensorboard, which is not installed. Install it with pip install "
            "'pyrovae[tensorboard]', or omit tensorboard=.",
            name="tensorboard",
        ) from error
    return SummaryWriter
