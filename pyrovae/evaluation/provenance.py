"""Attributes of a result: programs, their arguments, parameters, data, seed, versions and device."""

import time
from typing import TYPE_CHECKING, Any

import torch

from pyrovae.arguments import fingerprint
from pyrovae.evaluation.descriptions import plain
from pyrovae.evaluation.identity import digest, of_objects, of_programs
from pyrovae.isolation import owners
from pyrovae.versions import version

if TYPE_CHECKING:
    from pyrovae._waist.sites import Program
    from pyrovae.evaluation.problem import Problem


NO_ARGUMENTS = "none"  # the checksum of arguments if the programs have only arrays as arguments


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
        "programs_sha1": digest(of_programs(problem.contents)),
        "objects_sha1": digest(of_objects(problem.contents)),
        "arguments_sha1": _arguments_sha1_if_known(problem),
        "observed_sites": ", ".join(sorted(problem.probe.base_measures)),
        "dtype": problem.probe.dtype,
        "precision": options["precision"] or "as torch is set",
        "autocast": "off" if autocast is None else str(autocast).removeprefix("torch."),
        "seconds": time.perf_counter() - problem.started,
        "device": str(problem.device),
        "units": units,
        **{f"{package}_version": version(package) for package in ("pyrovae", "torch", "pyro-ppl", "arviz")},
    }


def arguments(problem: "Problem") -> dict[str, Any]:
    """Return the arguments of the programs that are not arrays of data, such as keyword arguments, by name.

    Two results that differ only in these arguments are results of different programs for the same data.
    """
    others = {f"x[{place}]": other for place, other in problem.data.others.items()}
    return others | ({"kwargs": problem.options["kwargs"]} if problem.options["kwargs"] else {})


def arguments_sha1(problem: "Problem") -> str:
    """Return the SHA-1 checksum of the arguments that are not arrays of data, or ``"none"`` if there are none.

    Raises:
        ValueError: If an argument cannot be described, such as a generator or an open file.
    """
    found = {name: repr(plain(value, name)) for name, value in arguments(problem).items()}
    return digest(found) if found else NO_ARGUMENTS


def _arguments_sha1_if_known(problem: "Problem") -> str:
    try:
        return arguments_sha1(problem)
    except ValueError:
        return "not known"


def describe(program: "Program") -> str:
    """Return the name of a program; for a module, its class name and the names and types of its components."""
    for owner in owners(program):
        parts = ", ".join(f"{name}={type(part).__name__}" for name, part in owner.named_children())
        return f"{type(owner).__name__}({parts})"
    return str(getattr(program, "__qualname__", type(program).__name__))
