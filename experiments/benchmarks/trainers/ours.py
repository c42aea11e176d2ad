"""pyrovae, by :func:`pyrovae.fit`. ``--compile`` compiles the step.

``fit`` trains for a given number of epochs, so its learning-rate schedule ends the turns: it makes a step after every
epoch, and then waits. A KeyboardInterrupt ends the training.
"""

import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pyro.infer import Trace_ELBO

import pyrovae as pv
from experiments.benchmarks.networks import build, finish, state, to_device
from experiments.benchmarks.problem import Problem
from experiments.benchmarks.rounds import Channel


class Gate:
    """A schedule with a constant learning rate, which makes the next epoch wait for its turn."""

    def __init__(self, channel: Channel, problem: Problem, _: torch.optim.Optimizer) -> None:
        self.channel, self.problem = channel, problem
        self.step()

    def step(self) -> None:
        """End the turn of an epoch, if there was one, and wait for the turn of the next epoch."""
        finish(self.problem)
        if not self.channel.turn():
            raise KeyboardInterrupt

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state, because a run needs nothing from it to resume."""
        return {}


def main(problem: Problem, compiled: bool) -> None:
    """Train for one epoch in a turn."""
    sizes = problem.sizes
    vae, _ = build(problem)
    objective = Trace_ELBO() if sizes.k == 1 else pv.objectives.IWAE(sizes.k)
    facts = state(
        problem,
        vae,
        lambda x: objective.differentiable_loss(vae.model, vae.guide, x) / len(x),
        "torch.distributions.normal._standard_normal",
    )
    channel = Channel("pyrovae", **facts)
    gate: Any = partial(Gate, channel, problem)
    if compiled:
        warnings.filterwarnings("error", message="fit continues without compilation")
    pv.fit(
        vae,
        to_device(problem, problem.x),
        objective=objective,
        epochs=10**6,
        batch_size=sizes.batch_size,
        learning_rate=sizes.learning_rate,
        scheduler=gate,
        device=sizes.device,
        progress=False,
        compile=compiled,
    )
    channel.close()


if __name__ == "__main__":
    main(Problem.read(Path(sys.argv[1])), compiled="--compile" in sys.argv)
