"""Sphinx builds the documentation: ``uv run --group docs sphinx-build -W --keep-going docs docs/_build/html``."""

from importlib import metadata

project = "pyrovae"
author = "The pyrovae developers"
copyright = "2026, the pyrovae developers"  # noqa: A001  # as Sphinx calls it
release = metadata.version("pyrovae")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "pyrovae"
html_static_path = ["_static"]
html_css_files = ["custom.css"]

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "force"  # a cache knows the page, not the code of pyrovae that it runs
nb_execution_raise_on_error = True
nb_execution_timeout = 900  # seconds per cell, also on a busy machine
nb_output_stderr = "remove"  # a progress bar that has no widgets here says so

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings give types and shapes in words
napoleon_custom_sections = [("Source", "notes_style")]
napoleon_google_docstring = True
napoleon_numpy_docstring = False
