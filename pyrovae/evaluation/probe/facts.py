"""The facts about a program on which an evaluation relies."""

from dataclasses import dataclass
from typing import Literal

from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

BaseMeasure = Literal["counting", "Lebesgue", "unknown"]


@dataclass(frozen=True)
class MemoryUse:
    """Bytes of the tensors that a run makes.

    Attributes:
        per_weight: In guide and model, for a draw and datum.
        guide_per_datum: In the guide, for a datum, whatever the number of draws.
        guide_per_draw: In the guide, for each draw of a datum.
        model_per_draw: In the model, for a draw and datum.
    """

    per_weight: int
    guide_per_datum: float
    guide_per_draw: float
    model_per_draw: float


@dataclass(frozen=True)
class Probe:
    """Properties of a program on its data.

    Attributes:
        plate: The data plate of a run.
        nesting: Depth of the program's own plates.
        cuttable: Whether the program runs on any number of data.
        vectorize: Whether many draws are made in one run.
        enumerates: Whether sites of the guide are enumerated, so that guide and model run together.
        masked: Whether a latent site of the first run is masked.
        event_dims: Number of event dimensions of each latent site of the guide.
        base_measures: Base measure of each observed site.
        parameters: Values of the parameters that the programs announce to Pyro.
        finite: Indices of the data that the programs can score, as far as that is known: those without NaN.
        memory: Bytes of a run.
        dtype: Type of the log-weights, such as ``"float32"``.
        makes_modules: Whether runs after the first call modules that it did not call, such as a dropout layer that the
            program makes.
    """

    plate: CondIndepStackFrame
    nesting: int
    cuttable: bool
    vectorize: bool
    enumerates: bool
    masked: bool
    event_dims: dict[str, int]
    base_measures: dict[str, BaseMeasure]
    parameters: list[Tensor]
    finite: Tensor
    memory: MemoryUse
    dtype: str
    makes_modules: bool

    def draws_dim(self, name: str) -> int:
        """Return the dimension of the draws in the value of a latent site, counted from the right."""
        return -self.nesting - 1 - self.event_dims[name]
