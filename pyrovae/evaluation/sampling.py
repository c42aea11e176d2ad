"""Log-weights of any amount of data and draws, in chunks that fit a memory bound."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyrovae.arguments import Data, as_tensors
from pyrovae.isolation import fresh_seed, isolated, program_device
from pyrovae.sites import Program
from pyrovae.weights import Weights, importance_weights

MEMORY = 2**26


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
    """Yields the log-weights of consecutive data, shape ``(num_samples, n)``; to be made and iterated in isolation.

    When made, it finds out by a few small runs how the program treats its data, checks all of them against the
    likelihood's support, and measures what a draw costs. Arguments as for :func:`log_weights`.
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
        memory: int = MEMORY,
    ) -> None:
        if num_samples < 1:
            raise ValueError(f"num_samples, the number of draws per datum, must be at least 1, got {num_samples}")
        if memory < 1:
            raise ValueError(f"memory must be a positive number of bytes, got {memory}")
        data = as_tensors("x", x)
        self.device = program_device(model, guide, default=data[0].device)
        self.data = data
        self.size, self.num_samples = len(data[0]), num_samples
        self.model, self.guide, self.plate_name, self.vectorize = model, guide, plate, vectorize

        if isinstance(unwrapped := poutine.unwrap(guide), AutoGuide) and unwrapped.prototype_trace is None:
            raise ValueError(
                "the autoguide has not seen data yet; train it, or run guide(x) once, before evaluating it"
            )
        self.cuttable = self.size > 3 and self._follows(2) and self._follows(3)
        probe = self._run(next(self._pieces(2)) if self.cuttable else _Piece(self.data, self.size))
        self.plate, self.nesting = probe.plate, probe.nesting
        affordable = max(1, memory // self._bytes_per_weight())
        if self.cuttable and not self._follows(min(self.size, affordable)):
            self.cuttable = False  # its plate takes so many data and no more
            self.plate = self._run(_Piece(self.data, self.size)).plate
        if not self.cuttable and self.size not in (self.plate.size, self.plate.full_size):
            raise ValueError(
                f"the data plate {self.plate.name!r} has size {self.plate.size} but x has {self.size} data; make the "
                f"plate's size that of the data, or name another plate with plate="
            )
        self._check_support(width=affordable)
        self.draws = min(num_samples, affordable if self.cuttable else max(1, affordable // self.plate.size))
        self.width = max(1, affordable // self.draws)
        if not vectorize:
            self.draws, self.width = num_samples, min(affordable, max(1, memory // (8 * num_samples)))

    def __iter__(self) -> Iterator[Tensor]:
        with pyro.validation_enabled(False):
            for piece in self._pieces(self.width):
                runs = [
                    self._run(piece, min(self.draws, self.num_samples - done), self.vectorize).log_weights
                    for done in range(0, self.num_samples, self.draws)
                ]
                yield torch.cat(runs)[:, : piece.kept]

    def _pieces(self, width: int) -> Iterator["_Piece"]:
        """All data, ``width`` a piece if the program lets them be cut, else as its plate wants them."""
        if self.cuttable:
            for start in range(0, self.size, width):
                part = tuple(tensor[start : start + width] for tensor in self.data)
                yield _Piece(part, len(part[0]))
        elif self.plate.size == self.size:
            yield _Piece(self.data, self.size)
        else:
            indices = torch.arange(self.plate.size, device=self.device)
            for start in range(0, self.size, self.plate.size):
                taken = {self.plate.name: (start + indices) % self.size}  # the last piece is filled up from the first
                yield _Piece(self.data, min(self.plate.size, self.size - start), taken)

    def _run(self, piece: "_Piece", draws: int = 1, vectorize: bool = False) -> Weights:
        try:
            return importance_weights(
                self.model,
                self.guide,
                [tensor.to(self.device) for tensor in piece.args],
                draws,
                nesting=self.nesting if vectorize else None,
                plate=self.plate_name,
                values=piece.subsample,
            )
        except Exception as error:
            if vectorize:
                error.add_note(
                    "The program ran with one draw, but not with a plate of draws to the left of its own plates; let "
                    "its networks keep leading dimensions (pyrovae.networks.Batched), or pass vectorize=False."
                )
            raise

    def _follows(self, size: int) -> bool:
        """Whether the program runs on so many data, and its plate has their number."""
        try:
            return self._run(_Piece(tuple(tensor[:size] for tensor in self.data), size)).plate.size == size
        except Exception:  # whatever is wrong shows again, and is raised, when it runs on all data
            return False

    def _check_support(self, width: int) -> None:
        with pyro.validation_enabled():
            for piece in self._pieces(width):
                self._run(piece)

    def _bytes_per_weight(self) -> int:
        """Bytes of all tensors that a run makes, per draw and datum."""
        draws, piece = 8 if self.vectorize else 1, next(self._pieces(2))
        with pyro.validation_enabled(False), _CountBytes() as counter:
            weights = self._run(piece, draws, self.vectorize).log_weights
        return max(1, counter.bytes // weights.numel())


@dataclass(frozen=True)
class _Piece:
    """Arguments of one run, how many of its data are new, and which data its plate is to take."""

    args: tuple[Tensor, ...]
    kept: int
    subsample: dict[str, Tensor] | None = None


class _CountBytes(TorchFunctionMode):
    """Adds up the sizes of all tensors made, an upper bound on what is held at a time."""

    bytes: int = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and not torch.is_grad_enabled():  # gradient steps of a guide hold on to nothing
            shared = any(isinstance(arg, Tensor) and arg.data_ptr() == result.data_ptr() for arg in args)
            self.bytes += 0 if shared else result.nbytes  # a view costs nothing
        return result
