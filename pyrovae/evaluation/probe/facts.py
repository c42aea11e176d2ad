"""The facts about a program on which an evaluation relies."""

from dataclasses import dataclass
from typing import Literal

from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

BaseMeasure = Literal["counting", "Lebesgue", "unknown"]


@dataclass(frozen=True)
class MemoryUse:
    """Bytes of the tensors that a run creates.

    Attributes:
        per_weight: Bytes in guide and model per draw and datum.
        guide_per_datum: Bytes in the guide per datum, without the bytes that grow with the number of draws.
        guide_per_draw: Bytes in the guide per draw and datum.
        model_per_draw: Bytes in the model per draw and datum.
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
        nesting: Nesting depth of the program's own plates.
        cuttable: True if the program runs on any number of data.
        vectorize: True if many draws are made in one run.
        enumerates: True if sites of the guide are enumerated, so that guide and model run together.
        masked: True if a latent site of the first run is masked.
        event_dims: Number of event dimensions of each latent site of the guide.
        base_measures: Base measure of each observed site.
        parameters: Values of the parameters that the programs register in Pyro's parameter store.
        finite: Indices of the data without NaN. The programs are expected to score these data.
        memory: Bytes of a run.
        dtype: Dtype of the log-weights, such as ``"float32"``.
        makes_modules: True if later runs call modules that the first run did not call, such as a dropout layer that the
            program creates.
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
