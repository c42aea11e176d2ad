"""Errors that a program's distributions raise, with messages that name the site or the parameter."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pyro.distributions as dist
import torch

from pyrovae._waist.sites import Site


class OutsideSupportError(ValueError):
    """Error for a value that the distribution of its site cannot score."""


class ProgramError(ValueError):
    """Error for a program without valid log-weights. The program causes the error, so no other data are tried."""


@contextmanager
def explained_divergence() -> Iterator[None]:
    """Context manager that explains the error of a distribution whose parameters are NaN or infinite.

    Raises:
        FloatingPointError: If a distribution raises ValueError because its parameters are NaN or infinite.
    """
    try:
        yield
    except (ValueError, RuntimeError) as error:
        message, *shapes = re.split(r"\n *Trace Shapes:", str(error), maxsplit=1)
        if shapes:  # Pyro appends its table of shapes to the message
            error.args = (message,)
            error.add_note(f"Trace shapes:{shapes[0]}")
        pattern = r"Expected parameter (\w+) .*? of distribution (\w+)\(.* found invalid values:(.*)"
        refused = re.search(pattern, message, flags=re.DOTALL) if isinstance(error, ValueError) else None
        if not (refused and re.search(r"\b(nan|inf)\b", refused[3])):
            raise
        raise FloatingPointError(
            f"the model has diverged: {refused[1]} of a {refused[2]} is NaN or infinite. Check the module's "
            f"parameters and training history, and return to earlier weights, such as those of a checkpoint."
        ) from error


def outside_support(site: Site, reason: str) -> str:
    """Return the message for a value that a distribution cannot score, with the cause and the remedy."""
    fn, value = site["fn"], site["value"]
    while isinstance(fn, dist.Independent | dist.ExpandedDistribution | torch.distributions.Independent):
        fn = fn.base_dist
    name = type(fn).__name__
    found = f"values from {value.min():.4g} to {value.max():.4g}" if value.numel() else "no values"
    message = (
        f"site {site['name']!r}: {found}, shape {tuple(value.shape)}, cannot be scored by a {name} of batch shape "
        f"{tuple(site['fn'].batch_shape)} and event shape {tuple(site['fn'].event_shape)} ({reason.rstrip('.')})"
    )
    event = len(site["fn"].event_shape)
    for frame in site["cond_indep_stack"]:
        held, expected = _size(value.shape, frame.dim - event), _size(site["fn"].batch_shape, frame.dim)
        if 1 not in (held, expected) and held != expected:
            message += (
                f". The data have {held} entries along plate {frame.name!r}, but the distribution has {expected}. If "
                f"the guide has parameters for each datum, as an AutoGuide has for latents inside a plate, use it only "
                f"with the {expected} data for which it was created."
            )
    if hasattr(fn, "hint"):
        message += f". {fn.hint}."
    is_grey = ((value > 0) & (value < 1)).any() and value.min() >= 0 and value.max() <= 1
    if isinstance(fn, torch.distributions.Bernoulli) and is_grey:
        message += (
            ". Bernoulli likelihoods cannot score grey values. Binarize them (pyrovae.data.binarize, or a data set "
            "with binarization='dynamic' and fit(transform=splits.transform)), or use a likelihood of real values such "
            "as pyrovae.likelihoods.Normal."
        )
    if not message.endswith("."):
        message += ". Correct the values, or use a distribution whose support and shape fit the values."
    return message


def _size(shape: torch.Size, dim: int) -> int:
    """Return the size of a dimension that is counted from the right; it is 1 if there is no such dimension."""
    return shape[dim] if len(shape) >= -dim else 1
