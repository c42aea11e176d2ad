"""The progress bar of tqdm: a widget in notebooks that support widgets, otherwise text."""

from importlib.util import find_spec

if find_spec("ipywidgets") is None:  # tqdm.auto warns in a notebook without widgets
    from tqdm.std import tqdm as tqdm
else:
    from tqdm.auto import tqdm as tqdm

__all__ = ["tqdm"]
