"""PyTorch without a library: hand-written log-weights in batches of draws. ``--compile`` compiles them.

Every image is encoded once. ``--rows`` is the number of draws, of one or more images, that are decoded at once.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from experiments.benchmarks.estimates import enter
from experiments.benchmarks.networks import make, to_device
from experiments.benchmarks.problem import Problem


class LogWeights(nn.Module):
    """Log-weights of draws. Constants of the two normal densities cancel."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, x: Tensor, loc: Tensor, log_scale: Tensor, noise: Tensor) -> Tensor:
        """Return the log-weights, shape ``(draws, N)``, of draws from noise of shape ``(draws, N, latent)``."""
        z = loc + log_scale.exp() * noise
        logits = self.decoder(z)
        log_likelihood = -F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)
        return log_likelihood + (0.5 * (noise**2 - z**2) + log_scale).sum(-1)


def main(problem: Problem, rows: int, compiled: bool = False) -> None:
    """Evaluate all images in a turn."""
    x, noise = to_device(problem, problem.x), to_device(problem, problem.noise)
    encoder = make(problem, "encoder")
    log_weights: Callable[..., Tensor] = LogWeights(make(problem, "decoder"))
    if compiled:
        log_weights = torch.compile(log_weights, dynamic=False)  # all sizes are constant
    draws, images = problem.sizes.k, max(1, rows // problem.sizes.k)

    @torch.no_grad()
    def estimate() -> np.ndarray:
        loc, log_scale = encoder(x).chunk(2, -1)
        parts = []
        for given in zip(x.split(images), loc.split(images), log_scale.split(images), strict=True):
            shape = given[1].shape
            counts = [min(rows, draws - done) for done in range(0, draws, rows)]
            weights = [log_weights(*given, torch.randn(count, *shape, device=x.device)) for count in counts]
            parts.append(torch.cat(weights).logsumexp(0) - math.log(draws))
        return torch.cat(parts).cpu().numpy()

    @torch.no_grad()
    def from_given_noise() -> np.ndarray:
        first = x[: noise.shape[1]]
        weights = log_weights(first, *encoder(first).chunk(2, -1), noise)
        return (weights.logsumexp(0) - math.log(len(noise))).cpu().numpy()

    torch.manual_seed(problem.sizes.seed)
    enter("PyTorch", estimate, from_given_noise)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--compile", action="store_true", dest="compiled")
    arguments = vars(parser.parse_args())
    main(Problem.read(arguments.pop("folder")), **arguments)
