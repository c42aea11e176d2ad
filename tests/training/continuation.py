"""Training runs that stop and continue, and their comparison."""

import copy
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor, nn

import pyrovae as pv

Result = tuple[dict[str, Tensor], pv.History]


def fitted(make: Callable[[], nn.Module], epochs: int, folder: Path | None, trash: int, **options: Any) -> Result:
    """Train as a new process would: other contents of the generators and Pyro's store have no effect."""
    pyro.set_rng_seed(7)
    pyro.clear_param_store()
    module, x = make(), torch.bernoulli(torch.full((22, 6), 0.4))
    pyro.set_rng_seed(0 if options.get("seed", 1) is None and not trash else trash)
    usual = {"valid": x[14:], "batch_size": 5, "learning_rate": 0.02, "seed": 1, "progress": False}
    options = copy.deepcopy({**usual, **options})
    history = pv.fit(module, x[:14], epochs=epochs, checkpoint=folder, **options)
    stored = {f"stored {name}": value.detach().clone() for name, value in pyro.get_param_store().named_parameters()}
    return module.state_dict() | stored, history


def assert_same(found: Result, expected: Result) -> None:
    for column in ("train", "valid", "kl_weight", "learning_rate", "best_epoch", "skipped", "interrupted"):
        assert getattr(found[1], column) == getattr(expected[1], column), column
    assert found[0].keys() == expected[0].keys()
    assert [name for name, tensor in found[0].items() if not torch.equal(tensor, expected[0][name])] == []


class Stopping:
    """A binarization that sends the process a signal at a call. Calls before the training are not counted."""

    def __init__(self, at: int, signals: tuple[signal.Signals, ...] = (signal.SIGINT,)) -> None:
        self.left, self.signals = at, signals

    def __call__(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.left -= 1
            if self.left == 0:
                for each in self.signals:
                    signal.raise_signal(each)
        return pv.data.binarize(x)


NEVER = Stopping(-1)


def newest(folder: Path) -> str:
    return max(path.name for path in folder.glob("checkpoint-*.pt"))
