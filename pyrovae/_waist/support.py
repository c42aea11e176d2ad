"""The support of a distribution: which values have a probability, and whether that depends on parameters."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints


def support_of(distribution: Any) -> Any | None:
    """Return the support of a distribution, or ``None`` if it does not name one."""
    try:
        return distribution.support
    except (NotImplementedError, AttributeError):  # torch's distributions need not name their support
        return None


def is_real(distribution: Any) -> bool:
    """Return whether every vector of real numbers is in the support, as far as the distribution says."""
    support = support_of(distribution)
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support is None or support in (constraints.real, constraints.real_vector)


def inside_support(distribution: Any, value: Tensor) -> Tensor | None:
    """Return where a value lies in the support, in the batch shape, or ``None`` if the support is not known."""
    support = support_of(distribution)
    if support is None:
        return None
    inside: Tensor = support.check(value)
    extra = inside.ndim - (value.ndim - len(distribution.event_shape))
    return inside if extra <= 0 else inside.flatten(-extra).all(-1)


def is_same_support(first: Any, second: Any) -> bool:
    """Return whether two distributions of a site have the same support, so that it depends on no draw."""
    return _numbers(support_of(first)) == _numbers(support_of(second))


def _numbers(constraint: Any) -> Any:
    """Describe a constraint by its type and all numbers in it."""
    if isinstance(constraint, Tensor):
        distinct = constraint.detach().double().unique()
        return distinct.tolist()
    if isinstance(constraint, constraints.Constraint):
        return type(constraint).__name__, {name: _numbers(part) for name, part in sorted(vars(constraint).items())}
    if isinstance(constraint, list | tuple):
        return [_numbers(part) for part in constraint]
    return constraint if isinstance(constraint, int | float | bool | str) else type(constraint).__name__


def is_periodic(distribution: Any) -> bool:
    """Return whether a distribution is of angles, whose support torch calls the real numbers."""
    while hasattr(distribution, "base_dist"):
        distribution = distribution.base_dist
    return isinstance(distribution, torch.distributions.VonMises) or "vonmises" in type(distribution).__name__.lower()
