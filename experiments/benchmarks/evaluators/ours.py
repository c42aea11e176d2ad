"""pyrovae, by :func:`pyrovae.evaluation.evaluate`; with ``--compile`` compiled, with ``--precision`` rounded.

``evaluate`` begins by probing the programs and, if told to, by compiling; what it costs from there on is proportional
to the data. To tell the two apart, the turns are those of one long evaluation of the same images over and over. It
takes as many data as it is given, so here it asks for its turns itself: by its progress bar. With ``--whole`` a turn is
a call.
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

REPEATS = 100  # turns before an evaluation has to begin anew


class LastTurn(BaseException):
    """There are no more turns. An evaluation handles errors and Ctrl-C itself, so this is neither."""


class Bar:
    """A progress bar that ends a turn when so many data are done, and keeps the others waiting for the next."""

    def __init__(self, channel: Channel, size: int, **_: Any) -> None:
        self.channel, self.size, self.done = channel, size, 0

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, done: int) -> None:
        """Counts data. A turn ends with a whole piece of the evaluation, and takes its share of these seconds."""
        self.done += done
        if self.done >= self.size:
            assert self.channel.start is not None
            seconds = (time.perf_counter() - self.channel.start) * self.size / self.done
            self.done = 0
            if not self.channel.turn(seconds):
                raise LastTurn


def main(problem: Problem, compiled: bool = False, precision: Precision | None = None, whole: bool = False) -> None:
    """Evaluates all images a turn."""
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
    """The problem's VAE."""
    return pv.VAE(
        pv.priors.StandardNormal(problem.sizes.latent),
        pv.likelihoods.Bernoulli(make(problem, "decoder")),
        pv.posteriors.DiagonalNormal(make(problem, "encoder")),
    ).to(problem.sizes.device)


def rounding(rounded: xr.Dataset, exact: xr.Dataset) -> dict[str, float]:
    """How far the estimates of the single data are from those from the same draws without rounding."""
    errors = abs(rounded.log_likelihood - exact.log_likelihood)
    return {"mean_rounding_error": float(errors.mean()), "largest_rounding_error": float(errors.max())}


def from_given_noise(problem: Problem, x: Tensor, evaluate: Any) -> np.ndarray:
    """Estimates of the first images from the given noise, in place of which torch draws normal noise for Pyro."""
    noise = to_device(problem, problem.noise)
    values = noise.flatten()

    def given(shape: torch.Size, *_: Any, **__: Any) -> Tensor:
        return values[: shape.numel()].reshape(shape)  # fewer where the programs are first run on few data

    with mock.patch("torch.distributions.normal._standard_normal", given):
        return evaluate(x[: noise.shape[1]], len(noise)).log_likelihood.values


def take_turns(channel: Channel, evaluate: Any, size: int) -> None:
    """Evaluates so many data a turn until there are no more turns."""
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
