"""The progress bar of this environment: a widget in notebooks that can show widgets, text everywhere else."""

from importlib.util import find_spec

if find_spec("ipywidgets") is None:  # tqdm.auto warns in a notebook without widgets
    from tqdm.std import tqdm as tqdm
else:
    from tqdm.auto import tqdm as tqdm

__all__ = ["tqdm"]
