"""The functions ``save`` and ``load`` for the tensors of a module.

``save`` writes the tensors to a file, and ``load`` reads them into a module that is built in the same way.
"""

from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pyrovae import archives
from pyrovae.training.description import (
    FORMAT,
    differences,
    differences_of_modules,
    first_of,
    of_module,
    of_tensor,
    versions,
)
from pyrovae.training.state import STORED, Tensors, check_state, file_format, require
from pyrovae.training.store import check_stored, restore_stored, stored_parameters

Module = TypeVar("Module", bound=nn.Module)


def save(module: nn.Module, path: str | Path) -> None:
    """Write the parameters and buffers of a module to a file. An error leaves no incomplete file.

    The file holds no code, but it holds a description of the module. :func:`load` compares this description with its
    argument ``into``. If the module has a ``model`` or a ``guide``, the parameters of ``pyro.param`` are saved too,
    with their constraints. Pyro's store is global and may hold parameters of several programs: ``save`` writes every
    parameter of the store that belongs to no module. Call ``pyro.clear_param_store()`` before you train another
    program.

    Args:
        module: Any module, such as a :class:`pyrovae.VAE`.
        path: Path of the file, in a folder that exists; ``~`` is expanded. A file of that name is replaced.

    Raises:
        OSError: If the file cannot be written. A previous file of that name is then unchanged.
        TypeError: If a parameter of ``pyro.param`` has a constraint that is not in ``torch.distributions.constraints``.
        ValueError: If the path is empty.

    Example:
        >>> import tempfile, pathlib, torch, pyrovae as pv
        >>> prior = pv.priors.GaussianMixture(3, 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     pv.save(prior, pathlib.Path(folder, "prior.pt"))
        ...     same = pv.load(pathlib.Path(folder, "prior.pt"), into=pv.priors.GaussianMixture(3, 2))
        >>> torch.equal(same.loc, prior.loc)
        True
    """
    evaluating = [name for name, part in module.named_modules() if not part.training]
    where = archives.as_path(path, "path")
    content = {
        "kind": "module",
        "format": FORMAT,
        "description": of_module(module),
        "versions": versions(),
        "eval": evaluating,
    }
    stored = stored_parameters(module)
    archives.write(where, {**content, "tensors": Tensors(module, {}).of_module(), "stored": stored})


def load(path: str | Path, into: Module) -> Module:
    """Copy parameters and buffers into a module from a file of :func:`save` or from a checkpoint of a run.

    The file holds no code. Build ``into`` with your own code, in the same way as the module in the file was built. The
    parameters of ``pyro.param`` in the file are put into Pyro's store. From a checkpoint, the module gets the best
    weights so far if the run had validation data, and otherwise the last weights.

    The description of the module in the file is compared with ``into`` before the tensors are read. The tensors occupy
    at most as much memory as the file has bytes.

    Args:
        path: Path of the file; ``~`` is expanded.
        into: The module, which stays on its device.

    Returns:
        The module.

    Raises:
        OSError: If the file does not exist or cannot be read.
        ValueError: If the file is of another kind, damaged or incomplete, or holds objects other than tensors and plain
            values; if ``into`` is built in another way than the module in the file; or if Pyro's store has a parameter
            of the same name with another shape or constraint. The module and the store are then unchanged.

    Example:
        >>> import tempfile, pathlib, torch, pyrovae as pv
        >>> prior, other = pv.priors.GaussianMixture(3, 2), pv.priors.GaussianMixture(3, 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     pv.save(prior, pathlib.Path(folder, "prior.pt"))
        ...     torch.equal(other.loc, prior.loc), pv.load(pathlib.Path(folder, "prior.pt"), into=other) is other
        (False, True)
        >>> torch.equal(other.loc, prior.loc)
        True
    """
    where = archives.as_path(path, "path")
    content = archives.read(where, check=lambda outline: _check(where, outline, into))
    tensors = {name: value for name, value in _tensors(content).items() if not name.startswith(STORED)}
    Tensors(into, {}).restore(tensors)
    restore_stored(_stored(content), next((tensor.device for tensor in into.parameters()), torch.device("cpu")))
    if content["kind"] == "module":
        for name, part in into.named_modules():
            part.training = name not in content.get("eval", ())  # files of earlier versions imply training mode
    return into


def _check(path: Path, content: Any, into: nn.Module) -> None:
    """Raise ValueError if the description or the tensors of a file do not fit a module."""
    kind = content.get("kind") if isinstance(content, dict) else None
    if kind not in ("module", "checkpoint"):
        raise ValueError(f"{str(path)!r} holds no module. Pass a file of pyrovae.save, or a checkpoint of pyrovae.fit.")
    require(path, content, "description", "versions", "tensors" if kind == "module" else "state")
    number = file_format(path, content)
    described = content["description"] if kind == "module" else content["description"]["module"]
    require(path, described, "tensors", "structure")
    if kind == "checkpoint":
        check_state(path, content)
    if found := differences_of_modules(of_module(into), described, number):
        under = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
        raise ValueError(
            f"{str(path)!r} is of a module built in another way: {first_of(found)}. Build the module that you pass as "
            f"into= in the same way as the module in the file. The file was written with {under}."
        )
    _check_tensors(path, _tensors(content), into)
    check_stored(_stored(content))


def _check_tensors(path: Path, tensors: dict[str, Tensor], into: nn.Module) -> None:
    """Raise ValueError if the tensors in a file do not fit a module.

    The description in the file has been found to fit the module, so tensors that do not fit mean a damaged file.
    """
    parameters = {name: of_tensor(tensor) for name, tensor in into.named_parameters()}
    buffers = dict(into.named_buffers())  # training may change their shapes
    found = {
        name: of_tensor(tensor) if name in parameters else "a buffer"
        for name, tensor in tensors.items()
        if not name.startswith(STORED)
    }
    if missing := [name for name in (*parameters, *buffers) if name not in found]:
        raise ValueError(
            f"{str(path)!r} is incomplete: the tensor {missing[0]!r} is missing. Use another copy of the file."
        )
    if wrong := differences(parameters | dict.fromkeys(buffers, "a buffer"), found):
        raise ValueError(
            f"the tensors in {str(path)!r} do not match the description of the module in this file: {first_of(wrong)}. "
            f"Use another copy of the file."
        )


def _tensors(content: dict[str, Any]) -> dict[str, Tensor]:
    if content["kind"] == "module":
        return dict(content["tensors"])
    return dict(content["state"]["best"]["copies"] or content["state"]["tensors"])


def _stored(content: dict[str, Any]) -> dict[str, Any]:
    """Return, by name, the parameters of ``pyro.param`` that a file holds.

    Raises:
        ValueError: If the file is a checkpoint of version 0.1.0, which does not hold constraints of parameters.
    """
    if content["kind"] == "module":
        return dict(content.get("stored", {}))
    tensors = _tensors(content)
    names = [name for name in tensors if name.startswith(STORED) and not name.startswith(f"{STORED}__")]
    constraints = content.get("constraints", {})
    if missing := [name for name in names if name.removeprefix(STORED) not in constraints]:
        raise ValueError(
            f"the checkpoint holds the parameter {missing[0]!r} without its constraint, so load cannot use this "
            f"checkpoint. Continue the run with fit(..., checkpoint=) instead."
        )
    return {
        (key := name.removeprefix(STORED)): {"value": tensors[name], "constraint": constraints[key]} for name in names
    }
