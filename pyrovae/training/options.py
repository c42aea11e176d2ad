"""The options of ``fit``: which there are, and which go together."""

import math
from typing import Any, get_args

from pyro.infer import ELBO
from torch import nn

from pyrovae.arguments import Data, check_whole
from pyrovae.training.steps import NonFinite


def check_options(
    module: nn.Module,
    valid: Data | None,
    objective: Any,
    *,
    learning_rate: float,
    patience: int | None,
    kl_warmup: int,
    clip_norm: float | None,
    on_nonfinite: str,
    **counts: int,
) -> None:
    """Refuses what cannot be trained so.

    Raises:
        TypeError: If the module or the objective is none, or a count is no whole number.
        ValueError: If an option is out of range, or useless without another.
    """
    if not (objective is None or isinstance(objective, ELBO)):
        raise TypeError(f"the objective must be a Pyro ELBO such as Trace_ELBO() or IWAE(5), got {objective!r}")
    _check_trainable(module, objective, kl_warmup)
    if not 0 <= learning_rate < math.inf:
        raise ValueError(f"learning_rate must be a finite number, at least 0, got {learning_rate}")
    check_whole(**counts, kl_warmup=kl_warmup, patience=1 if patience is None else patience)
    for name, count in {**counts, "patience": 1 if patience is None else patience}.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    if kl_warmup < 0:
        raise ValueError(f"kl_warmup is a number of epochs, at least 0, got {kl_warmup}")
    if patience is not None and valid is None:
        raise ValueError("patience watches validation data; give valid=, or no patience")
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"clip_norm is the largest norm of a gradient, above 0, got {clip_norm}")
    if on_nonfinite not in get_args(NonFinite):
        raise ValueError(f"on_nonfinite is one of {get_args(NonFinite)}, got {on_nonfinite!r}")


def _check_trainable(module: Any, objective: ELBO | None, kl_warmup: int) -> None:
    name = type(module).__name__
    roles = [role for role in ("model", "guide", "loss") if callable(getattr(module, role, None))]
    if roles not in (["model", "guide"], ["model", "guide", "loss"], ["loss"]):
        has = f"only {' and '.join(roles)}" if roles else "none of them"
        raise TypeError(f"fit trains a module that has a Pyro model and guide, or a loss; {name} has {has}")
    if roles == ["loss"] and (objective is not None or kl_warmup):
        raise ValueError(
            f"{name} has a loss of its own and no density, so there is no bound and no KL term to weight; leave out "
            f"objective= and kl_warmup="
        )
