"""Cost of a reliable log p(x), compared with that of 5,000 draws from the encoder.

The models are those of ``experiments.published_protocol``. A model that this experiment has trained with the same
options is read from its folder. ``log_likelihood`` and ``evaluate`` with 5,000 draws take turns on the same test data,
eagerly and compiled. The time of compilation is measured apart. The last column divides the time that the densities and
gradients of ``log_likelihood`` take if they are computed alone, with the same numbers of data and draws, by its time
without the set-up.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pyro
import torch
import tyro
from torch import Tensor

import pyrovae as pv
from experiments import _comparison as comparison
from experiments import published_protocol
from experiments.benchmarks import training
from experiments.benchmarks.rounds import set_up_seconds, spread
from pyrovae.evaluation.unconstrained.flat import FlatTarget, target_of
from pyrovae.evaluation.unconstrained.space import Space
from pyrovae.evaluation.unconstrained.target import Target

PARTS = ("log_joint", "log_densities", "value_and_gradient")
FEW = 8  # data of the calls that compile, whose time is the set-up
Shape = tuple[str, int, int]  # part, number of draws, number of data


@dataclass
class Options(published_protocol.Options):
    """Options of the benchmark; those of training must be the options of the experiment."""

    rounds: int = 5
    """Number of rounds."""
    draws_of_encoder: int = 5000
    """Number of encoder draws in the comparison."""
    results: Path = Path("results/benchmarks")
    """Folder for the results."""


def main(options: Options) -> pd.DataFrame:
    """Measure the costs. Print and write the table."""
    splits = comparison.load(options)
    rows = {}
    for name, model in comparison.chosen(published_protocol.models(splits, options), options).items():
        pyro.set_rng_seed(options.seed)
        vae = model.build()
        kept = options.out / "training" / name
        comparison.train(vae, splits, options, objective=model.objective, checkpoint=kept)
        for compiled in (False, True):
            label = f"{name}, {'compiled' if compiled else 'eager'}"
            rows[label] = measure(vae, splits.test, splits.binarization, compiled, options)
            print(label, rows[label], flush=True)
    table = pd.DataFrame(rows).T
    print(table.to_string())
    training.write(replace(options, out=options.results), "cascade", table, {})
    return table


def measure(vae: Any, x: Tensor, binarization: str, compiled: bool, options: Options) -> dict[str, str]:
    """Return the row of a model: times of both estimators, their ratio, and facts about the estimates."""
    shared: Any = {"binarization": binarization, "progress": False, "compile": compiled}
    tools = pv.evaluation

    def timed(function: Any, data: Tensor, seed: int) -> tuple[float, Any]:
        start = time.perf_counter()
        result = function(vae.model, vae.guide, data, seed=seed, **shared)
        return time.perf_counter() - start, result

    evaluate: Any = partial(tools.evaluate, num_samples=options.draws_of_encoder)
    ways = {"evaluate": evaluate, "log_likelihood": tools.log_likelihood}
    set_up = {name: set_up_seconds(partial(timed, function, x[:FEW], 0)) for name, function in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    results = []
    for turn in range(options.rounds):
        for name, function in ways.items():
            elapsed, result = timed(function, x, options.seed + turn)
            seconds[name].append(elapsed)
            results += [result] if name == "log_likelihood" else []
    per_datum = {name: 1000 * (np.array(taken) - set_up[name]) / (len(x) - FEW) for name, taken in seconds.items()}
    ratio = np.quantile(per_datum["log_likelihood"] / per_datum["evaluate"], (0.5, 0.25, 0.75))
    parts = parts_alone(vae, x, shared, seed=options.seed)
    return {
        "5,000 draws, ms": f"{np.median(per_datum['evaluate']):.3g}",
        "log p(x), ms": f"{np.median(per_datum['log_likelihood']):.3g}",
        "ratio": spread(*ratio),
        "set-up, s": f"{set_up['log_likelihood']:.1f}",
        "evaluations": f"{np.mean([result.evaluations for result in results]):,.0f}",
        "reliable": f"{np.mean([result.reliable for result in results]):.1%}",
        "parts alone": f"{parts / (np.median(seconds['log_likelihood']) - set_up['log_likelihood']):.2f}",
    }


def parts_alone(vae: Any, x: Tensor, shared: Mapping[str, Any], seed: int) -> float:
    """Return the seconds that the densities and gradients of log_likelihood take if each is computed alone."""
    with counted() as calls:
        pv.evaluation.log_likelihood(vae.model, vae.guide, x, seed=seed, **shared)
    with pv.evaluation.Problem(vae.model, vae.guide, x, seed=seed, **shared) as problem:
        space, seconds = Space(problem), 0.0
        for (part, draws, size), count in calls.items():
            batch = problem.batch(0, min(size, len(x)))
            if batch.size < size:
                continue
            seconds += count * median_seconds(target_of(space, batch), part, draws)
    return seconds


def median_seconds(target: Target, part: str, draws: int) -> float:
    """Return the median time of five calls of a part at draws from the guide, after one call to prepare it."""
    u, _ = target.draw(draws)
    taken = []
    for _ in range(6):
        start = time.perf_counter()
        with torch.no_grad():
            getattr(target, part)(u)
        taken.append(time.perf_counter() - start)
    return float(np.median(taken[1:]))


@contextmanager
def counted() -> Iterator[Counter[Shape]]:
    """Count the calls of the parts by their shapes; calls that a part makes itself do not count."""
    calls: Counter[Shape] = Counter()
    depth = [0]

    def counting(cls: type[Target], part: str) -> Any:
        original = getattr(cls, part)

        def call(self: Target, u: Tensor, *rest: Any) -> Any:
            calls[(part, *u.shape[:2])] += depth[0] == 0
            depth[0] += 1
            try:
                return original(self, u, *rest)
            finally:
                depth[0] -= 1

        return mock.patch.object(cls, part, call)

    with ExitStack() as stack:
        for cls in (Target, FlatTarget):
            for part in PARTS:
                stack.enter_context(counting(cls, part))
        yield calls


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
