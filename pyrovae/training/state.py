"""The state of a run: its tensors by name, the states of the random generators, and its progress."""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from pyrovae.training.description import FORMAT
from pyrovae.training.history import History

STORED = "pyro.param "
_BASELINES = (
    "__baseline_avg_downstream_cost_"  # prefix of the decaying averages that TraceGraph_ELBO keeps in the store
)

# Entries of a checkpoint since version 0.1.0. An entry of a later version must have a default.
_STATE = ("progress", "tensors", "optimizer", "schedule", "generators", "history", "best", "seconds", "compile_seconds")
_PROGRESS = ("epoch", "step", "order", "total", "seen", "skipped")
_COLUMNS = ("train", "valid", "kl_weight", "learning_rate", "seconds", "skipped")
_HISTORY = ("objective", *_COLUMNS, "compile_seconds", "best_epoch", "interrupted")


@dataclass
class Progress:
    """The position of a training run in its current epoch.

    Attributes:
        epoch: Number of complete epochs.
        step: Number of steps made so far in the current epoch.
        order: Order in which the current epoch takes the data, shape ``(N,)``; ``None`` before its first step.
        total: Loss of the current epoch, summed over its data so far.
        seen: Number of data whose loss is part of ``total``.
        skipped: Number of steps of the current epoch that were skipped because their loss or gradient was not finite.
    """

    epoch: int = 0
    step: int = 0
    order: Tensor | None = None
    total: Tensor | float = 0.0
    seen: int = 0
    skipped: int = 0


class Tensors:
    """The tensors of a run by name: parameters and buffers of a module, and parameters of Pyro's store.

    Args:
        module: Trained module.
        stored: Parameters that do not belong to the module.
    """

    def __init__(self, module: nn.Module, stored: dict[str, Tensor]) -> None:
        self.module, self.stored = module, stored

    def keep(self, name: str, tensor: Tensor) -> None:
        """Add a parameter of Pyro's store to ``stored``, under a name that is the same in every process."""
        name = re.sub("@[0-9a-f]+$", "", name)  # the programs of pyrovae append their address to the name
        taken = sum(other.removeprefix(STORED).split("#")[0] == name for other in self.stored)
        self.stored[f"{STORED}{name}" + (f"#{taken}" if taken else "")] = tensor

    def of_module(self) -> dict[str, Tensor]:
        """Return the parameters and buffers of the module."""
        return {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}

    def named(self) -> dict[str, Tensor]:
        """Return the tensors by name, without copying."""
        kept = pyro.get_param_store().named_parameters()
        baselines = {f"{STORED}{name}": tensor for name, tensor in kept if name.startswith(_BASELINES)}
        return {**self.of_module(), **self.stored, **baselines}

    def copy(self) -> dict[str, Tensor]:
        """Return copies of the tensors."""
        return {name: tensor.detach().clone() for name, tensor in self.named().items()}

    @torch.no_grad()
    def restore(self, copies: dict[str, Tensor]) -> None:
        """Copy the values in ``copies`` into the tensors of the same names.

        Raises:
            ValueError: If the shapes of a parameter and of its new value differ. In this case, no tensor is changed.
        """
        named, parameters = self.named(), {*dict(self.module.named_parameters()), *self.stored}
        for name in parameters & copies.keys():
            if named[name].shape != copies[name].shape:
                raise ValueError(
                    f"parameter {name!r} has shape {tuple(named[name].shape)} here and {tuple(copies[name].shape)} in "
                    f"the file. Build the module as it was built when the file was written."
                )
        for name, value in copies.items():
            if name not in named:  # a decaying average that does not exist yet in a new process
                pyro.get_param_store()[name.removeprefix(STORED)] = value.to(
                    next(iter(named.values())).device, copy=True
                )
            elif named[name].shape == value.shape:
                named[name].copy_(value)
            else:  # a module may replace a buffer by a tensor of another shape
                owner, _, leaf = name.rpartition(".")
                self.module.get_submodule(owner)._buffers[leaf] = value.to(named[name].device, copy=True)


def require(path: Path, entries: Any, *names: str) -> None:
    """Raise ValueError if ``entries``, which were read from the file at ``path``, do not contain all ``names``.

    Raises:
        ValueError: If an entry is missing.
    """
    missing = [name for name in names if not (isinstance(entries, Mapping) and name in entries)]
    if missing:
        raise ValueError(
            f"{str(path)!r} is incomplete: the entry {missing[0]!r} is missing. Use another copy of the file."
        )


def file_format(path: Path, content: Mapping[str, Any]) -> int:
    """Return the format number of a file. Files of pyrovae 0.1.0 hold no format number; their format is 1.

    Raises:
        ValueError: If a later version wrote the file in a format that this version does not know.
    """
    found = content.get("format", 1)
    if found not in range(1, FORMAT + 1):
        raise ValueError(
            f"{str(path)!r} has format {found!r}, but this version of pyrovae reads only formats up to {FORMAT}. Use "
            f"a later version of pyrovae."
        )
    return int(found)


def check_state(path: Path, content: Mapping[str, Any]) -> None:
    """Check the entries of a checkpoint before a run continues from it.

    Raises:
        ValueError: If an entry is missing or unknown to this version.
    """
    state = content["state"]
    require(path, state, *_STATE)
    require(path, state["progress"], *_PROGRESS)
    require(path, state["history"], *_HISTORY)
    require(path, state["best"], "epoch", "bound", "copies")
    require(path, state["optimizer"], "state", "param_groups")
    require(path, state["generators"], "torch", "cuda", "numpy", "python")
    for part, kind in (("progress", Progress), ("history", History)):
        if unknown := sorted(state[part].keys() - {field.name for field in fields(kind)}):
            raise ValueError(
                f"{str(path)!r} has the {part} entry {unknown[0]!r}, which this version of pyrovae does not know. Use "
                f"pyrovae {content['versions'].get('pyrovae')}, the version that wrote the file, or a later version."
            )


def generator_states() -> dict[str, Any]:
    """Return the states of the global generators of torch, NumPy and Python, as tensors and plain values."""
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": tree_map_only(np.ndarray, torch.from_numpy, np.random.get_state(legacy=False)),
        "python": random.getstate(),
    }


def restore_generators(states: dict[str, Any]) -> None:
    """Restore states that :func:`generator_states` returned.

    The states of the CUDA generators are restored only if their number equals the number of CUDA devices.
    """
    torch.set_rng_state(states["torch"])
    if len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
    np.random.set_state(tree_map_only(Tensor, Tensor.numpy, states["numpy"]))
    random.setstate(states["python"])
