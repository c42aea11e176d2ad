"""Versions of the packages on which numerical results depend."""

from importlib import metadata

__version__ = "0.2.0"


def version(package: str) -> str:
    """Return the version of a package. pyrovae's version is known even if pyrovae is not installed."""
    return __version__ if package == "pyrovae" else metadata.version(package)
