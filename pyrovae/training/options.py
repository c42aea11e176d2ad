"""Checks of the options of ``fit``, one by one and in combination."""

import math
import warnings
from typing import Any, get_args

import torch
from pyro.infer import ELBO
from torch import nn

from pyrovae._warnings import find_stack_level
from pyrovae.arguments import check_whole
from pyrovae.training.run import SchedulerStep
from pyrovae.training.steps import NonFinite


def check_options(
    module: nn.Module,
    valid: Any,
    objective: Any,
    *,
    learning_rate: float,
    patience: int | None,
    kl_warmup: Any,
    clip_norm: float | None,
    on_nonfinite: str,
    scheduler_step: str,
    callback: Any,
    **counts: int,
) -> None:
    """Raise an error for options with which training is impossible.

    Raises:
        TypeError: If the module, the objective, the warm-up or the callback has an unsupported type, or a count is not
            an integer.
        ValueError: If an option is out of range, or has no effect without another option.
    """
    if not (objective is None or isinstance(objective, ELBO)):
        raise TypeError(f"the objective must be a Pyro ELBO such as Trace_ELBO() or IWAE(5), got {objective!r}")
    _check_warmup(kl_warmup)
    _check_trainable(module, objective, has_warmup=callable(kl_warmup) or kl_warmup > 0)
    if not 0 <= learning_rate < math.inf:
        raise ValueError(f"learning_rate must be finite and at least 0, got {learning_rate}")
    counts |= {"patience": 1 if patience is None else patience}
    check_whole(**counts)
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    if patience is not None and valid is None:
        raise ValueError("patience needs validation data. Pass valid=, or omit patience=.")
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"clip_norm, the largest norm of a gradient, must be positive, got {clip_norm}")
    if on_nonfinite not in get_args(NonFinite):
        raise ValueError(f"on_nonfinite must be one of {get_args(NonFinite)}, got {on_nonfinite!r}")
    if scheduler_step not in get_args(SchedulerStep):
        raise ValueError(f"scheduler_step must be one of {get_args(SchedulerStep)}, got {scheduler_step!r}")
    if not (callback is None or callable(callback)):
        raise TypeError(f"callback must be a function of the history, got {callback!r}")


def check_schedule(schedule: Any, scheduler_step: str, epochs: int, steps: int) -> None:
    """Check that a schedule fits the length of the run.

    Raises:
        ValueError: If ``total_steps`` of the schedule is less than the number of steps that the schedule makes in the
            run, or if a ``ReduceLROnPlateau`` is stepped once per batch although it needs the bound of an epoch.

    Warns:
        UserWarning: If a schedule is stepped once per epoch and is longer than the run.
    """
    is_plateau = isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau)
    if scheduler_step == "batch" and is_plateau:
        raise ValueError("ReduceLROnPlateau needs the bound of an epoch. Pass scheduler_step='epoch'.")
    total = getattr(schedule, "total_steps", None)
    if total is None:
        return
    name, needed = type(schedule).__name__, epochs * steps if scheduler_step == "batch" else epochs
    if total < needed:
        raise ValueError(
            f"{name} has total_steps={total}, but scheduler_step={scheduler_step!r} makes {needed} steps in this run. "
            f"Set total_steps={needed}"
        )
    if scheduler_step == "epoch" and total > needed:
        warnings.warn(
            f"{name} has total_steps={total}, but scheduler_step='epoch' makes only {epochs} steps in this run, so the "
            f"schedule does not reach its end. Set scheduler_step='batch' and total_steps={epochs * steps}, or set "
            f"total_steps={epochs}",
            stacklevel=find_stack_level(),
        )


def _check_warmup(kl_warmup: Any) -> None:
    if callable(kl_warmup):
        return
    if isinstance(kl_warmup, bool) or not isinstance(kl_warmup, int | float):
        raise TypeError(f"kl_warmup must be a number of epochs or a function of the epoch, got {kl_warmup!r}")
    if not 0 <= kl_warmup < math.inf:
        raise ValueError(f"kl_warmup, a number of epochs, must be finite and at least 0, got {kl_warmup}")


def _check_trainable(module: Any, objective: ELBO | None, has_warmup: bool) -> None:
    name = type(module).__name__
    roles = [role for role in ("model", "guide", "loss") if callable(getattr(module, role, None))]
    if roles not in (["model", "guide"], ["model", "guide", "loss"], ["loss"]):
        has = f"only {' and '.join(roles)}" if roles else "none of them"
        raise TypeError(
            f"fit needs a module with a Pyro model and a guide, or a module with only a loss, but {name} has {has}. "
            f"Pass such a module, or a pair (model, guide) of programs."
        )
    if roles == ["loss"] and (objective is not None or has_warmup):
        raise ValueError(
            f"{name} has its own loss and no density, so there is no bound and no KL term to weight. Omit objective= "
            f"and kl_warmup=."
        )
