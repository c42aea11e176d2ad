"""From the columns of batches to a result: what all estimators and diagnostics share.

An estimator maps a batch to columns. :func:`report` walks over all batches, in one process or several, shows a progress
bar, keeps rows in a folder, and returns one labelled table. A datum that fails becomes a row of NaN.
"""

import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyrovae import archives, parallel
from pyrovae._warnings import find_stack_level
from pyrovae.evaluation.problem import Batch, Problem
from pyrovae.evaluation.provenance import attributes

if TYPE_CHECKING:
    import xarray as xr

Columns = Callable[[Batch], Mapping[str, Tensor | np.ndarray]]

SAVE_SECONDS = 5.0  # between two writings of the rows that are done


def report(
    problem: Problem,
    columns: Columns,
    *,
    estimator: str,
    width: int | Callable[[], int] | None = None,
    dims: dict[str, tuple[str, ...]] | None = None,
    coords: Mapping[str, Any] | None = None,
    units: str = "nats per datum, higher is better",
    **others: Any,
) -> "xr.Dataset":
    """Run an estimator on all data of a problem and return its result.

    Batches have seeds of their own, so that a result is the same in one process and in several, and with and without
    an interruption. A datum whose columns are NaN, or for which an error is raised, is a row of NaN, and a warning
    names its index. Ctrl-C returns the rows that are done.

    Args:
        problem: A model, a guide and data.
        columns: Called with every :class:`Batch`, inside of the problem's context. Returns a mapping from names to
            values per datum, shape ``(n,)``, or of the shape that ``dims`` names.
        estimator: Name of the estimator, an attribute of the result.
        width: Number of data in a batch; a function is called once the problem is open. By default that of
            ``num_samples`` draws for each, if there is such an attribute.
        dims: Dimensions of the columns by name, ``("datum",)`` by default. It may be filled by ``columns``.
        coords: Coordinates of further dimensions.
        units: Units of the result, an attribute.
        **others: Further attributes, such as ``num_samples``.

    Returns:
        Dataset with dimension ``datum``.

    Raises:
        FloatingPointError: If the columns of every datum are NaN.
        ValueError: If the checkpoint folder holds another evaluation.
        Exception: Any error that the programs raise for every datum of a batch.

    Example:
        >>> import torch, pyrovae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Normal(pv.networks.mlp(2, 4)),
        ...     pv.posteriors.DiagonalNormal(pv.networks.mlp(4, 2 * 2)),
        ... )
        >>> problem = pv.evaluation.Problem(vae.model, vae.guide, torch.zeros(10, 4), seed=0)
        >>> def spread(batch):
        ...     return {"spread": problem.log_weights(batch, 100).std(0)}
        >>> result = pv.evaluation.report(problem, spread, estimator="spread of log-weights", num_samples=100)
        >>> result.spread.shape, result.attrs["num_samples"]
        ((10,), 100)
    """
    import xarray as xr

    rows = Rows(problem, {} if dims is None else dims)
    with problem:
        if callable(width):
            width = width()
        elif width is None:
            width = problem.width(int(others.get("num_samples", 1)))
        folder = Folder(problem, estimator, {"width": width, **others})
        interrupted = _walk(problem, columns, rows, folder, width, estimator)
        rows.check()
        attrs = attributes(problem, units=units, estimator=estimator, **others)
    attrs["seconds"] = time.perf_counter() - problem.started + folder.seconds
    if interrupted:
        attrs["interrupted"] = f"after {rows.done} of {problem.size} data"
        warnings.warn(f"interrupted: the result has the {rows.done} data that were done", stacklevel=find_stack_level())
    found = {name: (rows.dims[name], values) for name, values in rows.arrays(rows.done).items()}
    return xr.Dataset(found, coords={"datum": np.arange(rows.done), **(coords or {})}, attrs=attrs)


