"""pyrovae, by :func:`pyrovae.evaluation.evaluate`. ``--compile`` compiles it, and ``--precision`` lowers the precision.

``evaluate`` first probes the programs and, if requested, compiles. The remaining time is proportional to the number of
data. To separate the two, one long evaluation of the repeated images provides several turns: its progress bar ends a
turn after each pass over the images. With ``--whole`` a turn is a whole call.
"""

import argparse
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import xarray as xr
from torch import Tensor

import pyrovae as pv
from experiments.benchmarks.estimates import timed
from experiments.benchmarks.networks import make, to_device
from experiments.benchmarks.problem import Problem
from experiments.benchmarks.rounds import Channel, peak_mb, serve
from pyrovae._compilation.precision import Precision

REPEATS = 100  # turns of one evaluation, after which a new one starts


class LastTurn(BaseException):
    """End of the turns. An evaluation handles Exception and KeyboardInterrupt, so this is another class."""


class Bar:
    """A progress bar that ends a turn after each pass over the images, and then waits for the next turn."""

    def __init__(self, channel: Channel, size: int, **_: Any) -> None:
        self.channel, self.size, self.done = channel, size, 0

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, done: int) -> None:
        """Count data. A turn ends with a chunk of the evaluation, so its seconds are scaled to one pass."""
        self.done += done
        if self.done >= self.size:
            assert self.channel.start is not None
            seconds = (time.perf_counter() - self.channel.start) * self.size / self.done
            self.done = 0
            if not self.channel.turn(seconds):
                raise LastTurn


def main(problem: Problem, compiled: bool = False, precision: Precision | None = None, whole: bool = False) -> None:
    """Evaluate all images in a turn."""
    vae = build(problem)
    x = to_device(problem, problem.x)
    evaluate = partial(
        pv.evaluation.evaluate,
        vae.model,
        vae.guide,
        seed=problem.sizes.seed,
        compile=compiled,
        precision=precision,
        progress=False,
    )
    draws = problem.sizes.k
    if compiled:
        warnings.filterwarnings("error", message="evaluation continues without compilation")
    if whole:
        return serve("pyrovae", lambda: timed(lambda: evaluate(x, draws))[1], before_mb=peak_mb())
    results, cold_seconds = timed(lambda: evaluate(x, draws))
    facts = {"cold_seconds": cold_seconds, "log_likelihood": float(results.log_likelihood.mean())}
    if precision is None:
        facts["loss"] = -float(from_given_noise(problem, x, evaluate).mean())
    else:
        exact = evaluate(x, draws, compile=False, precision=None)
        facts |= rounding(results, exact)
    channel = Channel("pyrovae", **facts)
    if channel.turn():
        take_turns(channel, partial(evaluate, x.repeat(REPEATS, 1), draws), len(x))
    channel.close()
    return None


def build(problem: Problem) -> pv.VAE:
    """Return the VAE of the problem."""
    return pv.VAE(
        pv.priors.StandardNormal(problem.sizes.latent),
        pv.likelihoods.Bernoulli(make(problem, "decoder")),
        pv.posteriors.DiagonalNormal(make(problem, "encoder")),
    ).to(problem.sizes.device)


def rounding(rounded: xr.Dataset, exact: xr.Dataset) -> dict[str, float]:
    """Return the mean and the largest rounding error per datum, relative to exact estimates from the same draws."""
    errors = abs(rounded.log_likelihood - exact.log_likelihood)
    return {"mean_rounding_error": float(errors.mean()), "largest_rounding_error": float(errors.max())}


def from_given_noise(problem: Problem, x: Tensor, evaluate: Any) -> np.ndarray:
    """Return the estimates of the first images. The given noise replaces the normal draws of torch."""
    noise = to_device(problem, problem.noise)
    values = noise.flatten()

    def given(shape: torch.Size, *_: Any, **__: Any) -> Tensor:
        return values[: shape.numel()].reshape(shape)  # fewer numbers when the programs first run on few data

    with mock.patch("torch.distributions.normal._standard_normal", given):
        return evaluate(x[: noise.shape[1]], len(noise)).log_likelihood.values


def take_turns(channel: Channel, evaluate: Any, size: int) -> None:
    """Evaluate ``size`` data in a turn, until there are no more turns."""
    with mock.patch("pyrovae.evaluation.report.tqdm", partial(Bar, channel, size)):
        try:
            while True:
                evaluate()
        except LastTurn:
            pass


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--compile", action="store_true", dest="compiled")
    parser.add_argument("--precision")
    parser.add_argument("--whole", action="store_true")
    arguments = vars(parser.parse_args())
    main(Problem.read(arguments.pop("folder")), **arguments)
