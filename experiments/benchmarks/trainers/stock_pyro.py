"""Unmodified Pyro: ``pyro.module``, ``SVI`` and ``pyro.optim.Adam``. ``--unvalidated`` turns validation off.

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

from experiments.benchmarks.networks import finish, make, state, to_device
from experiments.benchmarks.problem import Problem
from experiments.benchmarks.rounds import serve


class VAE(nn.Module):
    """A VAE as a model and a guide."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, latent: int) -> None:
        super().__init__()
        self.encoder, self.decoder, self.latent = encoder, decoder, latent

    def model(self, x: Tensor) -> None:
        """Run the joint distribution p(x, z)."""
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            loc = x.new_zeros(len(x), self.latent)
            z = pyro.sample("z", dist.Normal(loc, torch.ones_like(loc)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """Run the posterior q(z | x)."""
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def main(problem: Problem, validated: bool) -> None:
    """Train for one epoch in a turn."""
    pyro.enable_validation(validated)
    sizes = problem.sizes
    x = to_device(problem, problem.x)
    vae = VAE(make(problem, "encoder"), make(problem, "decoder"), sizes.latent)
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
