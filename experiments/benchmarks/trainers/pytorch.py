"""PyTorch without a library: a hand-written loss and a plain loop. ``--compile`` compiles the loss."""

import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from experiments.benchmarks.networks import make, state, to_device
from experiments.benchmarks.problem import Problem
from experiments.benchmarks.rounds import serve


class VAE(nn.Module):
    """A VAE whose forward pass returns the loss."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, k: int) -> None:
        super().__init__()
        self.encoder, self.decoder, self.k = encoder, decoder, k

    def forward(self, x: Tensor) -> Tensor:
        """Return minus the bound, in nats per datum. Constants of the two normal densities cancel."""
        loc, log_scale = self.encoder(x).chunk(2, -1)
        noise = torch.randn((self.k, *loc.shape), device=x.device)
        z = loc + log_scale.exp() * noise
        logits = self.decoder(z)
        log_likelihood = -F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)
        log_weights = log_likelihood + (0.5 * (noise**2 - z**2) + log_scale).sum(-1)
        bound = log_weights[0] if self.k == 1 else log_weights.logsumexp(0) - math.log(self.k)
        return -bound.mean()


def main(problem: Problem, compiled: bool) -> None:
    """Train for one epoch in a turn."""
    sizes = problem.sizes
    x = to_device(problem, problem.x)
    vae = VAE(make(problem, "encoder"), make(problem, "decoder"), sizes.k)
    facts = state(problem, vae, vae, "torch.randn")
    loss_of = torch.compile(vae, mode="reduce-overhead" if sizes.device == "cuda" else None) if compiled else vae
    optimizer = torch.optim.Adam(vae.parameters(), lr=sizes.learning_rate, fused=True)

    def epoch() -> None:
        total = torch.zeros((), device=x.device)
        for indices in torch.randperm(len(x), device=x.device).split(sizes.batch_size):
            loss = loss_of(x[indices])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach()
        total.item()

    serve("PyTorch", epoch, **facts)


if __name__ == "__main__":
    main(Problem.read(Path(sys.argv[1])), compiled="--compile" in sys.argv)
