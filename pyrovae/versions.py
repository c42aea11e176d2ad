"""Versions of what numbers depend on."""

from importlib import metadata

__version__ = "0.1.0"


def version(package: str) -> str:
    """That of a package; of this one also where it runs from a folder that was not installed."""
    return __version__ if package == "pyrovae" else metadata.version(package)
