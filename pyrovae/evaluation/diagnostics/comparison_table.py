"""Table of a comparison of models: a DataFrame that holds many columns but prints only the most important ones."""

import math
from typing import Any

import pandas as pd


class ComparisonTable(pd.DataFrame):  # type: ignore[misc]
    """Table that :func:`pyrovae.evaluation.compare` returns, which prints each mean together with its errors.

    A selection of rows or columns is an ordinary DataFrame, which prints all of its columns.

    Example:
        >>> columns = {"log_likelihood": [-93.2], "error": [0.41], "mcse": [0.02], "difference": [0.0]}
        >>> columns |= {"difference_error": [0.0], "difference_mcse": [0.0]}
        >>> columns |= {"reliable": [1.0], "estimator": ["cascade"]}
        >>> ComparisonTable(columns, index=["VAE"])
                         log p(x) difference reliable estimator
        VAE  -93.20 ± 0.41 (0.02)          -     100%   cascade
    """

    def __repr__(self) -> str:
        return self._narrow().to_string()

    def _repr_html_(self) -> str:
        return self._narrow().to_html()

    def _narrow(self) -> pd.DataFrame:
        rows = {
            "log p(x)": [_cell(*row) for row in self[["log_likelihood", "error", "mcse"]].to_numpy()],
            "difference": [
                "-" if tuple(row[:2]) == (0.0, 0.0) else _cell(*row)
                for row in self[["difference", "difference_error", "difference_mcse"]].to_numpy()
            ],
            "reliable": ["" if math.isnan(share) else f"{share:.0%}" for share in self["reliable"]],
            "estimator": list(self["estimator"]),
        }
        return pd.DataFrame(rows, index=self.index)


def _cell(mean: Any, error: Any, mcse: Any) -> str:
    """Return the text ``mean ± standard error (Monte Carlo error)``; a Monte Carlo error of NaN is omitted."""
    return f"{mean:.2f} ± {error:.2f}" + ("" if math.isnan(mcse) else f" ({mcse:.2f})")
