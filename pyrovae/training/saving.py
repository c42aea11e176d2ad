"""``save`` and ``load``: a trained module's tensors in a file, which goes into a module that was built alike."""

from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from pyrovae import archives
from pyrovae.training.description import differences, first_of, of_module, versions
from pyrovae.training.state import STORED, Tensors

Module = TypeVar("Module", bound=nn.Module)


def save(module: nn.Module, path: str | Path) -> None:
    """Writes the parameters and buffers of a module, all of its components', to a file that is whole or not there.

    What the module is, is written beside for :func:`load` to compare, but not the code that makes it. Parameters that
    a program makes by ``pyro.param`` are not the module's, and left out.

    Args:
        module: Any module, such as a :class:`pyrovae.VAE`.
        path: Of the file; its folder must be there. A file of that name is replaced.

    Raises:
        OSError: If it cannot be written; a file that was there before is still whole.

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
    content = {"kind": "module", "description": of_module(module), "versions": versions(), "eval": evaluating}
    archives.write(Path(path), {**content, "tensors": Tensors(module, {}).named()})


def load(path: str | Path, into: Module) -> Module:
    """Gives a module the parameters and buffers in a file of :func:`save`, or those of a checkpoint of a run.

    No code is taken from the file, so the module is to be built as it was built then, by your own code. A checkpoint
    gives the weights that :func:`pyrovae.fit` would have ended with: the best so far on the validation data, without
    them the last.

    Args:
        path: Of the file.
        into: The module; it stays on its device.

    Returns:
        The module.

    Raises:
        OSError: If there is no such file.
        ValueError: If it is no such file, damaged, or holds anything but tensors and plain values; if the module is
            built in another way; if it is a checkpoint with parameters that ``pyro.param`` made. The module is then as
            it was.

    Example:
        >>> import tempfile, pathlib, pyrovae as pv
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> pv.save(pv.priors.GaussianMixture(3, 2), folder / "prior.pt")
        >>> pv.load(folder / "prior.pt", into=pv.priors.GaussianMixture(3, 2)).loc.shape
        torch.Size([2, 3])
    """
    content = archives.read(Path(path))
    kind = content.get("kind") if isinstance(content, dict) else None
    if kind not in ("module", "checkpoint"):
        raise ValueError(f"{str(path)!r} holds no module; give a file of pyrovae.save, or a checkpoint of fit")
    description = content["description"] if kind == "module" else content["description"]["module"]
    if found := differences(of_module(into), description):
        under = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
        raise ValueError(
            f"{str(path)!r} is of a module built in another way: {first_of(found)}; build it as it was built then, "
            f"under {under}"
        )
    tensors = content["tensors"] if kind == "module" else _trained(content["state"])
    if stored := [name for name in tensors if name.startswith(STORED)]:
        raise ValueError(
            f"{str(path)!r} holds {stored[0]!r}, which belongs to no module; go on with fit(..., checkpoint=) instead, "
            f"or make it a Parameter of the module"
        )
    Tensors(into, {}).restore(tensors)
    if kind == "module":
        for name, part in into.named_modules():
            part.training = name not in content.get("eval", ())  # of files of earlier versions: training mode
    return into


def _trained(state: dict[str, Any]) -> dict[str, Any]:
    return state["best"]["copies"] or state["tensors"]
