"""Support of normalizing flows from the library zuko, whose flows do not declare a support."""

from typing import Any

from pyro.contrib.zuko import ZukoToPyro
from torch.distributions import constraints


def support_of_flow(distribution: Any) -> constraints.Constraint | None:
    """Return the support of a zuko flow, wrapped for Pyro or not, or ``None`` if the support is not known.

    The transform of a zuko flow maps data to noise. If the base distribution covers the whole codomain of this
    transform, the support of the flow is the domain of the transform. A circular flow, for example, declares all real
    vectors as its domain, but its base covers only a box, so its support is unknown.

    Example:
        >>> import zuko
        >>> from pyro.contrib.zuko import ZukoToPyro
        >>> from pyrovae.distributions import support_of_flow
        >>> support_of_flow(ZukoToPyro(zuko.flows.MAF(5)()))
        IndependentConstraint(Real(), 1)
    """
    flow: Any = distribution.dist if isinstance(distribution, ZukoToPyro) else distribution
    try:
        base, transform = flow.base, flow.transform
    except AttributeError:
        return None
    try:
        covered, domain = base.support, transform.domain
        codomain = transform.codomain
    except (AttributeError, NotImplementedError):  # torch's and Zuko's classes need not declare these properties
        return None
    return domain if _innermost(covered) is _innermost(codomain) else None


def _innermost(constraint: Any) -> Any:
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return constraint
