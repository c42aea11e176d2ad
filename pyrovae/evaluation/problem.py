"""All data of a program, cut into pieces that fit a memory bound: what every estimator walks over."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyrovae._waist.draws import Draws, draw, draw_latents, log_joint
from pyrovae._waist.sites import Program
from pyrovae._waist.weights import Weights, importance_weights
from pyrovae.arguments import Data, as_tensors, check_whole
from pyrovae.isolation import program_device

# On a CPU larger tensors are given back to the system after every run, and to fetch their pages anew costs a third of
# the time. With so little a GPU waits for Python: on an H200 an evaluation took more than four times as long.
MEMORY = {"cpu": 2**25, "cuda": 2**31}


@dataclass(frozen=True)
class Piece:
    """Arguments of one run, how many of its data are new, and which data its plate is to take."""

    args: tuple[Tensor, ...]
    kept: int
    subsample: dict[str, Tensor] | None = None


class Pieces:
    """How a program takes its data; to be made and used in isolation.

    When made, it finds out by a few small runs how the program treats its data, checks all of them against the
    likelihood's support, and measures what a draw costs. Arguments as for :func:`pyrovae.evaluation.log_weights`.

    Attributes:
        size: Number of data.
        plate: The data plate of a run.
        nesting: Depth of the program's own plates.
        affordable: How many log-weights a run can make within the memory.
        enumerates: Whether the programs sum sites out.
        base_measures: What the observed sites' log-probabilities are of, by site.
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        x: Data,
        *,
        plate: str | None = None,
        vectorize: bool = True,
        memory: int | None = None,
    ) -> None:
        data = self.data = as_tensors("x", x)
        self.device = program_device(model, guide, default=data[0].device)
        self.memory = MEMORY.get(self.device.type, MEMORY["cpu"]) if memory is None else memory
        check_whole(memory=self.memory)
        if self.memory < 1:
            raise ValueError(f"memory must be a positive number of bytes, got {self.memory}")
        self.size = len(data[0])
        self.model, self.guide, self.plate_name, self.vectorize = model, guide, plate, vectorize

        if isinstance(unwrapped := poutine.unwrap(guide), AutoGuide) and unwrapped.prototype_trace is None:
            raise ValueError(
                "the autoguide has not seen data yet; train it, or run guide(x) once, before evaluating it"
            )
        self.cuttable = self.size > 3 and self._follows(2) and self._follows(3)
        probe = self.run(next(self.cut(2)) if self.cuttable else Piece(self.data, self.size))
        self.plate, self.nesting, self.base_measures = probe.plate, probe.nesting, probe.base_measures
        self.enumerates = probe.densities is None
        self.affordable = max(1, self.memory // self._bytes_per_weight())
        if self.cuttable and not self._follows(min(self.size, self.affordable)):
            self.cuttable = False  # its plate takes so many data and no more
            self.plate = self.run(Piece(self.data, self.size)).plate
        if not self.cuttable and self.size not in (self.plate.size, self.plate.full_size):
            raise ValueError(
                f"the data plate {self.plate.name!r} has size {self.plate.size} but x has {self.size} data; make the "
                f"plate's size that of the data, or name another plate with plate="
            )
        self._check_support()

    def cut(self, width: int) -> Iterator[Piece]:
        """All data, ``width`` a piece if the program lets them be cut, else as its plate wants them."""
        if self.cuttable:
            for start in range(0, self.size, width):
                part = tuple(tensor[start : start + width] for tensor in self.data)
                yield Piece(part, len(part[0]))
        elif self.plate.size == self.size:
            yield Piece(self.data, self.size)
        else:
            indices = torch.arange(self.plate.size, device=self.device)
            for start in range(0, self.size, self.plate.size):
                taken = {self.plate.name: (start + indices) % self.size}  # the last piece is filled up from the first
                yield Piece(self.data, min(self.plate.size, self.size - start), taken)

    @property
    def data_dim(self) -> int:
        """Index of the data among the dimensions of a draw, the first of which is that of draws."""
        return self.nesting + 1 + cast(int, self.plate.dim)

    def arguments(self, piece: Piece) -> list[Tensor]:
        """What the programs are called with."""
        return [tensor.to(self.device) for tensor in piece.args]

    def run(
        self, piece: Piece, draws: int = 1, vectorize: bool = False, wrap: tuple[Messenger, Messenger] | None = None
    ) -> Weights:
        """Draws the log-weights of a piece, all in one run or one run a draw, within handlers of model and guide."""
        with _explained() if vectorize else nullcontext():
            return importance_weights(
                self.model if wrap is None else wrap[0](self.model),
                self.guide if wrap is None else wrap[1](self.guide),
                self.arguments(piece),
                draws,
                nesting=self.nesting if vectorize else None,
                plate=self.plate_name,
                values=piece.subsample,
            )

    def draw(self, args: list[Tensor], num_samples: int, subsample: dict[str, Tensor] | None) -> Draws:
        """Runs the guide alone, for many draws at once."""
        plate = self.plate._replace(size=len(args[0]) if self.cuttable else self.plate.size)
        with _explained():
            return draw(self.guide, args, num_samples, nesting=self.nesting, plate=plate, values=subsample)

    def log_joint(self, args: list[Tensor], values: dict[str, Tensor], num_samples: int) -> Tensor:
        """Runs the model alone on draws of the guide, shape ``(num_samples, n)``."""
        plate = self.plate._replace(size=len(args[0]) if self.cuttable else self.plate.size)
        with _explained():
            return log_joint(self.model, args, values, num_samples, nesting=self.nesting, plate=plate)

    def affordable_draws(self, num_samples: int) -> tuple[int, int]:
        """How many log-weights guide and model can each make within the memory, for so many draws of each datum."""
        piece = next(self.cut(2))
        args, size = self.arguments(piece), piece.kept

        def cost(draws: int) -> tuple[int, int]:
            with pyro.validation_enabled(False):
                with _CountBytes() as of_guide:
                    made = self.draw(args, draws, piece.subsample)
                with _CountBytes() as of_model:
                    self.log_joint(args, made.chosen | made.values, draws)
            return of_guide.bytes, of_model.bytes

        (few, _), (many, of_model) = cost(4), cost(8)
        each = (many - few) / 4  # the rest is for encoding, once
        of_guide = each + max(0.0, few - 4 * each) / num_samples
        weights = self.memory * size
        return max(1, int(weights / max(1.0, of_guide))), max(1, int(weights / max(1.0, of_model / 8)))

    def check_repeats(self) -> None:
        """Refuses programs that are another density at every run, so that what was drawn in one is none of the next.

        Raises:
            ValueError: If log p(x, z) or log q(z | x) at the same draws differ between two runs.
        """
        piece = next(self.cut(2))
        sites = draw_latents(self.guide, self.arguments(piece), values=piece.subsample)
        values = {name: site["value"] for name, site in sites.items()}
        first, again = (
            importance_weights(self.model, self.guide, self.arguments(piece), plate=self.plate_name, values=values)
            for _ in range(2)
        )
        if not torch.allclose(first.log_weights, again.log_weights, rtol=1e-4, atol=1e-3):
            raise ValueError(
                f"model or guide is another density at every run, by "
                f"{float((first.log_weights - again.log_weights).abs().max()):.3g} nats at the same draws, as it draws "
                f"random numbers that are no sample sites; use one that does not (vae.posterior.amortized in the place "
                f"of pyrovae.posteriors.SemiAmortized)"
            )

    def check_whole(self) -> None:
        """Refuses programs whose plate takes part of the data, where all are to be simulated.

        Raises:
            ValueError: If it does.
        """
        if self.plate.size != self.plate.full_size:
            raise ValueError(
                f"the data plate {self.plate.name!r} takes {self.plate.size} of {self.plate.full_size} data a run, so "
                f"they cannot all be simulated; give a program that takes all of its data"
            )

    def _follows(self, size: int) -> bool:
        """Whether the program runs on so many data, and its plate has their number."""
        try:
            return self.run(Piece(tuple(tensor[:size] for tensor in self.data), size)).plate.size == size
        except Exception:  # whatever is wrong shows again, and is raised, when it runs on all data
            return False

    def _check_support(self) -> None:
        with pyro.validation_enabled():
            for piece in self.cut(self.affordable):
                self.run(piece)

    def _bytes_per_weight(self) -> int:
        """Bytes of all tensors that a run makes, per draw and datum."""
        draws, piece = 8 if self.vectorize else 1, next(self.cut(2))
        with pyro.validation_enabled(False), _CountBytes() as counter:
            weights = self.run(piece, draws, self.vectorize).log_weights
        return max(1, counter.bytes // weights.numel())


@contextmanager
def _explained() -> Iterator[None]:
    """Adds to the errors of a run of many draws what such a run wants of a program."""
    try:
        yield
    except Exception as error:
        if isinstance(error, RuntimeError) or "shape" in str(error).lower():
            error.add_note(
                "The program ran with one draw, but not with a plate of draws to the left of its own plates; let its "
                "networks keep leading dimensions (pyrovae.networks.Batched), or pass vectorize=False to those "
                "functions that take it."
            )
        raise


class _CountBytes(TorchFunctionMode):
    """Adds up the sizes of all tensors made, an upper bound on what is held at a time."""

    bytes: int = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and not torch.is_grad_enabled():  # gradient steps of a guide hold on to nothing
            shared = any(isinstance(arg, Tensor) and arg.data_ptr() == result.data_ptr() for arg in args)
            self.bytes += 0 if shared else result.nbytes  # a view costs nothing
        return result
