"""Results for figures."""

import numpy as np
import pandas as pd
import xarray as xr

from pyrovae.training import History

TABLE = pd.DataFrame(
    {"difference": [0.0, 2.0, -1.0], "difference_error": [0.0, 0.5, 0.2], "difference_mcse": [0.0, 0.1, np.nan]},
    index=["VAE", "IWAE", "flow"],
)


def check_of(observed: np.ndarray, replicated: np.ndarray) -> xr.Dataset:
    return xr.Dataset({"observed": ("datum", observed), "replicated": (("draw", "datum"), replicated)})


def ranks_of(ranks: np.ndarray, **others: np.ndarray) -> xr.Dataset:
    sites = {"z": ranks, **others}
    columns = {name: (("simulation", f"{name}_unit"), values) for name, values in sites.items()}
    return xr.Dataset(columns, attrs={"num_draws": 99})


HISTORY = History("IWAE", train=[-3.0, -2.0, -1.5], valid=[-3.1, -2.2, -1.7])


CURVES = xr.Dataset(
    {"iwae": (("datum", "k"), np.cumsum(np.ones((5, 4)), 1)), "iwae_mcse": (("datum", "k"), np.ones((5, 4)))},
    coords={"k": [1, 5, 50, 500]},
)
