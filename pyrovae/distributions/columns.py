"""Distribution of the rows of a table. The columns may have distributions of different kinds."""

from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyrovae.distributions.unit_interval import OpenUnitInterval


class OutsideColumnError(ValueError):
    """Error for an observed entry of a table that lies outside the support of its column's distribution."""


class Columns(TorchDistribution):
    """Distribution of the entries of a table's rows, with a distribution for each column; NaN marks a missing entry.

    The columns lie along the last batch dimension. A missing entry has log-probability 0, so
    ``Columns(...).to_event(1)`` scores a row by the density of its observed entries.

    Args:
        names: Names of all columns, for error messages.
        parts: Distributions in the order of the columns. A distribution of ``width`` consecutive columns has event
            shape ``()`` and batch shape ``(*batch, width)``.

    Raises:
        ValueError: In ``log_prob``, if a value that is not missing lies outside the support of its column; the message
            names the column.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from pyrovae.distributions import Columns
        >>> columns = Columns(["age", "smokes"], [dist.Normal(torch.zeros(1), 1.0), dist.Bernoulli(torch.ones(1) / 2)])
        >>> columns.log_prob(torch.tensor([torch.nan, 1.0]))
        tensor([ 0.0000, -0.6931])
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, names: Sequence[str], parts: Sequence[Any]) -> None:
        self.names, self.parts = list(names), list(parts)
        self.widths = [part.batch_shape[-1] for part in parts]
        batch = torch.broadcast_shapes(*(part.batch_shape[:-1] for part in parts))
        super().__init__(torch.Size([*batch, sum(self.widths)]), validate_args=False)

    @property
    def support(self) -> Any:
        """Constraint that allows NaN and the values in the support of each column."""
        return _ColumnSupport(self)

    @property
    def mean(self) -> Tensor:
        """The mean of each column; the mean of a categorical column is the mean of its codes."""
        return self._join(lambda part: part.mean)

    @property
    def variance(self) -> Tensor:
        """The variance of each column."""
        return self._join(lambda part: part.variance)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Columns":
        """Return the same distribution with a larger batch shape."""
        batch = torch.Size(batch_shape)[:-1]
        parts = zip(self.parts, self.widths, strict=True)
        return Columns(self.names, [part.expand(torch.Size([*batch, width])) for part, width in parts])

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw rows, shape ``(*sample_shape, *batch, columns)``."""
        shape = torch.Size(sample_shape)
        return self._join(lambda part: part.sample(shape), shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of each entry, 0 where ``value`` is NaN."""
        validate = torch.distributions.Distribution._validate_args
        scores, start = [], 0
        for part, own in zip(self.parts, value.split(self.widths, dim=-1), strict=True):
            missing = own.isnan()
            filled = torch.where(missing, _legal(part), own)
            if validate:
                self._check(part, filled, start)
            scores.append(torch.where(missing, 0.0, part.log_prob(filled)))
            start += own.shape[-1]
        batch = torch.broadcast_shapes(*(score.shape[:-1] for score in scores))
        return torch.cat([score.expand(*batch, -1) for score in scores], dim=-1)

    def _join(self, function: Callable[[Any], Tensor], sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        batch = sample_shape + self.batch_shape[:-1]
        return torch.cat([function(part).expand(*batch, -1) for part in self.parts], dim=-1)

    def _check(self, part: Any, value: Tensor, start: int) -> None:
        """Raise OutsideColumnError, which names the column, if values of a column lie outside the column's support."""
        inside = part.support.check(value).expand(value.shape).reshape(-1, value.shape[-1]).all(0)
        if not inside.all():
            column = int((~inside).nonzero()[0])
            own, family = value[..., column], type(getattr(part, "base_dist", part)).__name__
            raise OutsideColumnError(
                f"column {self.names[start + column]!r} holds values from {own.min():.4g} to {own.max():.4g}, which "
                f"a {family} cannot score. Recode the column, or choose another likelihood for it."
            )


def names_column(error: BaseException | None) -> bool:
    """Return whether an error or one of its causes is an :class:`OutsideColumnError`."""
    while error is not None and not isinstance(error, OutsideColumnError):
        error = error.__cause__ or error.__context__
    return error is not None


class _ColumnSupport(constraints.Constraint):
    """Constraint that allows the values in the support of each column, and NaN for missing values."""

    def __init__(self, columns: Columns) -> None:
        self.columns = columns
        super().__init__()

    @property
    def is_discrete(self) -> bool:  # type: ignore[override]
        """Return whether every column is discrete."""
        return all(part.support.is_discrete for part in self.columns.parts)

    def check(self, value: Tensor) -> Tensor:
        parts = zip(self.columns.parts, value.split(self.columns.widths, dim=-1), strict=True)
        return torch.cat([own.isnan() | part.support.check(own) for part, own in parts], dim=-1)


def _legal(part: Any) -> float:
    """Return a number that lies in the support of a distribution and can replace missing values."""
    open_below = isinstance(part.support, OpenUnitInterval | constraints.greater_than)
    return 0.5 if open_below else 0.0


def entrywise(distribution: Any, owner: str) -> Any:
    """Return ``distribution`` without its ``.to_event(n)``, so that each entry has a log-probability of its own.

    Raises:
        TypeError: If the entries are not independent.
    """
    independent = isinstance(distribution, dist.Independent | torch.distributions.Independent)
    if not independent or len(distribution.event_shape) != distribution.reinterpreted_batch_ndims:
        raise TypeError(
            f"{owner} scores the entries one by one, but the entries of a {type(distribution).__name__} are not "
            f"independent given z. Return a distribution made by .to_event(n)."
        )
    return distribution.base_dist
