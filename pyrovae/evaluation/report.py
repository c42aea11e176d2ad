"""The loop over batches that all estimators and diagnostics share, and the result that it builds.

An estimator is a function from a batch to columns, which are named arrays with at least one value per datum.
:func:`report` iterates over all batches, in one process or several, shows a progress bar, writes a checkpoint folder,
and returns a dataset. If the programs raise an error for a datum, the row of this datum is NaN.
"""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyrovae import parallel
from pyrovae._progress import tqdm
from pyrovae._waist.errors import ProgramError
from pyrovae._warnings import find_stack_level
from pyrovae.evaluation.batches import Batch
from pyrovae.evaluation.checkpoint import Checkpoint
from pyrovae.evaluation.problem import Problem
from pyrovae.evaluation.provenance import attributes
from pyrovae.evaluation.rows import Dims, Rows
from pyrovae.signals import InterruptSignals

if TYPE_CHECKING:
    import xarray as xr

Columns = Callable[[Batch], Mapping[str, Tensor | np.ndarray]]


def report(
    problem: Problem,
    columns: Columns,
    *,
    estimator: str,
    width: int | Callable[[], int] | None = None,
    dims: Dims | None = None,
    coords: Mapping[str, Any] | None = None,
    num_rows: int | None = None,
    units: str = "nats per datum, higher is better",
    settings: Mapping[str, Any] | None = None,
    **others: Any,
) -> "xr.Dataset":
    """Run an estimator on all data of a problem and return its result.

    Each batch has its own seed. The result is therefore the same in one process and in several, and with and without an
    interruption. If the programs raise an error for a datum, the row of this datum is NaN. A warning names the indices
    of rows that are NaN. After Ctrl-C, the result holds the finished rows.

    Args:
        problem: A model, a guide and data.
        columns: Function that is called with every :class:`Batch` inside ``with problem:``. It returns a mapping from
            the name of a column to its values. A column has shape ``(n,)``, or the dimensions that ``dims`` names.
        estimator: Name of the estimator, stored as an attribute of the result.
        width: Number of data in a batch, or a function that returns this number and is called inside ``with problem:``.
            By default, a batch has as many data as fit into memory with ``num_samples`` draws each, or with one draw
            each if ``num_samples`` is not given.
        dims: Dictionary from the name of a column to the names of its dimensions. A column without an entry has the
            dimensions ``("datum",)``. The function ``columns`` may add entries.
        coords: Coordinates of further dimensions.
        num_rows: Number of rows; by default one row for each datum. If there are more rows than data, the data are used
            repeatedly.
        units: Units of the result, stored as an attribute.
        settings: Options on which the rows depend but which are not stored as attributes. A checkpoint folder with
            other settings raises an error.
        **others: Further attributes, such as ``num_samples``.

    Returns:
        Dataset with dimension ``datum``.

    Raises:
        FloatingPointError: If the column ``log_likelihood`` is NaN for every datum.
        OSError: If the checkpoint folder cannot be created, or another evaluation uses it.
        ValueError: If the checkpoint folder holds another evaluation, or a damaged file.
        Exception: Any error that the programs raise for every datum of a batch.

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyrovae as pv
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):  # the exact posterior, so that all log-weights are equal
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> problem = pv.evaluation.Problem(model, guide, torch.linspace(-1.0, 1.0, 10), seed=0)
        >>> def spread(batch):
        ...     return {"spread": problem.log_weights(batch, 100).std(0)}
        >>> result = pv.evaluation.report(problem, spread, estimator="spread of log-weights", num_samples=100)
        >>> result.spread.shape, bool((result.spread < 1e-4).all()), result.attrs["num_samples"]
        ((10,), True, 100)
    """
    import xarray as xr

    rows = Rows(problem.size if num_rows is None else num_rows, {} if dims is None else dims)
    with problem:
        if callable(width):
            width = width()
        elif width is None:
            width = problem.width(int(others.get("num_samples", 1)))
        of_rows = {**(settings or {}), **others, "num_rows": rows.size, "coords": coords, "width": width}
        with Checkpoint(problem, estimator, of_rows) as checkpoint:
            interrupted = _walk(problem, columns, rows, checkpoint, width, estimator)
        rows.check()
        attrs = attributes(problem, units=units, estimator=estimator, **others)
    attrs["seconds"] = time.perf_counter() - problem.started + checkpoint.seconds
    if interrupted:
        attrs["interrupted"] = f"after {rows.done} of {rows.size} data"
        warnings.warn(
            f"the evaluation was interrupted, and the result holds only the first {rows.done} rows",
            stacklevel=find_stack_level(),
        )
    found = {name: (rows.dims[name], values) for name, values in rows.arrays(rows.done).items()}
    return xr.Dataset(found, coords={"datum": np.arange(rows.done), **(coords or {})}, attrs=attrs)