def _walk(problem: Problem, columns: Columns, rows: "Rows", folder: "Folder", width: int, estimator: str) -> bool:
    """Compute all rows that are missing, and return whether that was interrupted."""
    generator = torch.Generator().manual_seed(int(problem.seed))
    first = int(torch.randint(2**62, (), generator=generator))
    folder.restore(rows)
    done = rows.done

    def compute(numbered: tuple[int, Batch]) -> dict[str, np.ndarray]:
        number, batch = numbered
        torch.manual_seed(first + number)
        return _computed(problem, columns, rows, batch, first + number)

    left = ((number, batch) for number, batch in enumerate(problem.batches(width)) if batch.start >= done)
    hidden = None if problem.options["progress"] and parallel.is_first() else True  # None: if the output is no terminal
    with tqdm(total=problem.size, initial=done, unit="datum", desc=estimator, disable=hidden) as bar:
        try:
            for found in parallel.by_turns(compute, left):
                before = rows.done
                rows.add(found)
                folder.save(rows)
                bar.update(rows.done - before)
        except KeyboardInterrupt:
            folder.save(rows, now=True)
            if not rows.done:
                raise
            return True
        except BaseException:
            folder.save(rows, now=True)
            raise
    folder.save(rows, now=True)
    return False


def _computed(problem: Problem, columns: Columns, rows: "Rows", batch: Batch, seed: int) -> dict[str, np.ndarray]:
    """Return the columns of a batch; if it raises an error, those of its data one by one."""
    try:
        return _arrays(columns(batch))
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        if batch.kept == 1 or not problem.probe.cuttable:
            raise
        found = _one_by_one(problem, columns, batch, seed)
        if not any(found):
            raise
        reason = " ".join(str(error).split())[:200]
        failed = [batch.start + i for i, row in enumerate(found) if not row]
        warnings.warn(f"data {failed} raise an error and are rows of NaN: {reason}", stacklevel=find_stack_level())
        return _joined(found, rows)


def _one_by_one(problem: Problem, columns: Columns, batch: Batch, seed: int) -> list[dict[str, np.ndarray]]:
    found: list[dict[str, np.ndarray]] = []
    for index in range(batch.start, batch.start + batch.kept):
        torch.manual_seed(seed + index - batch.start)
        try:
            found.append(_arrays(columns(problem.batch(index, index + 1))))
        except Exception:
            found.append({})
    return found


def _joined(found: list[dict[str, np.ndarray]], table: "Rows") -> dict[str, np.ndarray]:
    """Join the columns of single data, with NaN for those that are empty."""
    whole = next(row for row in found if row)
    missing = {name: np.full_like(values, np.nan, dtype=float) for name, values in whole.items()}
    return {name: np.concatenate([(row or missing)[name] for row in found], table.axis(name)) for name in whole}


def _arrays(found: Mapping[str, Tensor | np.ndarray]) -> dict[str, np.ndarray]:
    return {
        name: values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
        for name, values in found.items()
    }


class Rows:
    """The columns of the data that are done, in arrays for all data.

    Results are written in place: small arrays kept between large tensors would fragment the heap without bound.
    """

    def __init__(self, problem: Problem, dims: dict[str, tuple[str, ...]]) -> None:
        self.size, self.dims, self.done = problem.size, dims, 0
        self.columns: dict[str, np.ndarray] = {}

    def add(self, found: Mapping[str, np.ndarray]) -> None:
        """Write the columns of the next data."""
        count = 0
        for name, values in found.items():
            axis = self.axis(name)
            if name not in self.columns:
                shape = (*values.shape[:axis], self.size, *values.shape[axis + 1 :])
                self.columns[name] = np.empty(shape, values.dtype)
            count = values.shape[axis]
            place = (slice(None),) * axis + (slice(self.done, self.done + count),)
            self.columns[name][place] = values
        self.done += count

    def arrays(self, stop: int) -> dict[str, np.ndarray]:
        """Return the columns of the data before ``stop``."""
        return {
            name: values[(slice(None),) * self.axis(name) + (slice(stop),)] for name, values in self.columns.items()
        }

    def check(self) -> None:
        """Warn of rows that are NaN or -inf.

        Raises:
            FloatingPointError: If every row is NaN.
        """
        values = self.columns.get("log_likelihood")
        if values is None:
            self._warn_of_missing()
            return
        values = values[: self.done].reshape(self.done, -1)
        missing = np.flatnonzero(np.isnan(values).all(1))
        if len(missing) == self.done:
            raise FloatingPointError(
                f"log-weights of all {self.done} data are NaN or infinite; the model has diverged, or its data are too "
                f"large: look at its parameters and at the scales that its networks give"
            )
        if len(missing):
            warnings.warn(
                f"log-weights of data {_listed(missing)} are NaN or infinite, {len(missing)} of {self.done}; their "
                f"rows are NaN. Look at these data",
                stacklevel=find_stack_level(),
            )
        zero = np.flatnonzero(np.isneginf(values).all(1))
        if len(zero):
            warnings.warn(
                f"all draws of data {_listed(zero)} have weight zero, {len(zero)} of {self.done}, so log p(x) is -inf "
                f"there. Make more draws, or a guide that reaches the posterior of these data",
                stacklevel=find_stack_level(),
            )

    def _warn_of_missing(self) -> None:
        names, missing = [], np.zeros(self.done, dtype=bool)
        for name, values in self.columns.items():
            rows = np.moveaxis(values, self.axis(name), 0)[: self.done].reshape(self.done, -1)
            if name.endswith("mcse"):  # a single draw has no error
                continue
            if np.issubdtype(rows.dtype, np.floating) and np.isnan(rows).any():
                names.append(name)
                missing |= np.isnan(rows).any(1)
        if names:
            shown = _listed(np.flatnonzero(missing))
            warnings.warn(
                f"{', '.join(names)} of data {shown} are NaN; look at these data", stacklevel=find_stack_level()
            )

    def axis(self, name: str) -> int:
        """Return which axis of a column the data are."""
        return self.dims.setdefault(name, ("datum",)).index("datum")


