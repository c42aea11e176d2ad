"""Out-of-distribution scores: p-values by hand, their level, and refused input."""

import numpy as np
import pytest
import torch
import xarray as xr

import pyrovae as pv
from pyrovae.evaluation import typicality
from tests.oracle import Oracle


def result_of(values: object, **attrs: object) -> xr.Dataset:
    return xr.Dataset({"log_likelihood": ("datum", np.asarray(values, dtype=float))}, attrs=attrs)


def test_scores_by_hand() -> None:
    found = typicality(result_of([2.0, 0.0, 9.0, 2.5, np.nan]), result_of([1.0, 2.0, 3.0, 4.0]))
    np.testing.assert_allclose(found.score, [0.5, 2.5, 6.5, 0.0, np.nan])
    np.testing.assert_allclose(found.p_value, [1.0, 0.4, 0.4, 1.0, np.nan])
    assert found.attrs["num_reference"] == 4


def test_rows_of_nan_in_the_reference_do_not_count() -> None:
    reference = [1.0, 2.0, np.nan, 3.0]
    assert float(typicality(result_of([0.0]), result_of(reference)).p_value[0]) == 0.5
    with pytest.raises(ValueError, match="Evaluate held-out data"):
        typicality(result_of([0.0]), result_of([np.nan]))


def test_p_values_of_the_same_distribution_keep_their_level() -> None:
    random = np.random.default_rng(0)
    below = [
        float(typicality(result_of(random.gumbel(size=1)), result_of(random.gumbel(size=39))).p_value[0]) <= 0.1
        for _ in range(1000)
    ]
    assert np.mean(below) == pytest.approx(0.1, abs=4 * (0.09 / 1000) ** 0.5)


def test_data_that_are_too_likely_and_too_unlikely_are_found() -> None:
    oracle = Oracle()
    x = oracle.data(60)
    centre = x.mean(0)
    others = torch.stack([centre, centre + 60.0])
    held_out, new = (pv.evaluation.evaluate(oracle.vae, each, 200, seed=0) for each in (x, others))
    found = typicality(new, held_out)
    assert float(found.log_likelihood[0]) > float(held_out.log_likelihood.max())
    assert found.p_value.values == pytest.approx(2 / 61)


@pytest.mark.parametrize("attribute", ["base_measure", "binarization", "estimator"])
def test_results_of_different_things_are_refused(attribute: str) -> None:
    with pytest.raises(ValueError, match=f"{attribute} is 'a' for results and 'b' for the reference"):
        typicality(result_of([0.0], **{attribute: "a"}), result_of([0.0], **{attribute: "b"}))


def test_a_result_without_log_likelihoods_is_refused() -> None:
    with pytest.raises(ValueError, match=r"reference, .* has no log_likelihood over 'datum'"):
        typicality(result_of([0.0]), xr.Dataset())


def test_a_vae_in_place_of_a_result_is_refused() -> None:
    with pytest.raises(TypeError, match="results must be the result of an estimator, got a VAE"):
        typicality(Oracle().vae, result_of([0.0]))  # type: ignore[arg-type]
