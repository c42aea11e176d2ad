"""Check that the columns of tables are in the order that the programs expect."""

from collections.abc import Iterable
from typing import Any, Protocol

from torch import nn


class Tables(Protocol):
    """Data for the arguments of the programs. An argument may be a pandas table.

    Attributes:
        name: Name of the data in error messages.
        column_names: For each argument of the programs, the names of its columns; empty if the argument is not a table.
    """

    name: str
    column_names: tuple[tuple[str, ...], ...]


def check_column_names(data: Tables, modules: Iterable[nn.Module], *others: Tables) -> None:
    """Check that the columns of tables are in the order that the programs and the training data require.

    Data without names, such as tensors, are not checked.

    Args:
        data: Data that may hold tables of pandas.
        modules: Modules of the programs. A module with the attribute ``column_names``, such as
            :class:`pyrovae.likelihoods.Joint`, fixes the order of the columns.
        *others: Data on which the programs were trained; tables among these data also fix the order of the columns.

    Raises:
        ValueError: If a table has the same columns in another order.
    """
    stated: list[tuple[str, Any]] = [(type(module).__name__, getattr(module, "column_names", ())) for module in modules]
    orders = [(owner, tuple(names)) for owner, names in stated if names]
    orders += [(other.name, names) for other in others for names in other.column_names if names]
    for found in data.column_names:
        for owner, order in orders:
            if found != order and sorted(found) == sorted(order):
                raise ValueError(
                    f"{data.name} is a table with the columns {list(found)}, but {owner} has them in the order "
                    f"{list(order)}. Columns are matched by position, so reorder the table: table[{list(order)}]."
                )
