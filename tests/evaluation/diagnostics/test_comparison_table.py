"""A comparison prints the columns that fit on a line, and holds all others."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from pyrovae.evaluation import compare


def results_of(log_likelihood: list[float]) -> xr.Dataset:
    values = np.array(log_likelihood)
    attrs = {"data_sha1": "ab", "binarization": "static", "base_measure": "counting"}
    columns = {"log_likelihood": ("datum", values), "mcse": ("datum", np.full(len(values), 0.1))}
    return xr.Dataset(columns, coords={"datum": np.arange(len(values))}, attrs=attrs)


def test_the_best_model_comes_first_and_the_first_given_is_the_reference() -> None:
    table = compare({"a": results_of([-3.0, -4.0]), "b": results_of([-1.0, -3.0]), "c": results_of([-9.0, -9.5])})
    assert list(table.index) == ["b", "a", "c"]
    assert table.difference["a"] == 0.0
    assert table.difference["b"] == pytest.approx(1.5)


def test_models_of_a_list_are_numbered() -> None:
    table = compare([results_of([-3.0, -4.0]), results_of([-1.0, -3.0])])
    assert list(table.index) == ["model 1", "model 0"]
    assert compare((results_of([0.0, 1.0]),), reference="model 0").difference.tolist() == [0.0]


@pytest.mark.parametrize("width", [40, 80])
def test_a_comparison_prints_on_short_lines(width: int) -> None:
    table = compare({"StandardNormal": results_of([-93.0, -94.0]), "VampPrior": results_of([-91.0, -93.0])})
    with pd.option_context("display.width", width, "display.max_columns", 2):
        text = str(table)
    assert max(map(len, text.splitlines())) <= 80
    assert "-92.00 ± 1.00 (0.07)" in text
    assert "..." not in text
    assert "1.50 ± 0.50 (0.10)" in text
    assert "-92.00 ± 1.00 (0.07)" in table._repr_html_()


def test_parts_of_a_comparison_are_ordinary_tables() -> None:
    table = compare({"a": results_of([-3.0, -4.0]), "b": results_of([-1.0, np.nan])})
    assert type(table[["log_likelihood", "difference"]]) is pd.DataFrame
    assert type(table.T) is pd.DataFrame
    assert "difference_mcse" in str(table.T)