def _walk(problem: Problem, columns: Columns, rows: Rows, checkpoint: Checkpoint, width: int, estimator: str) -> bool:
    """Compute all rows that are missing, and return true if the computation was interrupted."""
    generator = torch.Generator().manual_seed(int(problem.seed))
    first = int(torch.randint(2**62, (), generator=generator))
    checkpoint.restore(rows)
    done = rows.done

    def compute(numbered: tuple[int, Batch]) -> tuple[dict[str, np.ndarray], Dims]:
        number, batch = numbered
        torch.manual_seed(first + number)
        found = _computed(problem, columns, rows, batch, first + number)
        return found, rows.dims  # other processes need the entries that `columns` has added in this process

    left = ((number, batch) for number, batch in enumerate(_batches(problem, width, rows.size)) if batch.start >= done)
    hidden = None if problem.options["progress"] and parallel.is_first() else True  # None hides it without a terminal
    signals = InterruptSignals(active=checkpoint.folder is not None and parallel.size() == 1)
    with tqdm(total=rows.size, initial=done, unit="datum", desc=estimator, disable=hidden) as bar, signals:
        try:
            for found, dims in parallel.by_turns(compute, left):
                before = rows.done
                rows.add(found, dims)
                checkpoint.save(rows)
                bar.update(rows.done - before)
        except KeyboardInterrupt:
            if not rows.done:
                raise
            return True
        finally:
            signals.deferred = True
            checkpoint.save(rows, now=True)
    return False


def _batches(problem: Problem, width: int, num_rows: int) -> Iterator[Batch]:
    """Yield batches of data for ``num_rows`` rows of a result, one datum for each row.

    If there are more rows than data, the batches begin again with the first datum.
    """
    for done in range(0, num_rows, problem.size):
        for batch in problem.batches(width):
            start = done + batch.start
            if start < num_rows:
                yield replace(batch, start=start, kept=min(batch.kept, num_rows - start))


def _computed(problem: Problem, columns: Columns, rows: Rows, batch: Batch, seed: int) -> dict[str, np.ndarray]:
    """Return the columns of a batch.

    If the batch raises an error, its data are computed one by one. If a datum raises an error again, its row is NaN. A
    warning gives the error.
    """
    try:
        return _arrays(columns(batch))
    except (torch.OutOfMemoryError, MemoryError, ProgramError):
        raise
    except Exception as error:
        if batch.kept == 1 or not problem.probe.cuttable:
            raise
        found = _one_by_one(problem, columns, batch, seed)
        if not any(found):
            raise
        failed = [batch.start + i for i, row in enumerate(found) if not row]
        fate = f"data {failed} raise an error, and their rows are NaN" if failed else _slow(batch)
        warnings.warn(f"{fate}: {' '.join(str(error).split())[:200]}", stacklevel=find_stack_level())
        return _joined(found, rows)


def _slow(batch: Batch) -> str:
    last = batch.start + batch.kept - 1
    return (
        f"data {batch.start} to {last} raise an error together, but not alone. Each was computed alone, which is slow. "
        f"Let the programs accept any number of data, or report the error of a program that does"
    )


def _one_by_one(problem: Problem, columns: Columns, batch: Batch, seed: int) -> list[dict[str, np.ndarray]]:
    generator = torch.Generator().manual_seed(seed)
    seeds = torch.randint(2**62, (batch.kept,), generator=generator).tolist()
    found: list[dict[str, np.ndarray]] = []
    for index, own_seed in enumerate(seeds, batch.start):
        torch.manual_seed(own_seed)
        try:
            place = index % problem.size
            found.append(_arrays(columns(problem.batch(place, place + 1))))
        except Exception:
            found.append({})
    return found


def _joined(found: list[dict[str, np.ndarray]], table: Rows) -> dict[str, np.ndarray]:
    """Join the columns of single data to columns for all data. A datum that raised an error gets NaN in each column."""
    whole = next(row for row in found if row)
    missing = {name: np.full_like(values, np.nan, dtype=float) for name, values in whole.items()}
    return {name: np.concatenate([(row or missing)[name] for row in found], table.axis(name)) for name in whole}


def _arrays(found: Mapping[str, Tensor | np.ndarray]) -> dict[str, np.ndarray]:
    return {
        name: values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
        for name, values in found.items()
    }
