"""Options that all estimators and diagnostics accept, and their defaults."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import torch

from pyrovae._compilation.precision import Precision
from pyrovae.arguments import check_whole

# On a CPU, larger tensors are returned to the operating system after every run, and allocating their pages again takes
# a third of the time. On a GPU, 2**25 bytes are too few: an evaluation on an H200 took more than four times as long.
MEMORY = {"cpu": 2**25, "cuda": 2**31}


class SharedOptions(TypedDict, total=False):
    """The keyword arguments of :class:`Options` except ``precision``."""

    seed: int | None
    plate: str | None
    binarization: str
    vectorize: bool | None
    memory: int | None
    compile: bool
    progress: bool
    checkpoint: str | Path | None
    kwargs: Mapping[str, Any] | None


class Options(SharedOptions, total=False):
    """Keyword arguments that every estimator and diagnostic accepts.

    Attributes:
        seed: Seed of the draws; by default a new seed from the operating system. The result stores the seed as an
            attribute.
        plate: Name of the data plate; by default the outermost plate that all latent sites share.
        binarization: Description of how the data were binarized, stored as an attribute. Results with different
            descriptions cannot be compared.
        vectorize: If true, many draws are made in one run, along a dimension to the left of the program's plates. If
            false, the programs run once for each draw. By default, a check of the programs decides.
        memory: Bytes that the tensors of one run may occupy. This number determines how many data and draws are
            processed in one run. If the model has large tensors whose size depends on neither, such as the encoded
            pseudo-inputs of a VampPrior, a run may need more memory, by the bytes of these tensors. The default is 2^25
            on a CPU and 2^31 on a CUDA device. The random draws depend on this value.
        compile: If true, the densities are compiled by torch's inductor, which takes several seconds. A program that
            cannot be compiled runs without compilation after a warning that names the reason.
        precision: Precision of the matrix products in linear and convolutional layers: ``"bfloat16"``, or ``"tf32"`` on
            CUDA. The default is torch's own setting. Monte Carlo errors do not include the error of reduced precision.
        progress: If true, a progress bar is shown, provided that the output is a terminal.
        checkpoint: Folder that keeps the finished rows of the result; ``~`` is expanded. If a call is interrupted, the
            same call continues from the folder and returns the result of an uninterrupted call. If the rows in the
            folder belong to other data, options or programs, an error is raised that names the difference. Changes of
            the environment, and of files that the programs read, are not detected.
        kwargs: Keyword arguments of model and guide.

    Example:
        >>> import torch, pyrovae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Normal(pv.networks.mlp(2, 4)),
        ...     pv.posteriors.DiagonalNormal(pv.networks.mlp(4, 2 * 2)),
        ... )
        >>> options: pv.evaluation.Options = {"seed": 3, "binarization": "none", "progress": False}
        >>> results = pv.evaluation.evaluate(vae.model, vae.guide, torch.zeros(10, 4), num_samples=200, **options)
        >>> results.attrs["seed"], results.attrs["binarization"]
        (3, 'none')
    """

    precision: Precision | None


DEFAULTS: Options = {
    "seed": None,
    "plate": None,
    "binarization": "not stated",
    "vectorize": None,
    "memory": None,
    "compile": False,
    "precision": None,
    "progress": True,
    "checkpoint": None,
    "kwargs": None,
}


def memory_of(options: Options, device: torch.device) -> int:
    """Return the bytes that a run on a device may use.

    Raises:
        TypeError: If the option ``memory`` is not an integer.
        ValueError: If the option ``memory`` is not positive.
    """
    memory = options["memory"]
    if memory is None:
        return MEMORY.get(device.type, MEMORY["cpu"])
    check_whole(memory=memory)
    if memory < 1:
        raise ValueError(f"memory must be a positive number of bytes, got {memory}")
    return memory
