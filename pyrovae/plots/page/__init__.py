"""An HTML page that runs a likelihood in the browser: the likelihood's operations as a program, and the interface."""

from pyrovae.plots.page.explorer import explorer

__all__ = ["explorer"]
