"""Options that all estimators and diagnostics take, and their defaults."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from pyrovae._compilation.precision import Precision


class SharedOptions(TypedDict, total=False):
    """Options of :class:`Options` without ``precision``."""

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
    """Options that every estimator and diagnostic takes.

    Attributes:
        seed: Seed of the draws; by default a new one from the operating system. The result names it.
        plate: Name of the data plate; by default the outermost plate that all latent sites share.
        binarization: How the data were binarized, kept as an attribute; results that differ in it are not compared.
        vectorize: Whether many draws are made in one run, along a dimension to the left of the program's plates. By
            default this is decided by a check of the program.
        memory: Bytes that the tensors of one run may take, which sets the size of batches and chunks; by default 2^25
            on a CPU and 2^31 on a CUDA device. The draws depend on it.
        compile: Whether to compile the densities, for which torch's inductor takes some seconds. A program that cannot
            be compiled runs without compilation, after a warning with the reason.
        precision: Precision of the products in linear and convolutional layers: ``"bfloat16"``, or on CUDA ``"tf32"``.
            Its error is in no ``mcse``. By default torch's own setting.
        progress: Whether to show a progress bar; it is quiet where the output is not a terminal.
        checkpoint: Folder in which to keep the rows that are done. The same call continues from there after whatever
            ended it, and returns the result of a call that was never interrupted. ``~`` is expanded. A folder of other
            data, options or programs is refused by name; changes of the environment, and of files that programs read,
            are not seen.
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
