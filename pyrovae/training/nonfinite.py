"""Losses and gradients that are NaN or infinite, and the search for the first site or parameter that is not finite.

A run checks the sum of an epoch's losses once, at the end of the epoch. If the sum or a parameter is not finite, the
run returns to a state that it has kept in memory, repeats the steps with the same noise, and checks each step. The
error therefore names the first step that failed.

With validation data, the module has its best weights after the error. Without validation data, the module has the state
from before the failed step. There is one exception: if loss and gradients are finite and only an updated parameter is
not, the module has the state from after this step.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyrovae._waist.sites import is_enumerated

if TYPE_CHECKING:
    from pyrovae.training.history import History


class DivergenceError(FloatingPointError):
    """A loss, a gradient, a parameter or a bound became NaN or infinite.

    Attributes:
        history: History of the run up to the error.
        epoch: Index of the epoch of the error, equal to the length of the history.
        step: Index of the step in that epoch. None if the bound on the validation data is not finite, or if the step
            is unknown.
        checkpoint: Path of the last checkpoint before the error; None without checkpoints.
    """

    def __init__(self, message: str, history: "History", epoch: int, step: int | None, checkpoint: Path | None) -> None:
        super().__init__(message, history, epoch, step, checkpoint)  # all arguments, so that the error can be unpickled
        self.history, self.epoch, self.step, self.checkpoint = history, epoch, step, checkpoint

    def __str__(self) -> str:
        return str(self.args[0])


class NotFiniteError(Exception):
    """A number is not finite. The message says which number, or is empty if the cause has not been found."""


def are_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether all tensors are finite.

    The sums of the tensors are checked first, all together. If all sums are finite, the host waits for the device only
    once. The tensors may be on several devices: a loss that is a Python number becomes a tensor on the CPU, and
    gradients are on the device of the run.
    """
    tensors = list(tensors)
    if not tensors:
        return True
    sums = [tensor.detach().sum().isfinite() for tensor in tensors]
    together = torch.stack([each.to(sums[-1].device) for each in sums])
    return bool(together.all()) or all(bool(tensor.isfinite().all()) for tensor in tensors)  # a sum may overflow


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return a text with the name of the first tensor that is not finite, and its numbers of NaN and infinite entries.

    Return None if all tensors are finite.
    """
    for name, tensor in tensors.items():
        if not are_finite([tensor]):
            return f"{name!r} ({what_is_wrong(tensor)})"
    return None


def what_is_wrong(tensor: Tensor) -> str:
    """Return the numbers of NaN entries and of infinite entries of a tensor as text."""
    kinds = {"NaN": tensor.isnan(), "infinite": tensor.isinf()}
    return ", ".join(f"{int(of.sum())} of {of.numel()} {kind}" for kind, of in kinds.items() if of.any())


class NonFiniteFinder(Messenger):
    """Handler that records the first site, in execution order, whose value or log-probability is not finite."""

    def __init__(self) -> None:
        super().__init__()
        self.found: str | None = None

    def _pyro_post_sample(self, msg: Any) -> None:
        if self.found is None and not site_is_subsample(msg):
            self.found = _wrong_in(msg)

    def explain(self, name: str, bound: float) -> str:
        """Return a text for an error message: the value of a bound and, if found, the site that is not finite."""
        return f"the {name} objective became {bound}" + (f": {self.found}" if self.found else "")


def _wrong_in(site: Any) -> str | None:
    name, value, family = site["name"], site["value"], type(_innermost(site["fn"])).__name__
    if value.is_floating_point() and not are_finite([value]):
        return f"the first site that is not finite is {name!r}, in its {family} draws ({what_is_wrong(value)})"
    log_prob = site["fn"].log_prob(value, *site["args"], **site["kwargs"]).detach()
    if isinstance(site["mask"], Tensor):
        log_prob = log_prob.masked_fill(~site["mask"], 0)
    if is_enumerated(site):  # an enumerated value may have probability zero
        log_prob = log_prob.masked_fill(log_prob == -torch.inf, 0)
    if are_finite([log_prob]) or site["mask"] is False:
        return None
    return (
        f"the first site that is not finite is {name!r}, in its {family} log-probabilities ({what_is_wrong(log_prob)})"
    )


def _innermost(fn: Any) -> Any:
    while hasattr(fn, "base_dist") and not hasattr(fn, "transforms"):
        fn = fn.base_dist
    return fn
