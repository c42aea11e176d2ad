"""ArviZ can open a result that is written into a group of a file."""

from pathlib import Path

import arviz as az
import numpy as np
import pytest
from torch import Tensor

import pyrovae as pv


@pytest.mark.parametrize("name", ["evaluate", "log_likelihood", "rqmc"])
def test_arviz_opens_the_file_of_a_result(name: str, vae: pv.VAE, x: Tensor, tmp_path: Path) -> None:
    result = getattr(pv.evaluation, name)(vae, x, num_samples=128, seed=0, progress=False)
    result.to_netcdf(tmp_path / "result.nc", group="evaluation")
    opened = az.from_netcdf(tmp_path / "result.nc")["evaluation"]
    np.testing.assert_array_equal(opened["log_likelihood"].values, result.log_likelihood.values)
    assert opened.attrs["data_sha1"] == result.attrs["data_sha1"]
