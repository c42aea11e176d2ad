"""Operations that every evaluation needs, each timed alone in PyTorch: noise, matrix products, activation and density.

Every part uses the same tensors of ``--rows`` draws repeatedly, so that its inputs stay in the caches. The rest, such
as the densities of the latents and the sum over the draws, is left out.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from experiments.benchmarks.estimates import timed
from experiments.benchmarks.networks import finish, make, to_device
from experiments.benchmarks.problem import Problem
from experiments.benchmarks.rounds import serve

Part = Callable[[], Any]


def main(problem: Problem, rows: int) -> None:
    """Run each part in a turn, as often as all images need it."""
    x, total = to_device(problem, problem.x), len(problem.x) * problem.sizes.k
    rows = min(rows, total)
    encoder = make(problem, "encoder")
    torch.empty(2**25 - 2**16, dtype=torch.uint8)  # freeing this much makes glibc keep the memory that the parts free
    parts = of_decoder(problem, rows)

    @torch.no_grad()
    def seconds_of(part: Part) -> float:
        """Return the seconds of all draws in batches of ``rows``, with a smaller last batch."""
        times = max(1, total // rows)

        def work() -> None:
            for _ in range(times):
                part()
            finish(problem)

        return timed(work)[1] * total / (times * rows)

    def seconds() -> dict[str, float]:
        every = {name: seconds_of(part) for name, part in parts.items()}
        with torch.no_grad():
            every["products"] += timed(lambda: encoder(x))[1]  # once per image, for all draws
        return every

    seconds()
    repeats = [seconds() for _ in range(3)]
    facts = {f"{name}_seconds": median(repeat[name] for repeat in repeats) for name in parts}
    serve("parts", lambda: sum(seconds().values()), **facts)


def of_decoder(problem: Problem, rows: int) -> dict[str, Part]:
    """Return the parts of decoding ``rows`` draws."""
    decoder = make(problem, "decoder")
    first, second = decoder[0], decoder[2]
    x, latent = to_device(problem, problem.x[0]), problem.sizes.latent
    with torch.no_grad():
        z = torch.randn(rows, latent, device=x.device)
        hidden = first(z)
        logits = second(F.softplus(hidden))

    def density() -> Tensor:
        F.softplus(hidden)
        return F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)

    return {
        "noise": partial(torch.randn, rows, latent, device=x.device),
        "products": lambda: (first(z), second(hidden)),
        "density": density,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, required=True)
    arguments = parser.parse_args()
    main(Problem.read(arguments.folder), arguments.rows)
