"""Supports of distributions: checks of values against a support, and properties such as discreteness."""

import copy
import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints
from torch.distributions.constraints import MixtureSameFamilyConstraint
from torch.fx.experimental.proxy_tensor import get_proxy_mode

SURFACES = ("simplex", "sphere", "lowercholesky", "lowertriangular", "corrcholesky", "positivedefinite", "symmetric")


def support_of(distribution: Any) -> Any | None:
    """Return the support of a distribution, or ``None`` if the distribution does not declare it."""
    try:
        return distribution.support
    except (NotImplementedError, AttributeError):  # torch's distributions need not declare their support
        return None


def without_mixtures(support: Any) -> Any:
    """Return a support in which the support of a component replaces that of each mixture; all are the same."""
    if isinstance(support, MixtureSameFamilyConstraint):
        return without_mixtures(support.base_constraint)
    if isinstance(support, constraints.independent):
        return constraints.independent(without_mixtures(support.base_constraint), support.reinterpreted_batch_ndims)
    return support


def is_real(distribution: Any) -> bool:
    """Return true if the support is all real numbers or all real vectors, or if no support is declared."""
    if bounded_base(distribution) is not None:
        return False
    support = support_of(distribution)
    while isinstance(support, constraints.independent | MixtureSameFamilyConstraint):
        support = support.base_constraint
    return support is None or support in (constraints.real, constraints.real_vector)


def is_positive(support: Any) -> bool:
    """Return whether a support is all positive numbers, with or without 0, or all vectors of such numbers."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    kinds = type(constraints.positive), type(constraints.nonnegative)
    return isinstance(support, kinds) and isinstance(support.lower_bound, int | float) and support.lower_bound == 0


def is_discrete(distribution: Any) -> bool:
    """Return whether a distribution declares that its values are discrete."""
    return bool(getattr(support_of(distribution), "is_discrete", False))


def inside_support(distribution: Any, value: Tensor) -> Tensor | None:
    """Return a mask in the batch shape, true for values in the support, or ``None`` if the support is not known."""
    support = support_of(distribution)
    if support is None:
        return None
    inside = _per_value(support.check(value), distribution, value)
    if (transformed := bounded_base(distribution)) is not None:  # the declared support is that of the last transform
        base_value = value
        for transform in reversed(transformed.transforms):
            base_value = transform.inv(base_value)
        support = support_of(transformed.base_dist)
        inside = inside & _per_value(support.check(base_value), distribution, value)  # type: ignore[union-attr]
    return inside


def _per_value(inside: Tensor, distribution: Any, value: Tensor) -> Tensor:
    """Reduce a mask of entries to a mask of events, which is true if all entries of an event are inside the support."""
    extra = inside.ndim - (value.ndim - len(distribution.event_shape))
    return inside if extra <= 0 else inside.flatten(-extra).all(-1)


def bounded_base(distribution: Any) -> Any | None:
    """Return the distribution if it transforms a bounded base distribution, else None.

    For an ``Independent``, the distribution inside it is tested and returned. The base distribution counts as bounded
    if its support is known and is not all reals.
    """
    while isinstance(distribution, torch.distributions.Independent):
        distribution = distribution.base_dist
    own = getattr(type(distribution), "support", None)
    if own is not torch.distributions.TransformedDistribution.support or is_real(distribution.base_dist):
        return None
    return None if support_of(distribution.base_dist) is None else distribution


def has_varying_support(distribution: Any) -> bool:
    """Return whether the support of a distribution may differ between draws or data."""
    return bounded_base(distribution) is not None or _varies(support_of(distribution))


def _varies(constraint: Any) -> bool:
    if isinstance(constraint, Tensor):
        return any(size > 1 and step != 0 for size, step in zip(constraint.shape, constraint.stride(), strict=True))
    return isinstance(constraint, constraints.Constraint) and any(map(_varies, vars(constraint).values()))


def moved_inside(distribution: Any, value: Tensor) -> tuple[Tensor, Tensor | None]:
    """Replace values outside the support by draws from the distribution.

    A program therefore never gets a value that it cannot use.

    Args:
        distribution: Distribution of a site.
        value: Value of the site, shape ``batch_shape + event_shape``.

    Returns:
        The value after the replacement, and a mask in the batch shape. The mask is true where the original value lies
        inside the support. The mask is ``None`` if the support is not known, or if all values are known to lie inside.
    """
    if is_real(distribution) or (inside := inside_support(distribution, value)) is None:
        return value, None
    if get_proxy_mode() is not None:  # values are not known while a graph is traced, and tracing must draw nothing
        return value, inside
    if bool(inside.all()):
        return value, None
    mask = inside.reshape(inside.shape + (1,) * len(distribution.event_shape))
    return torch.where(mask, value, distribution.sample().to(value)), inside


def measure(distribution: Any) -> str | None:
    """Return the name of the measure to which a density refers, or ``None`` if the support is not known.

    Two densities have a meaningful ratio if they refer to the same measure. Examples of measures are the
    counting measure, the Lebesgue measure, and the measure of a surface such as the simplex.
    """
    support = support_of(distribution)
    while isinstance(support, constraints.independent | MixtureSameFamilyConstraint):
        support = support.base_constraint
    if support is None:
        return None
    if support.is_discrete:
        return "counting"
    name = type(support).__name__.strip("_").lower()
    if is_periodic(distribution):
        return "angle"
    if isinstance(support, constraints.interval | constraints.half_open_interval):
        return "interval"
    return name if name in SURFACES else "Lebesgue"


def is_same_support(first: Any, second: Any) -> bool:
    """Return whether two supports are of the same type and have the same bounds."""
    return _numbers(first) == _numbers(second)


def _numbers(constraint: Any) -> Any:
    """Return the type and the numbers of a constraint, such as bounds, as plain values that can be compared."""
    if isinstance(constraint, Tensor):
        distinct = constraint.detach().double().unique()
        return distinct.tolist()
    if isinstance(constraint, constraints.Constraint):
        return type(constraint).__name__, {name: _numbers(part) for name, part in sorted(vars(constraint).items())}
    if isinstance(constraint, list | tuple):
        return [_numbers(part) for part in constraint]
    return constraint if isinstance(constraint, int | float | bool | str) else type(constraint).__name__


def coordinates(distribution: Any, value: Tensor) -> int:
    """Return the number of real coordinates of a value. A point of a simplex with n entries has n - 1 coordinates."""
    support = support_of(distribution)
    try:
        return math.prod(biject_to(support).inverse_shape(value.shape))
    except NotImplementedError:  # supports such as integers have no bijection
        return value.numel()


def is_periodic(distribution: Any) -> bool:
    """Return whether a distribution is a von Mises. Its values are angles, but torch declares a real support."""
    while hasattr(distribution, "base_dist"):
        distribution = distribution.base_dist
    return isinstance(distribution, torch.distributions.VonMises) or "vonmises" in type(distribution).__name__.lower()


def common_support(support: Any) -> Any | None:
    """Return a copy of a support whose bounds are numbers instead of tensors.

    If the entries of a bound's tensor differ, for example between data, return ``None``.
    """

    def collapsed(constraint: Any) -> Any:
        if not isinstance(constraint, constraints.Constraint):
            return constraint
        result = copy.copy(constraint)
        for name, part in vars(constraint).items():
            if isinstance(part, Tensor):
                values = part.unique()
                if values.numel() != 1:
                    raise LookupError
                setattr(result, name, values.item())
            elif isinstance(part, constraints.Constraint):
                setattr(result, name, collapsed(part))
        return result

    try:
        return collapsed(support)
    except LookupError:
        return None
