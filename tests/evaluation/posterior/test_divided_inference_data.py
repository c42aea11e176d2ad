"""Posterior draws from a folder, and in several processes, one of which has no batch."""

from pathlib import Path
from typing import Any

import pytest
import torch

import pyrovae as pv
from tests.conftest import small_vae
from tests.processes import in_each
from tests.scripts import Chain, Pixels


def groups_of(model: Any, guide: Any, x: torch.Tensor, **options: Any) -> dict[str, dict[str, Any]]:
    """Return dimensions and values of all variables of the posterior and of the data, by group."""
    data = pv.evaluation.to_inference_data(model, guide, x, 20, num_draws=5, seed=0, progress=False, **options)
    names = "posterior", "posterior_predictive", "prior", "observed_data"
    return {
        name: {key: (values.dims, values.values.tolist()) for key, values in data[name].data_vars.items()}
        for name in names
    }


@pytest.mark.parametrize("script", [Chain, Pixels])
def test_a_folder_in_which_all_rows_are_done_has_the_names_of_dimensions(script: Any, tmp_path: Path) -> None:
    program = script()
    x = program.data(6)
    whole = groups_of(program.model, program.guide, x)
    assert groups_of(program.model, program.guide, x, checkpoint=tmp_path) == whole
    assert groups_of(program.model, program.guide, x, checkpoint=tmp_path) == whole


def groups_of_one_batch() -> dict[str, dict[str, Any]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = small_vae()
    return groups_of(vae.model, vae.guide, torch.ones(4, 6))


@pytest.mark.slow
def test_a_process_without_a_batch_has_the_names_of_dimensions() -> None:
    one = groups_of_one_batch()
    assert one["posterior"]["z"][0] == ("chain", "draw", "datum", "z_dim_0")
    assert in_each(2, groups_of_one_batch) == [one, one]
