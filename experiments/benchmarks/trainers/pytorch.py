"""PyTorch without a library: a loss written by hand and a plain loop. ``--compile`` compiles the loss."""

import sys
from pathlib import Path

import torch

from experiments.benchmarks.networks import build, state, to_device
from experiments.benchmarks.problem import Problem
from experiments.benchmarks.rounds import serve


def main(problem: Problem, compiled: bool) -> None:
    """Train for one epoch in a turn."""
    sizes = problem.sizes
    x = to_device(problem, problem.x)
    _, vae = build(problem)
    vae.k = sizes.k  # type: ignore[assignment]
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
