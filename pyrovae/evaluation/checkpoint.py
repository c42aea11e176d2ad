"""The folder of a long evaluation, from which an interrupted one goes on."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyrovae import archives, parallel
from pyrovae.evaluation.identity import difference
from pyrovae.evaluation.problem import Problem
from pyrovae.evaluation.provenance import attributes
from pyrovae.evaluation.rows import Rows

SAVE_SECONDS = 5.0  # between two writings of the rows that are done


class Checkpoint:
    """The rows of an evaluation that are done, in a folder from which the same call goes on.

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
        if (programs := then.get("programs")) and (changed := difference(self.description["programs"], programs)):
            raise ValueError(
                f"folder {str(self.path.parent)!r} holds an evaluation of another program: {changed}; give another "
                f"folder, or remove this one"
            )
        different = [
            name for name in self.description if name != "programs" and self.description[name] != then.get(name)
        ]
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
            columns = {name: values.numpy() for name, values in self.kept["columns"].items()}
            rows.add(columns, self.kept.get("dims", {}))

    def save(self, rows: Rows, *, now: bool = False) -> None:
        """Write the rows that are done, if it is time to."""
        if self.path is None or not parallel.is_first() or not rows.done:
            return
        if now or time.perf_counter() - self.saved > SAVE_SECONDS:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            columns = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in rows.arrays(rows.done).items()}
            seconds = self.seconds + time.perf_counter() - self.started
            kept = {"description": self.description, "columns": columns, "dims": rows.dims, "seconds": seconds}
            archives.write(self.path, kept)
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
        of_programs = {"programs": dict(problem.contents)}
        return {"estimator": estimator, **plain, **{name: of_problem[name] for name in names}, **of_programs}
