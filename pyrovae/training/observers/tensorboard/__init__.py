"""Output for TensorBoard. This folder can be deleted together with its import in ``fit``."""

from pyrovae.training.observers.tensorboard.board import TensorBoard, Writer

__all__ = ["TensorBoard", "Writer"]
