"""A page that runs a likelihood in the browser: its operations as a short program, and what is seen around it."""

from pyrovae.plots.page.explorer import explorer

__all__ = ["explorer"]
