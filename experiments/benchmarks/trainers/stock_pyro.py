"""Unmodified Pyro: ``pyro.module``, ``SVI`` and ``pyro.optim.Adam``. ``--unvalidated`` turns validation off.

The distributions are those of pyrovae's components, except for mixtures, which are Pyro's own. Models other than a VAE
train by their own programs.

For several draws per datum Pyro offers ``RenyiELBO`` with alpha = 0. This objective takes the logarithm of the mean
weight of whole batches, so its loss has another value than those of the other contenders, at the same cost. The loss is
therefore not reported.
"""

import sys
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, RenyiELBO, Trace_ELBO
from pyro.optim import Adam  # type: ignore[attr-defined]
from torch import Tensor, nn

import pyrovae as pv
from experiments.benchmarks.networks import build, finish, state, to_device
from experiments.benchmarks.problem import Problem
from experiments.benchmarks.rounds import serve


class Programs(nn.Module):
    """The distributions of a VAE as a plain model and guide, without the checks of pyrovae's programs."""

    def __init__(self, vae: pv.VAE) -> None:
        super().__init__()
        self.vae = vae

    def model(self, x: Tensor) -> None:
        """Run the joint distribution p(x, z)."""
        pyro.module("model", self.vae.model)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", stock(self.vae.prior()))
            pyro.sample("x", self.vae.likelihood(z), obs=x)

    def guide(self, x: Tensor) -> None:
        """Run the posterior q(z | x)."""
        pyro.module("guide", self.vae.guide)
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.vae.posterior(x))


def stock(prior: Any) -> Any:
    """Return the prior, with Pyro's own class if it is a mixture."""
    if isinstance(prior, dist.MixtureSameFamily):
        return dist.MixtureSameFamily(prior.mixture_distribution, prior.component_distribution)
    return prior


def main(problem: Problem, validated: bool) -> None:
    """Train for one epoch in a turn."""
    pyro.enable_validation(validated)
    sizes = problem.sizes
    x = to_device(problem, problem.x)
    built, _ = build(problem)
    vae = Programs(built) if isinstance(built, pv.VAE) else built
    objective: Any = RenyiELBO(alpha=0, num_particles=sizes.k, vectorize_particles=True, max_plate_nesting=1)
    facts = {}
    if sizes.k == 1:
        objective = Trace_ELBO()
        facts = state(
            problem,
            vae,
            lambda x: objective.differentiable_loss(vae.model, vae.guide, x) / len(x),
            "torch.distributions.normal._standard_normal",
        )
    svi = SVI(vae.model, vae.guide, Adam({"lr": sizes.learning_rate}), objective)

    def epoch() -> None:
        for indices in torch.randperm(len(x), device=x.device).split(sizes.batch_size):
            svi.step(x[indices])
        finish(problem)

    serve("Pyro", epoch, **facts)


if __name__ == "__main__":
    main(Problem.read(Path(sys.argv[1])), validated="--unvalidated" not in sys.argv)
