"""Time of each kind of operation in a compiled training step, and in a compiled evaluation.

Torch's profiler splits the time of one process into matrix products, the kernels that inductor has written, noise and
the optimizer. The remainder is spent in Python and in all other operations; in an evaluation it contains the bounds and
k-hat. The times are shorter than in a race, because no other process uses the caches.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self
from unittest import mock

import pandas as pd
import pyro
import torch
import tyro
from torch.profiler import ProfilerActivity, profile

import pyrovae as pv
from experiments.benchmarks import training
from experiments.benchmarks.estimates import timed
from experiments.benchmarks.evaluators.ours import build
from experiments.benchmarks.networks import to_device
from experiments.benchmarks.problem import Sizes
from experiments.benchmarks.trainers.idea import Steps, as_fit_does

KINDS = {
    "products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkldnn::"),
    "kernels": ("graph_",),
    "noise": ("aten::normal_",),
    "optimizer": ("aten::_fused_adam_",),
}
Work = Callable[[AbstractContextManager[Any]], tuple[float, int]]  # runs in a context; returns seconds and repetitions


@dataclass
class Options:
    """Options of the profiles."""

    k: int = 50
    """Draws per datum of the second step, which uses the importance-weighted bound. The first step uses the ELBO."""
    draws: int = 5000
    """Draws per image of the evaluation."""
    steps: int = 100
    """Training steps per repetition."""
    data: int = 200
    """Images per repetition. The last images are evaluated uncompiled if they do not fill a chunk."""
    repeats: int = 5
    """Number of repetitions. The results are medians over them."""
    device: Literal["cpu"] = "cpu"
    """Device of the computations. Only a CPU is possible, because the kernels of a GPU have other names."""
    out: Path = Path("results/benchmarks")
    """Folder for the results."""


def main(options: Options) -> pd.DataFrame:
    """Profile two steps and an evaluation. Print and write the table."""
    torch._inductor.config.cpp.enable_kernel_profile = True  # otherwise the profiler does not see inductor's kernels
    works = {
        "step, ELBO": of_step(options, k=1),
        f"step, IWAE_{options.k}": of_step(options, k=options.k),
        "evaluation of an image": of_evaluation(options),
    }
    table = pd.DataFrame.from_dict({name: row(work, options.repeats) for name, work in works.items()}, orient="index")
    print(f"\nmilliseconds\n\n{table.to_string()}")
    training.write(options, "profiles", table, {})
    return table


def row(work: Work, repeats: int) -> dict[str, str]:
    """Return the milliseconds per repetition as text, in total and for each kind of operation."""
    work(nullcontext())  # warm-up
    milliseconds = pd.DataFrame([profiled(work) for _ in range(repeats)]).median()
    return {kind: f"{value:.3g}" for kind, value in milliseconds.items()}


def profiled(work: Work) -> dict[str, float]:
    """Return the milliseconds per repetition under the profiler, in total and for each kind of operation."""
    profiler = profile(activities=[ProfilerActivity.CPU], acc_events=True)
    seconds, times = work(profiler)
    kinds = dict.fromkeys(KINDS, 0.0)
    for event in profiler.key_averages():
        for kind, names in KINDS.items():
            kinds[kind] += event.self_cpu_time_total / 1000 / times if event.key.startswith(names) else 0.0
    every = 1000 * seconds / times
    return {"all": every, **kinds, "rest": every - sum(kinds.values())}


def of_step(options: Options, k: int) -> Work:
    """Return an epoch of compiled training steps, made in the same way as in :func:`pyrovae.fit`."""
    sizes = Sizes(k=k, num_data=options.steps * Sizes.batch_size)
    with pyro.validation_enabled(False):
        epoch = as_fit_does(Steps(training.make_problem(sizes)))

    def work(context: AbstractContextManager[Any]) -> tuple[float, int]:
        with context, pyro.validation_enabled(False):
            return timed(epoch)[1], options.steps

    return work


def of_evaluation(options: Options) -> Work:
    """Return a compiled evaluation. The first chunk of data is not counted, because it includes all preparation."""
    problem = training.make_problem(Sizes(num_data=options.data, batch_size=options.data))
    vae, x = build(problem), to_device(problem, problem.x)

    def work(context: AbstractContextManager[Any]) -> tuple[float, int]:
        watch = Watch(context)
        with mock.patch("pyrovae.evaluation.report.tqdm", return_value=watch):
            pv.evaluation.evaluate(vae.model, vae.guide, x, options.draws, compile=True, seed=0)
        if len(watch.counts) < 2:
            raise ValueError(
                f"data={options.data} images with draws={options.draws} form a single chunk, and the first is not "
                f"counted. Increase data or draws."
            )
        return watch.times[-1] - watch.times[0], sum(watch.counts[1:])

    return work


class Watch:
    """A progress bar that enters a context at its first update, and records the time and count of each update."""

    def __init__(self, context: AbstractContextManager[Any]) -> None:
        self.context = context
        self.times: list[float] = []
        self.counts: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: Any) -> None:
        self.context.__exit__(*failure)

    def update(self, done: int) -> None:
        """Record that ``done`` more data are evaluated."""
        if not self.times:
            self.context.__enter__()
        self.times.append(time.perf_counter())
        self.counts.append(done)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
