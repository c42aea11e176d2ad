"""Sphinx builds the documentation: ``uv run --group docs sphinx-build -W --keep-going docs docs/_build/html``."""

import re
from importlib import metadata
from typing import Any

from docutils import nodes

project = "pyrovae"
author = "The pyrovae developers"
copyright = "2026, the pyrovae developers"  # noqa: A001  # as Sphinx calls it
release = metadata.version("pyrovae")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
templates_path = ["_templates"]
html_theme = "furo"
html_title = "pyrovae"
smartquotes = False  # error messages on the pages keep their quotes
html_css_files = ["custom.css"]

# Formulas render without a network: the build copies one file of MathJax, which contains all of its fonts.
mathjax = [file for file in metadata.files("sphinx-mathjax-offline") or () if file.name == "tex-svg-full.js"]
html_static_path = ["_static", *(str(file.locate()) for file in mathjax)]
mathjax_path = "tex-svg-full.js"

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "force"  # a cache knows the page, not the code of pyrovae that it runs
nb_execution_raise_on_error = True
nb_execution_timeout = 900  # seconds per cell, also on a busy machine
nb_output_stderr = "remove"  # a progress bar that has no widgets here says so

nb_ipywidgets_js: dict[str, dict[str, str]] = {}  # the pages have no widgets, whose scripts come from a network

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
python_maximum_signature_line_length = 80  # longer signatures have one parameter on each line
python_use_unqualified_type_names = True
# Returns describes the value in words. Napoleon's own section would show the words before a colon as the type.
napoleon_custom_sections = [("Returns", "notes_style"), ("Source", "notes_style")]
napoleon_google_docstring = True
napoleon_numpy_docstring = False


def shorten(*event: Any) -> tuple[str | None, ...]:
    """Write ``Callable[..., Any]`` in signatures as in the code, where Sphinx writes ``Callable[[...], Any]``."""
    return tuple(text and text.replace("[[...], ", "[..., ") for text in event[-2:])  # signature, and what is returned


def fit_tables(_app: Any, document: nodes.document) -> None:
    """Let long names in tables break after a dot, a slash or an underscore, and keep numbers with errors and signs."""
    for text in [text for cell in document.findall(nodes.entry) for text in cell.findall(nodes.Text)]:
        if isinstance(text.parent, nodes.literal):
            if text.startswith("pv."):
                continue  # short names, in columns that would become too narrow
            first, *others = re.split(r"(?<=[./])(?=\w)(?!py\b)|(?<=[a-z]_)(?=[a-z])", str(text))
            breaks = [(nodes.raw("", "<wbr>", format="html"), nodes.Text(part)) for part in others]
            text.parent.replace(text, [nodes.Text(first), *(node for pair in breaks for node in pair)])
        else:
            whole = re.sub(
                r" [±=>] |(?<=\d), (?=[-\d.]+\])", lambda match: match[0].replace(" ", "\N{NO-BREAK SPACE}"), text
            )
            text.parent.replace(text, nodes.Text(whole))


def setup(app: Any) -> None:
    """Connect the functions of this file."""
    app.connect("autodoc-process-signature", shorten)
    app.connect("doctree-read", fit_tables)
