"""Log-weights of any amount of data and draws, in chunks that fit a memory bound."""

from collections.abc import Iterator
from itertools import chain

import pyro
import torch
from torch import Tensor

from pyrovae.arguments import Data
from pyrovae.evaluation.pieces import MEMORY, Pieces
from pyrovae.isolation import fresh_seed, isolated
from pyrovae.sites import Program


def log_weights(
    model: Program,
    guide: Program,
    x: Data,
    num_samples: int,
    *,
    seed: int | None = None,
    plate: str | None = None,
    vectorize: bool = True,
    memory: int = MEMORY,
) -> Tensor:
    r"""Draws importance log-weights, :math:`\log p(x_n, z) - \log q(z \mid x_n)` with :math:`z \sim q(z \mid x_n)`.

    Scales (subsampling, annealing) are left out and masks are kept. Observed sites outside the data plate, such as a
    latent that was conditioned on, are given and no part of the weights. A program whose plate subsamples is told which
    data to take, until all have been taken. Nothing is changed by the evaluation: no global generator and, where the
    programs are modules or methods of modules, no parameter, buffer or training mode.

    Args:
        model: Pyro program of p(x, z), called as ``model(x)``, or ``model(*x)`` if ``x`` is a tuple.
        guide: Pyro program of q(z | x), called likewise.
        x: Data, shape ``(N, *event)``, or a tuple of tensors that share the first dimension. They are moved to the
            device of the programs' parameters.
        num_samples: Draws per datum, K.
        seed: Seed of the draws; by default a new one from the operating system.
        plate: Name of the data plate; by default the outermost plate that all latent sites share.
        vectorize: Whether many draws are made in one run, along a dimension to the left of the program's plates. A
            program that cannot take it is run once a draw with ``vectorize=False``.
        memory: Bytes that the tensors of one run may take, which sets the size of the chunks. The draws depend on it.

    Returns:
        Log-weights, shape ``(num_samples, N)``, nats.

    Raises:
        TypeError: If ``x`` is not of floating-point tensors.
        ValueError: If ``x`` is empty or not finite, or lies outside the likelihood's support; if ``num_samples`` is
            less than 1; if model and guide disagree about their latent sites, there is no data plate, or a latent site
            lies outside it.

    Example:
        >>> import torch, pyrovae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Normal(pv.networks.mlp(2, 4)),
        ...     pv.posteriors.DiagonalNormal(pv.networks.mlp(4, 2 * 2)),
        ... )
        >>> pv.evaluation.log_weights(vae.model, vae.guide, torch.zeros(10, 4), num_samples=7).shape
        torch.Size([7, 10])
    """
    with isolated(model, guide, seed=fresh_seed() if seed is None else seed):
        sampler = Sampler(model, guide, x, num_samples, plate=plate, vectorize=vectorize, memory=memory)
        chunks = iter(sampler)
        first = next(chunks)
        log_w, done = first.new_empty(num_samples, sampler.size), 0
        for chunk in chain([first], chunks):  # written in place: kept, the chunks would fragment the heap
            log_w[:, done : done + chunk.shape[1]] = chunk
            done += chunk.shape[1]
        return log_w


class Sampler:
    """Yields the log-weights of consecutive data, shape ``(num_samples, n)``; to be made and iterated in isolation."""

    def __init__(
        self,
        model: Program,
        guide: Program,
        x: Data,
        num_samples: int,
        *,
        plate: str | None = None,
        vectorize: bool = True,
        memory: int = MEMORY,
    ) -> None:
        if num_samples < 1:
            raise ValueError(f"num_samples, the number of draws per datum, must be at least 1, got {num_samples}")
        self.pieces = Pieces(model, guide, x, plate=plate, vectorize=vectorize, memory=memory)
        self.size, self.num_samples, self.vectorize = self.pieces.size, num_samples, vectorize
        affordable = self.pieces.affordable
        self.draws = min(num_samples, affordable if self.pieces.cuttable else affordable // self.pieces.plate.size or 1)
        self.width = max(1, affordable // self.draws)
        if not vectorize:
            self.draws, self.width = num_samples, min(affordable, max(1, memory // (8 * num_samples)))

    def __iter__(self) -> Iterator[Tensor]:
        with pyro.validation_enabled(False):
            for piece in self.pieces.cut(self.width):
                runs = [
                    self.pieces.run(piece, min(self.draws, self.num_samples - done), self.vectorize).log_weights
                    for done in range(0, self.num_samples, self.draws)
                ]
                yield torch.cat(runs)[:, : piece.kept]
