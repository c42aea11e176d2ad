"""pyrovae, by :func:`pyrovae.evaluation.rqmc`: randomized quasi-Monte Carlo, from a number of draws of its own."""

import sys
from pathlib import Path

import pyrovae as pv
from experiments.benchmarks.evaluators.ours import build
from experiments.benchmarks.networks import to_device
from experiments.benchmarks.problem import Problem
from experiments.benchmarks.rounds import serve


def main(problem: Problem, draws: int) -> None:
    """Evaluates all images a turn."""
    vae, x = build(problem), to_device(problem, problem.x)

    def work() -> None:
        pv.evaluation.rqmc(vae.model, vae.guide, x, draws, seed=problem.sizes.seed, progress=False)

    serve("pyrovae", work)


if __name__ == "__main__":
    main(Problem.read(Path(sys.argv[1])), int(sys.argv[2]))
