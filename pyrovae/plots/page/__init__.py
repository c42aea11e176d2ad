"""An HTML page that runs a likelihood in the browser: recorder of the likelihood's operations, and user interface."""

from pyrovae.plots.page.explorer import explorer

__all__ = ["explorer"]
