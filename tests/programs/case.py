"""A cell of the matrix: a program with its guide and its data, and the outcome that each tool is expected to have."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer import ELBO, Trace_ELBO
from torch import Tensor, nn

TOOLS = (
    "fit", "SVI", "IWAE", "evaluate", "log_likelihood", "ais", "rqmc", "nuts",
    "inference data", "checkpoint", "save and load", "compile",
)  # fmt: skip
PER_DATUM = TOOLS[2:9]  # tools that need a log-weight for each datum
HAMILTONIAN = ("ais", "nuts")


@dataclass(frozen=True, eq=False)
class Case:
    """A program and what is known about it.

    Attributes:
        name: Row of the table.
        build: Makes a module with ``model`` and ``guide``, in Pyro's default state.
        data: Makes the arguments of both; tensors share the first dimension.
        elbo: The objective that a user of Pyro would take.
        exact: Returns log p(x) of each datum, shape ``(N,)``, computed without pyrovae; without it the reference is
            importance sampling by Pyro alone.
        draws: Number of draws of that importance sampling.
        by_datum: Whether the guide can be run on one datum alone.
        enumerated: Whether the model sums out discrete sites, so that log-weights come from Pyro's loss.
        guide_enumerates: Whether the guide has enumerated sites, so that Pyro's loss is no log-weight.
        without_factor: Makes the module without the factors of a training loss, which an evaluation leaves out.
        refused: Name of the refusal in :mod:`tests.programs.refusals` by tool.
    """

    name: str
    build: Callable[[], Any]
    data: Callable[[], tuple[Any, ...]]
    elbo: Callable[[], ELBO] = Trace_ELBO
    exact: Callable[[], np.ndarray] | None = None
    draws: int = 20_000
    by_datum: bool = True
    enumerated: bool = False
    guide_enumerates: bool = False
    without_factor: Callable[[], Any] | None = None
    refused: Mapping[str, str] = field(default_factory=dict)

    def fresh(self, seed: int = 0) -> Any:
        """Return the module with new parameters; those of an autoguide exist after its first run."""
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        programs = self.build()
        programs.guide(*self.data())
        pyro.set_rng_seed(seed)
        return programs

    def kind(self, tool: str) -> str:
        """Return the kind of outcome that is expected of a tool."""
        return "refused" if tool in self.refused else "right"

    def unpenalized(self) -> Any:
        """Return the module whose log-weights an evaluation is compared with."""
        return self.fresh() if self.without_factor is None else replace(self, build=self.without_factor).fresh()

    @property
    def size(self) -> int:
        """Number of data."""
        return len(next(part for part in self.data() if isinstance(part, Tensor)))

    def datum(self, index: int) -> tuple[Any, ...]:
        """Return the arguments with one datum."""
        return tuple(part[index : index + 1] if isinstance(part, Tensor) else part for part in self.data())


class Guided(nn.Module):
    """A program with one of Pyro's autoguides, or another guide that is made from the model."""

    def __init__(self, program: Any, make: Callable[[Any], Any]) -> None:
        super().__init__()
        self.program = program
        self.guide = make(self.model)

    def model(self, *args: Any) -> Any:
        return self.program.model(*args)


def refused(name: str, *tools: str) -> dict[str, str]:
    """Return the same refusal for several tools."""
    return dict.fromkeys(tools, name)


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Return standard normal noise that is the same in every run."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


DISCRETE = {
    **refused("without reparameterized draws", "IWAE"),
    **refused("discrete site", *HAMILTONIAN),
    **refused("without inverse", "rqmc"),
}
GUIDE_ENUMERATES = refused("enumerated in the guide", *HAMILTONIAN)
SUMMED_OUT = refused("without latents", *HAMILTONIAN)
