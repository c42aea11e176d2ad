"""A likelihood of tables with columns of different types."""

from collections.abc import Callable, Mapping
from typing import Any

import pyro.distributions as dist
from torch import Tensor, nn

from pyrovae.components import Described
from pyrovae.distributions import Columns, entrywise


class Joint(Described):
    r"""Likelihood of a row of a table, :math:`p(x \mid z) = \prod_c p_c(x_c \mid z)`, one factor for each column.

    Columns may be real, binary, categorical or counts. NaN marks a missing entry, which has log-probability 0. With
    ``Masked(Joint(...))``, a mask marks the missing entries instead, and :func:`pyrovae.evaluation.impute` can impute
    all columns. Imputed categories are codes, and imputed counts have the unit of the table. The mean of an imputed
    category is meaningful only if its codes are ordered.

    Args:
        columns: Likelihood of each column by name, in the order of the table. A tuple of names stands for adjacent
            columns with one likelihood, which has one entry for each name.
        network: Shared layers, which map ``(*batch, latent) -> (*batch, features)``. If given, the likelihoods of the
            columns get the features instead of z.

    Attributes:
        column_names: Names of all columns, in the order of the table. A pandas table with another order of the columns
            raises an error.

    Raises:
        TypeError: When called, if the entries of a likelihood are not independent given z.
        ValueError: If there are no columns or a name occurs twice. When called, if a likelihood does not have one entry
            for each of its columns. When scored, if a value is outside the support of its column.

    Source:
        *Handling Incomplete Heterogeneous Data Using VAEs* (Nazábal et al., 2020).

    Example:
        >>> import torch, pyrovae as pv
        >>> mlp, lik = pv.networks.mlp, pv.likelihoods
        >>> likelihood = lik.Joint(
        ...     {
        ...         ("height", "weight"): lik.Normal(mlp(16, 2), learn_scale=True),
        ...         "smokes": lik.Bernoulli(mlp(16, 1)),
        ...         "blood group": lik.Categorical(mlp(16, 4), levels=4),
        ...         "visits": lik.Poisson(mlp(16, 1)),
        ...     },
        ...     network=torch.nn.Sequential(mlp(2, 16), torch.nn.ReLU()),
        ... )
        >>> rows = torch.tensor([[0.3, -0.1, 1.0, 2.0, 7.0], [torch.nan, 0.4, 0.0, torch.nan, 2.0]])
        >>> likelihood(torch.zeros(2, 2)).log_prob(rows).isfinite().tolist()
        [True, True]
        >>> likelihood(torch.zeros(2)).log_prob(torch.full((5,), torch.nan)).tolist()  # all entries are missing
        0.0
    """

    def __init__(
        self,
        columns: Mapping[str | tuple[str, ...], Callable[..., Any]],
        network: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.groups = [(key,) if isinstance(key, str) else tuple(key) for key in columns]
        self.column_names = [name for group in self.groups for name in group]
        if not self.column_names or len(set(self.column_names)) < len(self.column_names):
            raise ValueError(
                f"likelihoods.Joint: columns={self.column_names} must hold at least one column and must not repeat a "
                f"name"
            )
        self.parts = nn.ModuleList(
            [part if isinstance(part, nn.Module) else _Called(part) for part in columns.values()]
        )
        self.network = network

    @property
    def columns(self) -> dict[tuple[str, ...], Any]:
        """Dictionary of the likelihoods. Each key is the tuple of the names of the likelihood's columns."""
        return dict(zip(self.groups, self.parts, strict=True))

    def forward(self, *context: Tensor) -> dist.TorchDistribution:
        """Return p(x | z) for ``z``, shape ``(*batch, latent)``, with event shape ``(columns,)``."""
        seen = context if self.network is None else (self.network(*context),)
        entries = []
        for group, part in self.columns.items():
            p = part(*seen)
            if p.event_shape != (len(group),):
                raise ValueError(
                    f"likelihoods.Joint: the likelihood of the columns {group} has event shape {tuple(p.event_shape)}, "
                    f"but {(len(group),)} is required. Change the output of its network."
                )
            entries.append(entrywise(p, f"likelihoods.Joint, columns {group},"))
        joined: Any = Columns(self.column_names, entries).to_event(1)
        return joined


class _Called(nn.Module):
    """A function wrapped as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *context: Tensor) -> Any:
        return self.function(*context)
