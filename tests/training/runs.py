"""Seeded training runs and their comparison."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pytest
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.training.history import History


class Run(NamedTuple):
    history: History
    state: dict[str, Tensor]


def fitted(make: Callable[[], nn.Module], train: Any, **options: Any) -> Run:
    """Train from the same start with the same noise."""
    pyro.set_rng_seed(7)
    pyro.clear_param_store()
    module = make()
    history = pv.fit(module, train, seed=1, progress=False, learning_rate=0.02, **options)
    stored = {f"stored {name}": value.detach() for name, value in pyro.get_param_store().named_parameters()}
    return Run(history, module.state_dict() | stored)


def assert_same_run(found: Run, expected: Run, tolerance: float) -> None:
    for column in ("train", "valid", "kl_weight", "learning_rate", "best_epoch"):
        assert getattr(found.history, column) == pytest.approx(getattr(expected.history, column), rel=tolerance)
    torch.testing.assert_close(found.state, expected.state, rtol=tolerance, atol=tolerance)
