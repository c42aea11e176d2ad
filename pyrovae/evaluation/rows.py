"""Columns of a result with one row for each datum, and warnings about rows that are NaN or -inf."""

import warnings
from collections.abc import Mapping

import numpy as np

from pyrovae._warnings import find_stack_level

Dims = dict[str, tuple[str, ...]]  # dimensions by name of the column


class Rows:
    """Columns of a result. A column is an array with one row for each datum; rows of unfinished data hold no results.

    The results of each batch are copied into the columns. If each batch had small arrays of its own, these arrays would
    lie between large tensors and fragment the heap.
    """

    def __init__(self, size: int, dims: Dims) -> None:
        self.size, self.dims, self.done = size, dims, 0
        self.columns: dict[str, np.ndarray] = {}

    def add(self, found: Mapping[str, np.ndarray], dims: Dims) -> None:
        """Append rows for data that are finished, and record the dimensions of the columns."""
        self.dims.update(dims)
        count = 0
        for name, values in found.items():
            axis = self.axis(name)
            if name not in self.columns:
                shape = (*values.shape[:axis], self.size, *values.shape[axis + 1 :])
                self.columns[name] = np.empty(shape, values.dtype)
            elif not np.can_cast(values.dtype, self.columns[name].dtype, "same_kind"):
                self.columns[name] = self.columns[name].astype(values.dtype)  # a column of counts may receive NaN
            count = values.shape[axis]
            place = (slice(None),) * axis + (slice(self.done, self.done + count),)
            self.columns[name][place] = values
        self.done += count

    def arrays(self, stop: int) -> dict[str, np.ndarray]:
        """Return the first ``stop`` rows of each column, by name of the column."""
        return {
            name: values[(slice(None),) * self.axis(name) + (slice(stop),)] for name, values in self.columns.items()
        }

    def check(self) -> None:
        """Warn about finished data whose results are NaN or whose ``log_likelihood`` is -inf.

        Raises:
            FloatingPointError: If ``log_likelihood`` is NaN in every row.
        """
        values = self.columns.get("log_likelihood")
        if values is None:
            self._warn_of_missing()
            return
        values = values[: self.done].reshape(self.done, -1)
        missing = np.flatnonzero(np.isnan(values).all(1))
        if len(missing) == self.done:
            raise FloatingPointError(
                f"log-weights of all {self.done} data are NaN or infinite. The model has diverged, or values in the "
                f"data are too large. Check the parameters of the model and the scales that its networks return."
            )
        if len(missing):
            warnings.warn(
                f"log-weights of data {_listed(missing)} ({len(missing)} of {self.done}) are NaN or infinite, and "
                f"their rows of the result are NaN. Inspect these data.",
                stacklevel=find_stack_level(),
            )
        zero = np.flatnonzero(np.isneginf(values).all(1))
        if len(zero):
            warnings.warn(
                f"all draws of data {_listed(zero)} ({len(zero)} of {self.done}) have weight zero, so their log p(x) "
                f"is estimated as -inf. Make more draws, or use a guide that covers the posterior of these data.",
                stacklevel=find_stack_level(),
            )

    def _warn_of_missing(self) -> None:
        names, missing = [], np.zeros(self.done, dtype=bool)
        for name, values in self.columns.items():
            rows = np.moveaxis(values, self.axis(name), 0)[: self.done].reshape(self.done, -1)
            if name.endswith("mcse"):  # the Monte Carlo error of a single draw is NaN
                continue
            if np.issubdtype(rows.dtype, np.floating) and np.isnan(rows).any():
                names.append(name)
                missing |= np.isnan(rows).any(1)
        if names:
            shown = _listed(np.flatnonzero(missing))
            warnings.warn(
                f"{', '.join(names)} of data {shown} are NaN. Inspect these data.", stacklevel=find_stack_level()
            )

    def axis(self, name: str) -> int:
        """Return the axis of the array ``columns[name]`` that has one entry for each datum."""
        return self.dims.setdefault(name, ("datum",)).index("datum")


def _listed(indices: np.ndarray) -> str:
    shown = ", ".join(map(str, indices[:10]))
    return f"[{shown}{', ...' if len(indices) > 10 else ''}]"