def _listed(indices: np.ndarray) -> str:
    shown = ", ".join(map(str, indices[:10]))
    return f"[{shown}{', ...' if len(indices) > 10 else ''}]"


class Folder:
    """The folder of a long evaluation, from which the same call goes on.

    Args:
        problem: The opened problem.
        estimator: Name of the estimator.
        options: Its options.

    Attributes:
        seconds: Seconds that earlier calls took.

    Raises:
        ValueError: If the folder holds another evaluation.
    """

    def __init__(self, problem: Problem, estimator: str, options: Mapping[str, Any]) -> None:
        self.seconds, self.saved, self.started = 0.0, time.perf_counter(), time.perf_counter()
        place = problem.options["checkpoint"]
        self.path = None if place is None else Path(place).expanduser() / "rows.pt"
        self.description: dict[str, Any] = {}
        self.kept: dict[str, Any] | None = None
        if self.path is None:
            return
        self.description = self._describe(problem, estimator, options)
        self.kept = parallel.in_first(self._read)
        if self.kept is None:
            return
        then = self.kept["description"]
        if problem.options["seed"] is None:
            problem.seed = self.description["seed"] = then.get("seed")
        different = [name for name in self.description if self.description[name] != then.get(name)]
        if different:
            name = different[0]
            raise ValueError(
                f"folder {str(self.path.parent)!r} holds another evaluation: its {name} is {then.get(name)!r}, here it "
                f"is {self.description[name]!r}; give another folder, or remove this one"
            )

    def restore(self, rows: Rows) -> None:
        """Put the rows of an earlier call in their place."""
        if self.kept is not None:
            self.seconds = self.kept["seconds"]
            rows.add({name: values.numpy() for name, values in self.kept["columns"].items()})

    def save(self, rows: Rows, *, now: bool = False) -> None:
        """Write the rows that are done, if it is time to."""
        if self.path is None or not parallel.is_first() or not rows.done:
            return
        if now or time.perf_counter() - self.saved > SAVE_SECONDS:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            columns = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in rows.arrays(rows.done).items()}
            seconds = self.seconds + time.perf_counter() - self.started
            archives.write(self.path, {"description": self.description, "columns": columns, "seconds": seconds})
            self.saved = time.perf_counter()

    def _read(self) -> dict[str, Any] | None:
        assert self.path is not None
        return archives.read(self.path) if self.path.exists() else None

    def _describe(self, problem: Problem, estimator: str, options: Mapping[str, Any]) -> dict[str, Any]:
        of_problem = attributes(problem)
        names = "model", "guide", "data_sha1", "parameters_sha1", "binarization", "seed", "precision", "torch_version"
        plain = {
            name: value if isinstance(value, int | float | str | bool) else str(value)
            for name, value in options.items()
        }
        return {"estimator": estimator, **plain, **{name: of_problem[name] for name in names}}
