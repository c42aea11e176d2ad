"""Data classes for the properties of a program, and for the memory that its runs use."""

from dataclasses import dataclass
from typing import Literal

from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

BaseMeasure = Literal["counting", "Lebesgue", "unknown"]


@dataclass(frozen=True)
class MemoryUse:
    """Bytes of the tensors that a run of guide and model creates.

    A run with S draws of N data has S N log-weights.

    Attributes:
        per_weight: Bytes of all tensors of guide and model, divided by S N.
        guide_per_datum: Bytes of the guide's tensors without a dimension of draws, divided by N.
        guide_per_draw: Bytes of the guide's tensors with a dimension of draws, divided by S N.
        model_per_draw: Bytes of the model's tensors, divided by S N.
    """

    per_weight: int
    guide_per_datum: float
    guide_per_draw: float
    model_per_draw: float


@dataclass(frozen=True)
class Probe:
    """Properties of a program, found by short runs on a few data.

    Attributes:
        plate: The data plate of a run.
        nesting: Nesting depth of the program's plates, without the plate of draws.
        cuttable: True if the program runs on any number of data.
        vectorize: True if many draws are made in one run.
        enumerates: True if sites of the guide are enumerated, so that guide and model run together.
        masked: True if a latent site of the first run is masked.
        event_dims: For each latent site of the guide, the number of its event dimensions.
        base_measures: Base measure of each observed site.
        parameters: Values of the parameters that the programs register in Pyro's parameter store.
        finite: Indices of data without NaN or infinite values, which the programs are expected to score.
        memory: Bytes of the tensors that a run creates; see :class:`MemoryUse`.
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
        """Return the dimension of draws in values of the latent site ``name``, as a negative index."""
        return -self.nesting - 1 - self.event_dims[name]
