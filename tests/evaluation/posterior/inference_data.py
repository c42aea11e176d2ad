"""Conversion to InferenceData with all groups, the names of these groups, and moments of draws."""

from typing import Any

import xarray as xr

import pyrovae as pv

GROUPS = {
    "posterior", "posterior_predictive", "log_likelihood", "sample_stats", "prior", "prior_predictive", "observed_data",
}  # fmt: skip


def to_inference_data(*args: Any, **options: Any) -> Any:
    """Convert with the log-likelihoods, which are left out by default."""
    return pv.evaluation.to_inference_data(*args, **{"log_likelihood": True, **options})


def groups_of(data: object) -> set[str]:
    return {str(name) for name in (data.children if isinstance(data, xr.DataTree) else data.groups())}


def moments(values: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    return values.mean(["chain", "draw"]), values.var(["chain", "draw"])
