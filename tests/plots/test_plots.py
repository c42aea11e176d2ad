"""Figures show the results that they are given."""

from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.text import Text

from pyrovae import plots
from pyrovae.training import History
from tests.plots.examples import CURVES, HISTORY, TABLE, check_of, ranks_of

FIGURES: dict[str, Callable[..., Any]] = {
    "learning_curves": lambda **on: plots.learning_curves({"a": HISTORY, "b": HISTORY}, **on),
    "bounds": lambda **on: plots.bounds({"a model": CURVES, "another model": CURVES + 1, "c": CURVES - 1}, **on),
    "differences": lambda **on: plots.differences(TABLE, **on),
    "images": lambda **on: plots.images({"a": torch.rand(4, 5, 5)}, columns=2, **on),
    "manifold": lambda **on: plots.manifold(torch.rand(3, 3, 5, 5), x=torch.arange(3), y=torch.arange(3), **on),
    "strips": lambda **on: plots.strips({"a": torch.rand(4, 5, 5)}, marks={0: "b"}, **on),
    "aggregate_posteriors": lambda **on: plots.aggregate_posteriors(
        {"a": (torch.randn(9, 3), torch.randn(9, 3))}, **on
    ),
    "codes": lambda **on: plots.codes({"a": (torch.randn(40, 4), ["x", "y"] * 20)}, **on),
    "codes of values": lambda **on: plots.codes({"a": (torch.randn(40, 4), torch.rand(40))}, **on),
    "posterior_predictive": lambda **on: plots.posterior_predictive(check_of(np.ones(4), np.random.randn(9, 4)), **on),
    "calibration": lambda **on: plots.calibration(ranks_of(np.arange(100)[:, None]), **on),
}
PANELS = {"images", "strips", "aggregate_posteriors", "codes", "codes of values"}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_takes_axes_and_returns_them(name: str) -> None:
    _, ax = plt.subplots()
    assert FIGURES[name](ax=ax) is ax
    assert ax.has_data()
    assert plt.get_fignums() == [1]  # a notebook would show a second figure


@pytest.mark.parametrize("name", sorted(PANELS))
def test_figures_of_several_panels_take_an_array_of_axes(name: str) -> None:
    _, axes = plt.subplots(1, 1, squeeze=False)
    assert FIGURES[name](axes=axes) is axes
    _, two = plt.subplots(1, 2)
    with pytest.raises(ValueError, match=r"There are 1 panels but 2 axes. Pass one axes for each panel"):
        FIGURES[name](axes=two)
    with pytest.raises(ValueError, match="There is nothing to plot"):
        plots.codes({}, axes=two)


@pytest.mark.parametrize("name", FIGURES)
def test_text_is_readable_at_the_printed_width(name: str) -> None:
    first = FIGURES[name]()
    figure = np.atleast_1d(np.asarray(first, dtype=object)).flat[0].figure
    figure.canvas.draw()
    assert figure.get_figwidth() <= 6.5
    sizes = {text.get_fontsize() for text in figure.findobj(Text) if text.get_text() and text.get_visible()}
    assert sizes
    assert min(sizes) >= 8 - 2.5 * ("bounds" in name)  # exponents of powers of ten are not texts of their own
    assert max(sizes) <= 10
    assert len(plt.get_fignums()) == 1


@pytest.mark.parametrize("name", ["learning_curves", "bounds", "differences", "codes", "calibration"])
def test_axes_have_names_and_legends_cover_no_data(name: str) -> None:
    for given in (None, plt.subplots()[1]):
        ax = np.atleast_1d(np.asarray(FIGURES[name](ax=given), dtype=object)).flat[0]
        assert ax.get_xlabel()
        assert ax.get_ylabel() or name == "differences"
        ax.figure.canvas.draw()
        assert not ax.get_legend().get_window_extent().overlaps(ax.get_window_extent().padded(-2))


def test_the_style_of_the_caller_stays() -> None:
    before = dict(plt.rcParams)
    for figure in FIGURES.values():
        figure()
    assert dict(plt.rcParams) == before
    with plt.rc_context({"axes.labelsize": 14}):
        ax = plots.bounds({"a": CURVES}, ax=plt.subplots()[1])
    assert ax.xaxis.label.get_fontsize() == 14


def test_models_differ_in_colour_and_marker() -> None:
    ax = plots.learning_curves({str(i): History("IWAE", train=[-1.0, -2.0]) for i in range(20)})
    looks = {(line.get_color(), line.get_marker()) for line in ax.lines}
    assert len(looks) == 20
