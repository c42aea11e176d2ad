"""Log-weights of any amount of data and draws, in chunks that fit a memory bound."""

import math
from collections.abc import Callable, Iterator
from itertools import chain
from typing import TypeVar

import pyro
import torch
from torch import Tensor

from pyrovae import parallel
from pyrovae._compilation.precision import Precision, check_precision, products
from pyrovae._waist.sites import Program
from pyrovae.arguments import Data, check_whole
from pyrovae.evaluation.estimators.scoring import Scorer
from pyrovae.evaluation.problem import Piece, Pieces
from pyrovae.isolation import fresh_seed, isolated, owners

Result = TypeVar("Result")


def log_weights(
    model: Program,
    guide: Program,
    x: Data,
    num_samples: int,
    *,
    seed: int | None = None,
    plate: str | None = None,
    vectorize: bool = True,
    memory: int | None = None,
    compile: bool = False,  # noqa: A002  # as torch calls it
    precision: Precision | None = None,
) -> Tensor:
    r"""Draws importance log-weights, :math:`\log p(x_n, z) - \log q(z \mid x_n)` with :math:`z \sim q(z \mid x_n)`.

    Scales (subsampling, annealing) are left out and masks are kept. Observed sites outside the data plate, such as a
    latent that was conditioned on, are given and no part of the weights. A program whose plate subsamples is told which
    data to take, until all have been taken. Nothing is changed by the evaluation: no global generator and, where the
    programs are modules or methods of modules, no parameter, buffer or training mode. Processes that have joined
    (:mod:`pyrovae.parallel`) compute the data by turns, and all get the same, that of one process.

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
        memory: Bytes that the tensors of one run may take, which sets the size of the chunks; by default 2^25 on a CPU
            and 2^31 on a CUDA device. The draws depend on it.
        compile: Whether to compile the model's density, for which torch's inductor takes some seconds; it pays from
            some hundreds of data by 5,000 draws. What cannot be compiled is run without, after a warning that says why.
        precision: Of the products in linear and convolutional layers: ``"bfloat16"``, or on CUDA ``"tf32"``. The error
            that it makes is in no ``mcse``. By default torch's own setting.

    Returns:
        Log-weights, shape ``(num_samples, N)``, nats.

    Raises:
        TypeError: If ``x`` is not of floating-point tensors, or a count or the seed is no integer.
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
    with isolated(model, guide, seed=parallel.in_first(fresh_seed) if seed is None else seed):
        sampler = Sampler(
            model,
            guide,
            x,
            num_samples,
            plate=plate,
            vectorize=vectorize,
            memory=memory,
            compile=compile,
            precision=precision,
        )
        chunks = sampler.map(lambda chunk: chunk)
        first = next(chunks)
        log_w = torch.empty(num_samples, sampler.size, dtype=first.dtype, device=sampler.pieces.device)
        done = 0
        for chunk in chain([first], chunks):  # written in place: kept, the chunks would fragment the heap
            log_w[:, done : done + chunk.shape[1]] = chunk
            done += chunk.shape[1]
        return log_w


class Sampler:
    """Log-weights of consecutive data, shape ``(num_samples, n)``, piece by piece; to be made and used in isolation.

    Each piece has a seed of its own, so that it has the same draws in whichever process it is computed.

    The guide runs once for some data and all of their draws, the model for a chunk of the draws at a time, small enough
    for its tensors to stay near the processor. Programs that enumerate sites run the two together, and those that take
    no dimension of draws, once for each draw.
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        x: Data,
        num_samples: int,
        *,
        plate: str | None = None,
        vectorize: bool = True,
        memory: int | None = None,
        compile: bool = False,  # noqa: A002  # as torch calls it
        precision: Precision | None = None,
    ) -> None:
        check_whole(num_samples=num_samples)
        if num_samples < 1:
            raise ValueError(f"num_samples, the number of draws per datum, must be at least 1, got {num_samples}")
        self.pieces = Pieces(model, guide, x, plate=plate, vectorize=vectorize, memory=memory)
        check_precision(precision, self.pieces.device)
        self.size, self.num_samples, self.precision = self.pieces.size, num_samples, precision
        self.run: Callable[[Piece], Tensor]
        if not vectorize:
            self.width = max(1, min(self.pieces.affordable, self.pieces.memory // (8 * num_samples)))
            self.run = self._one_by_one
        elif self.pieces.enumerates:
            self._plan(self.pieces.affordable, self.pieces.affordable)
            self.run = self._together
        else:
            self._plan(*self.pieces.affordable_draws(num_samples))
            self.run = Scorer(self.pieces, self.width, num_samples, self.block, self.draws, compile=compile)

    def _plan(self, of_guide: int, of_model: int) -> None:
        """Sets how many data and draws the programs take at once, from how many weights each can make.

        Few data by many draws: the products are as large, and the data are read from memory less often.
        """
        pieces, cuttable = self.pieces, self.pieces.cuttable
        few = max(8, of_model // self.num_samples)
        most = max(1, min(self.size, of_guide // self.num_samples, of_model))
        self.width = min(few, most) if cuttable else pieces.plate.size
        self.block = min(self.num_samples, max(1, of_guide // self.width))
        self.draws = _even(self.block, max(1, of_model // self.width))

    def map(self, function: Callable[[Tensor], Result]) -> Iterator[Result]:
        """A function of the log-weights of each piece, shared out among the processes that this one has joined."""

        def compute(numbered: tuple[int, Piece]) -> Result:
            number, piece = numbered
            torch.manual_seed(first + number)
            return function(self.run(piece)[:, : piece.kept])

        modules = owners(self.pieces.model, self.pieces.guide)
        tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        parallel.check_same("data or parameters of an evaluation", (*self.pieces.data, *tensors))
        first = int(torch.randint(2**62, ()))
        with pyro.validation_enabled(False), products(self.precision):
            yield from parallel.by_turns(compute, enumerate(self.pieces.cut(self.width)))

    def _one_by_one(self, piece: Piece) -> Tensor:
        return self.pieces.run(piece, self.num_samples).log_weights

    def _together(self, piece: Piece) -> Tensor:
        starts = range(0, self.num_samples, self.draws)
        counts = [min(self.draws, self.num_samples - start) for start in starts]
        return torch.cat([self.pieces.run(piece, count, vectorize=True).log_weights for count in counts])


def _even(total: int, most: int) -> int:
    """The size of chunks of at most so many that are all alike, or if such chunks are too small, nearly so."""
    fewest = math.ceil(total / most)
    number = next((n for n in range(fewest, 2 * fewest) if total % n == 0), fewest)
    return math.ceil(total / number)
