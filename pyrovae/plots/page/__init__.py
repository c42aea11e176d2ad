"""An HTML page that runs a likelihood in the browser, from a recording of the likelihood's operations."""

from pyrovae.plots.page.explorer import explorer

__all__ = ["explorer"]
