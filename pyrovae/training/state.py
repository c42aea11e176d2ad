"""What a run is at a moment: its tensors by name, the states of the generators, and how far it has come."""

import random
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

STORED = "pyro.param "
_BASELINES = "__baseline_avg_downstream_cost_"  # TraceGraph_ELBO's decaying averages, which it keeps in Pyro's store


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        epoch: Whole epochs.
        step: Steps of the epoch after these.
        order: In which that epoch takes the data, shape ``(N,)``; none before its first step.
        total: Its loss so far, summed over its data.
        seen: How many data that were.
        skipped: Steps that were none, since they were not finite.
    """

    epoch: int = 0
    step: int = 0
    order: Tensor | None = None
    total: Tensor | float = 0.0
    seen: int = 0
    skipped: int = 0


class Tensors:
    """The tensors of a run by name: parameters and buffers of a module, and what the programs keep in Pyro's store.

    Args:
        module: The module.
        stored: Parameters that are not the module's.
    """

    def __init__(self, module: nn.Module, stored: dict[str, Tensor]) -> None:
        self.module, self.stored = module, stored

    def keep(self, name: str, tensor: Tensor) -> None:
        """Adds a parameter that is not the module's, under a name that is the same in every process."""
        name = re.sub("@[0-9a-f]+$", "", name)  # a program of pyrovae's tells instances apart by their address
        taken = sum(other.removeprefix(STORED).split("#")[0] == name for other in self.stored)
        self.stored[f"{STORED}{name}" + (f"#{taken}" if taken else "")] = tensor

    def named(self) -> dict[str, Tensor]:
        """The tensors themselves."""
        kept = pyro.get_param_store().named_parameters()
        baselines = {f"{STORED}{name}": tensor for name, tensor in kept if name.startswith(_BASELINES)}
        return {**dict(self.module.named_parameters()), **dict(self.module.named_buffers()), **self.stored, **baselines}

    def copy(self) -> dict[str, Tensor]:
        """Copies of them."""
        return {name: tensor.detach().clone() for name, tensor in self.named().items()}

    @torch.no_grad()
    def restore(self, copies: dict[str, Tensor]) -> None:
        """Gives them the values of copies."""
        named = self.named()
        for name, value in copies.items():
            if name not in named:  # an average that a new process has not begun
                pyro.get_param_store()[name.removeprefix(STORED)] = value.to(
                    next(iter(named.values())).device, copy=True
                )
            elif named[name].shape == value.shape:
                named[name].copy_(value)
            else:  # a module may put a buffer of another shape in the place of one
                owner, _, leaf = name.rpartition(".")
                self.module.get_submodule(owner)._buffers[leaf] = value.to(named[name].device, copy=True)


def generator_states() -> dict[str, Any]:
    """The states of torch's, NumPy's and Python's global generators, as tensors and plain values."""
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": tree_map_only(np.ndarray, torch.from_numpy, np.random.get_state(legacy=False)),
        "python": random.getstate(),
    }


def restore_generators(states: dict[str, Any]) -> None:
    """Puts the generators back into such states; on CUDA only where there are as many devices."""
    torch.set_rng_state(states["torch"])
    if len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
    np.random.set_state(tree_map_only(Tensor, Tensor.numpy, states["numpy"]))
    random.setstate(states["python"])
