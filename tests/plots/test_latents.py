"""Codes and aggregate posteriors show the draws that they are given."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pyrovae import plots


def test_aggregate_posteriors_shows_all_draws_of_both() -> None:
    draws = {name: (torch.randn(50, 3), torch.randn(40, 3)) for name in "abcd"}
    axes = plots.aggregate_posteriors(draws, columns=3)
    assert [ax.get_title() for ax in axes] == list("abcd")
    assert all(max(len(drawn.get_offsets()) for drawn in ax.collections) == 90 for ax in axes)
    legend = next(ax.get_legend() for ax in axes if ax.get_legend())
    assert [text.get_text() for text in legend.get_texts()] == ["prior", "aggregate posterior"]


def test_aggregate_posteriors_lie_on_their_principal_components() -> None:
    z = torch.randn(200, 4) * torch.tensor([0.1, 5.0, 0.1, 2.0])
    (ax,) = plots.aggregate_posteriors({"a": (z, z[:0])})
    spread = ax.collections[-1].get_offsets().std(axis=0)
    assert abs(spread[0] - 5) < 0.6
    assert abs(spread[1] - 2) < 0.3


def test_aggregate_posteriors_of_one_dimension_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'a' must have shape \(n, latent\).*got \[\(5, 1\), \(5, 1\)\]"):
        plots.aggregate_posteriors({"a": (torch.zeros(5, 1), torch.zeros(5, 1))})


def legend_of(axes: Any) -> Any:
    return next(ax.get_legend() for ax in axes if ax.get_legend())


def test_codes_have_the_colours_of_their_classes() -> None:
    labels = torch.tensor([0, 2, 2, 0, 5])
    axes = plots.codes({"a": (torch.randn(5, 2), labels), "b": (torch.randn(3, 2), labels[:3])})
    drawn = [[part for part in ax.collections if len(part.get_offsets())] for ax in axes]
    assert [[len(part.get_offsets()) for part in parts] for parts in drawn] == [[2, 2, 1], [1, 2]]
    legend = legend_of(axes)
    assert [text.get_text() for text in legend.get_texts()] == ["0", "2", "5"]
    colours = [handle.get_facecolor()[0, :3].tolist() for handle in legend.legend_handles]
    assert colours == [part.get_facecolor()[0, :3].tolist() for part in drawn[0]]
    assert colours[:2] == [part.get_facecolor()[0, :3].tolist() for part in drawn[1]]


CLASSES: dict[str, tuple[Any, list[str]]] = {
    "strings": (["b", "a", "b", "c"], ["a", "b", "c"]),
    "array of strings": (np.array(["b", "a", "b", "c"]), ["a", "b", "c"]),
    "objects": (np.array(["b", None, "b", "c"], dtype=object), ["None", "b", "c"]),
    "booleans": (torch.tensor([True, False, True, True]), ["False", "True"]),
    "bytes": (torch.tensor([3, 200, 3, 3], dtype=torch.uint8), ["3", "200"]),
    "negative integers": (np.array([-1, 10, 2, 2]), ["-1", "2", "10"]),
    "pandas": (pd.Series(["b", "a", "b", "c"], dtype="category"), ["a", "b", "c"]),
}


@pytest.mark.parametrize("kind", CLASSES)
def test_labels_of_any_kind_are_classes(kind: str) -> None:
    labels, expected = CLASSES[kind]
    axes = plots.codes({"a": (torch.randn(4, 2), labels)}, label="kind")
    legend = legend_of(axes)
    assert [text.get_text() for text in legend.get_texts()] == expected
    assert legend.get_title().get_text() == "kind"


@pytest.mark.parametrize(
    "values", [torch.rand(50), np.linspace(-3, 7, 50), pd.Series(range(50)), torch.arange(50), [0.5] * 50]
)
def test_numbers_have_a_colour_bar(values: Any) -> None:
    axes = plots.codes({"a": (torch.randn(50, 2), values), "b": (torch.randn(50, 2), values)}, label="slant (degrees)")
    bar = axes[0].figure.axes[-1]
    assert bar.get_ylabel() == "slant (degrees)"
    first, second = (ax.collections[-1] for ax in axes)
    assert (first.norm.vmin, first.norm.vmax) == (second.norm.vmin, second.norm.vmax)
    np.testing.assert_allclose(first.get_array(), np.asarray(values))


def test_values_that_are_missing_are_grey() -> None:
    (ax,) = plots.codes({"a": (torch.randn(3, 2), torch.tensor([0.0, torch.nan, 1.0]))})
    assert [len(part.get_offsets()) for part in ax.collections] == [1, 2]


def test_codes_of_more_dimensions_are_projected() -> None:
    z = torch.randn(300, 5) * torch.tensor([0.1, 5.0, 0.1, 2.0, 0.1])
    (ax,) = plots.codes({"a": (z, torch.zeros(300, dtype=torch.long))})
    spread = ax.collections[0].get_offsets().std(axis=0)
    assert abs(spread[0] - 5) < 0.7
    assert abs(spread[1] - 2) < 0.3
    assert ax.get_xlabel().startswith("PC 1 (8")  # 25 / 29 of the variance
    (ax,) = plots.codes({"a": (z, torch.zeros(300, dtype=torch.long))}, projection=lambda z: z[:, [3, 1]])
    np.testing.assert_allclose(ax.collections[0].get_offsets(), z[:, [3, 1]], rtol=1e-6)
    with pytest.raises(ValueError, match=r"The projection of 'a' must have shape \(300, 2\), got \(300, 3\)"):
        plots.codes({"a": (z, torch.zeros(300))}, projection=lambda z: z[:, :3])


def test_codes_of_a_wrong_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"of 'a' must have shapes \(n, latent\).* got \[\(5, 1\), \(5,\)\]"):
        plots.codes({"a": (torch.zeros(5, 1), torch.zeros(5))})
    with pytest.raises(ValueError, match=r"got \[\(5, 2\), \(4,\)\]. Pass one label for each code"):
        plots.codes({"a": (torch.zeros(5, 2), ["x"] * 4)})


def test_a_posterior_in_place_of_codes_is_refused() -> None:
    posterior = torch.distributions.Normal(torch.zeros(5, 2), 1.0)
    with pytest.raises(TypeError, match=r"got the distribution Normal. Pass its mean"):
        plots.codes({"VAE": (posterior, np.zeros(5))})
