"""Messages of a run as TensorBoard and logging receive them, and runs that produce them."""

import logging
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

import pyrovae as pv

fit = partial(pv.fit, progress=False)


def events(folder: Path) -> Any:
    """Return everything that TensorBoard reads in a folder."""
    kept = EventAccumulator(str(folder), dict.fromkeys(("scalars", "histograms", "images", "tensors"), 0))
    return kept.Reload()


def curve(kept: Any, tag: str) -> dict[int, float]:
    points = [(point.step, point.value) for point in kept.Scalars(tag)]
    assert len({step for step, _ in points}) == len(points)
    return dict(points)


def as_curve(column: list[float]) -> dict[int, float]:
    return {epoch: float(np.float32(value)) for epoch, value in enumerate(column)}


def assert_is(kept: Any, history: pv.History) -> None:
    """Assert that the curves equal the columns of the history."""
    assert curve(kept, "bound/train") == as_curve(history.train)
    assert curve(kept, "bound/valid") == as_curve(history.valid)
    assert curve(kept, "learning_rate") == as_curve(history.learning_rate)
    assert curve(kept, "kl_weight") == as_curve(history.kl_weight)
    assert curve(kept, "seconds") == as_curve(history.seconds)
    assert curve(kept, "skipped_steps") == as_curve(history.skipped)


def images(*event: int, n: int = 20) -> Tensor:
    return torch.rand(n, *event, generator=torch.Generator().manual_seed(1)).round()


def image_vae(*event: int) -> pv.VAE:
    layers = nn.Flatten(), nn.Linear(int(np.prod(event)), 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 4)
    return pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Bernoulli(pv.networks.mlp(2, 8, event)),
        pv.posteriors.DiagonalNormal(nn.Sequential(*layers)),
    )


class Copying(nn.Module):
    """A model that reconstructs its input, and draws one image of ones."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def loss(self, x: Tensor) -> Tensor:
        return (x.mean() - self.weight).square()

    def reconstruct(self, x: Tensor) -> Tensor:
        return x

    def generate(self, n: int) -> Tensor:
        return torch.ones(n, 4, 5)


class Recorder:
    """A writer that records its arguments."""

    def __init__(self) -> None:
        self.steps: dict[str, list[int]] = {}
        self.readable: list[int] = []

    def note(self, tag: str, value: Any, step: int) -> None:
        self.steps.setdefault(tag, []).append(step)

    add_scalar = add_histogram = add_image = note

    def flush(self) -> None:
        self.readable = self.steps["bound/train"].copy()


def messages(caplog: pytest.LogCaptureFixture, level: int = logging.INFO) -> list[str]:
    told = [record for record in caplog.records if record.levelno >= level]
    assert all(record.name.startswith("pyrovae.") for record in told)
    return [re.sub(r"\d+\.\d+", "#", record.getMessage()) for record in told]
