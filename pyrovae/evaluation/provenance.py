"""What every result says of itself: programs, data, seed, versions; and that no number of it is NaN or infinite."""

import time
from typing import Any

from torch import Tensor

from pyrovae._waist.sites import Program
from pyrovae.arguments import as_tuple, fingerprint
from pyrovae.evaluation.problem import Pieces
from pyrovae.isolation import owners
from pyrovae.versions import version


def attributes(
    pieces: Pieces,
    *,
    seed: int,
    binarization: str,
    start: float,
    units: str = "nats per datum, higher is better",
    **others: Any,
) -> dict[str, Any]:
    """Attributes of a result that was begun at ``start``, by :func:`time.perf_counter`."""
    measures = set(pieces.base_measures.values())
    return {
        "model": _describe(pieces.model),
        "guide": _describe(pieces.guide),
        **others,
        "seed": seed,
        "binarization": binarization,
        "base_measure": measures.pop() if len(measures) == 1 else str(dict(pieces.base_measures)),
        "data_sha1": fingerprint(as_tuple(pieces.data)),
        "seconds": time.perf_counter() - start,
        "device": str(pieces.device),
        "units": units,
        **{f"{package}_version": version(package) for package in ("pyrovae", "torch", "pyro-ppl", "arviz")},
    }


def check_finite(log_weights: Tensor) -> None:
    """Refuses log-weights, shape ``(num_samples, n)``, that are not numbers.

    Raises:
        FloatingPointError: If one is NaN or infinite.
    """
    bad = (~log_weights.isfinite()).any(0)
    if bad.any():
        raise FloatingPointError(
            f"{int(bad.sum())} of {len(bad)} data of a chunk have log-weights that are NaN or infinite; the model has "
            f"diverged, or gives these data zero probability: look at its parameters and at the scales it gives"
        )


def _describe(program: Program) -> str:
    """Name of a program; of a module also those of its parts."""
    for owner in owners(program):
        parts = ", ".join(f"{name}={type(part).__name__}" for name, part in owner.named_children())
        return f"{type(owner).__name__}({parts})"
    return str(getattr(program, "__qualname__", type(program).__name__))
