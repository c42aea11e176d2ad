"""Attributes of a result: programs, parameters, data, seed, versions and device."""

import time
from typing import TYPE_CHECKING, Any

import torch

from pyrovae.arguments import fingerprint
from pyrovae.evaluation.identity import digest
from pyrovae.isolation import owners
from pyrovae.versions import version

if TYPE_CHECKING:
    from pyrovae._waist.sites import Program
    from pyrovae.evaluation.problem import Problem


def attributes(problem: "Problem", *, units: str = "nats per datum, higher is better", **others: Any) -> dict[str, Any]:
    """Return the attributes that describe how a result was computed.

    Args:
        problem: Model, guide and data. The context ``with problem:`` must be active.
        units: Units of the result.
        **others: Attributes of the estimator, such as its name and its number of draws.
    """
    measures = set(problem.probe.base_measures.values())
    options = problem.options
    autocast = torch.get_autocast_dtype(problem.device.type) if torch.is_autocast_enabled(problem.device.type) else None
    return {
        "model": describe(problem.model),
        "guide": describe(problem.guide),
        **others,
        "seed": int(problem.seed),
        "binarization": options["binarization"],
        "base_measure": measures.pop() if len(measures) == 1 else str(dict(problem.probe.base_measures)),
        "data_sha1": problem.data.fingerprint(),
        "parameters_sha1": fingerprint(tuple(problem.parameters())),
        "programs_sha1": digest(problem.contents),
        "observed_sites": ", ".join(sorted(problem.probe.base_measures)),
        "dtype": problem.probe.dtype,
        "precision": options["precision"] or "as torch is set",
        "autocast": "off" if autocast is None else str(autocast).removeprefix("torch."),
        "seconds": time.perf_counter() - problem.started,
        "device": str(problem.device),
        "units": units,
        **{f"{package}_version": version(package) for package in ("pyrovae", "torch", "pyro-ppl", "arviz")},
    }


def describe(program: "Program") -> str:
    """Return the name of a program; for a module, its class name and the names and types of its components."""
    for owner in owners(program):
        parts = ", ".join(f"{name}={type(part).__name__}" for name, part in owner.named_children())
        return f"{type(owner).__name__}({parts})"
    return str(getattr(program, "__qualname__", type(program).__name__))
