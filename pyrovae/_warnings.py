"""The stack level for a warning, chosen so that the warning points to a line of the user's code."""

import sys
from types import FrameType

_INTERNAL = {"pyrovae", "pyro", "torch", "tqdm", "contextlib", "functools"}


def find_stack_level() -> int:
    """Return the ``stacklevel`` with which ``warnings.warn`` points to the innermost frame outside the libraries.

    Frames of pyrovae, Pyro, torch, tqdm, contextlib and functools are skipped. If there is no other frame, as in a
    thread that the libraries started, the level is that of the outermost frame.

    Source:
        ``numpyro.util.find_stack_level``, which follows a function of the same name in pandas.
    """
    level, frame = 1, sys._getframe(1)
    while _is_internal(frame) and frame.f_back is not None:
        level, frame = level + 1, frame.f_back
    return level


def _is_internal(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] in _INTERNAL
