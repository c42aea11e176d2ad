"""Observer that writes event files for TensorBoard. In pyrovae, only ``fit`` uses it."""

from pyrovae.training.observers.tensorboard.board import TensorBoard, Writer

__all__ = ["TensorBoard", "Writer"]
