"""Tables become tensors of numbers, and other columns are refused."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pyrovae.data.sources import as_source


def test_a_table_of_several_dtypes_with_missing_values() -> None:
    frame = pd.DataFrame(
        {
            "integer": [1, 2, 3],
            "nullable": pd.array([1, None, 3], dtype="Int64"),
            "real": [0.5, np.nan, 1.5],
            "boolean": [True, False, True],
            "may be": pd.array([True, None, False], dtype="boolean"),
        }
    )
    (x,) = as_source("train", frame).tensors()
    nan = torch.nan
    expected = torch.tensor([[1, 1, 0.5, 1, 1], [2, nan, nan, 0, nan], [3, 3, 1.5, 1, 0]])
    torch.testing.assert_close(x, expected, equal_nan=True)
    as_source("train", frame).check(allow_nan=True)
    with pytest.raises(ValueError, match="1 of 3 data in train hold NaN or infinite values, the first at index 1"):
        as_source("train", frame).check()


def test_labels_of_a_table_are_integers() -> None:
    frame = pd.DataFrame({"x": [0.5, 1.5], "y": pd.array([1, 0], dtype="Int64")})
    x, y = as_source("train", (frame[["x"]], frame["y"])).tensors()
    assert (x.shape, x.dtype, y.dtype) == ((2, 1), torch.float32, torch.int64)


@pytest.mark.parametrize("values", [["a", "b"], pd.Categorical(["a", "b"]), pd.date_range("2000", periods=2)])
def test_a_column_without_numbers_is_refused_by_name(values: Any) -> None:
    frame = pd.DataFrame({"size": [1.0, 2.0], "kind": values})
    with pytest.raises(
        TypeError, match=r"train must be a table of numbers, but has columns .*\{'kind': '.*'\}\. Encode"
    ):
        as_source("train", frame)
