"""Figures show the results that they are given."""

from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from matplotlib.text import Text

from pyrovae import plots
from pyrovae.evaluation import compare, evaluate
from pyrovae.training import History
from tests.oracle import Oracle


@pytest.fixture(autouse=True)
def _close() -> object:
    yield
    plt.close("all")


def test_learning_curves() -> None:
    history = History("IWAE", train=[-300.0] + [-100.0 + i for i in range(20)], valid=[-300.0] + [-101.0] * 20)
    ax = plots.learning_curves({"a": history, "b": History("IWAE", train=[-90.0])})
    assert [line.get_label() for line in ax.lines] == ["a, train", "a, valid", "b, train"]
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), history.train)
    assert ax.get_ylim()[0] > -120  # the first steps do not squeeze the rest
    assert "nats" in ax.get_ylabel()


def test_learning_curves_mark_the_end_of_the_warmup() -> None:
    history = History("IWAE", train=[-3.0, -2.0, -1.0], kl_weight=[0.5, 1.0, 1.0])
    line = plots.learning_curves({"a": history, "b": history}).lines[-1]
    assert line.get_label() == "KL weight reaches 1"
    assert list(line.get_xdata()) == [2, 2]


def test_bounds() -> None:
    oracle = Oracle(scale=1.4)
    x = oracle.data(30)
    result = evaluate(oracle.vae.model, oracle.vae.guide, x, 60, seed=0)
    given = plt.subplots()[1]
    ax = plots.bounds({"oracle": result}, ax=given)
    assert ax is given
    (container,) = ax.containers
    np.testing.assert_allclose(container.lines[0].get_ydata(), result.iwae.mean("datum"))
    (band,) = ax.collections[:1]
    height = np.ptp(band.get_paths()[0].vertices[:, 1][np.isclose(band.get_paths()[0].vertices[:, 0], 60)])
    assert height == pytest.approx(2 * float(result.log_likelihood.std(ddof=1)) / 30**0.5)


def test_a_bound_of_doubtful_error_is_hollow() -> None:
    doubtful = CURVES.assign(pareto_k=("datum", [0.1, 0.2, 0.3, 0.9, 0.1]))
    ax = plots.bounds({"doubtful": doubtful, "sound": CURVES.assign(pareto_k=("datum", [0.1] * 5))})
    bars = [container.lines[2][0].get_segments() for container in ax.containers]
    assert [sum(len(bar) == 2 and bool(np.isfinite(bar).all()) for bar in part) for part in bars] == [3, 4]
    (hollow,) = [line for line in ax.lines if line.get_markerfacecolor() == "white"]
    assert list(hollow.get_xdata()) == [500]


TABLE = pd.DataFrame(
    {"difference": [0.0, 2.0, -1.0], "difference_error": [0.0, 0.5, 0.2], "difference_mcse": [0.0, 0.1, np.nan]},
    index=["VAE", "IWAE", "flow"],
)


def test_differences_have_both_errors() -> None:
    ax = plots.differences(TABLE)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["IWAE", "flow"]
    assert ax.get_ylim() == (1.5, -0.5)  # from top to bottom
    data, monte_carlo = ax.containers
    np.testing.assert_allclose(data.lines[0].get_xdata(), [2, -1])
    np.testing.assert_allclose(np.ptp(data.lines[2][0].get_segments()[0][:, 0]), 2 * 1.96 * 0.5)
    np.testing.assert_allclose(np.ptp(monte_carlo.lines[2][0].get_segments()[0][:, 0]), 2 * 1.96 * 0.1)
    assert "VAE" in ax.get_xlabel()
    assert "nats" in ax.get_xlabel()


def test_differences_of_compare() -> None:
    oracle, other = Oracle(scale=1.4), Oracle(scale=1.1)
    x = oracle.data(30)
    results = {
        name: evaluate(each.vae.model, each.vae.guide, x, 60, seed=0)
        for name, each in (("a", oracle), ("b", other), ("c", other))
    }
    ax = plots.differences(compare(results, reference="b"))
    assert "a" in [label.get_text() for label in ax.get_yticklabels()]


def test_differences_of_another_table_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"no columns \['difference_mcse'\]. Pass the table of pyrovae.evaluation.compare"
    ):
        plots.differences(TABLE.drop(columns="difference_mcse"))
    with pytest.raises(ValueError, match=r"no model besides \['VAE'\]. Compare at least two"):
        plots.differences(TABLE[:1])


def test_images() -> None:
    batch = torch.rand(6, 4, 5)
    axes = plots.images({"one": batch, "two": batch}, columns=3, stacked=True)
    assert [ax.get_title(loc="left") for ax in axes] == ["one", "two"]
    tile = axes[0].images[0].get_array()
    np.testing.assert_allclose(tile[1:5, 1:6], batch[0])
    np.testing.assert_allclose(tile[6:10, 1:6], batch[3])
    assert len(plots.images({"one": batch}, columns=2)) == 1


@pytest.mark.parametrize("shape", [(6, 3, 4, 5), (6, 1, 4, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8])
def test_images_in_colour(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    batch = torch.randint(256, shape)
    (ax,) = plots.images({"one": batch.byte() if dtype == torch.uint8 else batch.to(dtype) / 255}, columns=3)
    tile = ax.images[0].get_array()
    expected = (batch[4] / 255).permute(1, 2, 0).squeeze(-1)
    np.testing.assert_allclose(tile[6:10, 7:12], expected, atol=1e-6)


def test_images_of_a_wrong_shape() -> None:
    for wrong in (torch.rand(6, 20), torch.rand(6, 2, 4, 5)):
        with pytest.raises(
            ValueError, match=r"of 'x' must have shape \(n, height, width\) or \(n, 3, height, width\), got"
        ):
            plots.images({"x": wrong}, columns=2)


def test_panels_side_by_side_wrap_and_fit_the_page() -> None:
    axes = plots.images({f"model {i} of a long name": torch.rand(4, 3, 3) for i in range(7)}, columns=2)
    assert len(axes) == len(axes[0].figure.axes) == 7
    assert axes[0].figure.get_figwidth() <= 6.5
    assert "\n" in axes[0].get_title()  # so that it is no wider than its panel


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


@pytest.mark.parametrize("channels", [(), (3,)])
def test_manifold_sets_the_images_of_a_grid_side_by_side(channels: tuple[int, ...]) -> None:
    images = torch.rand(2, 3, *channels, 4, 5)
    ax = plots.manifold(images, x=torch.tensor([-1.0, 0.0, 1.0]), y=torch.tensor([0.5, -0.5]))
    picture = ax.images[0].get_array()
    assert picture.shape == (8, 15, *channels)
    np.testing.assert_allclose(picture[4:8, 10:15], images[1, 2].permute(1, 2, 0) if channels else images[1, 2])
    labels = [label.get_text() for label in ax.get_xticklabels()]
    assert (labels[0], labels[-1]) == ("\N{MINUS SIGN}1.0", "1.0")
    assert ax.get_yticks()[0] == 0.5
    assert ax.get_yticklabels()[0].get_text() == "0.5"  # the first row, on top
    assert ax.get_ylim() == (2, 0)


def test_manifold_of_a_wrong_shape() -> None:
    with pytest.raises(ValueError, match=r"shape \(rows, columns, height, width\) or .*, got \(6, 4, 5\)"):
        plots.manifold(torch.rand(6, 4, 5))


@pytest.mark.parametrize("channels", [(), (3,)])
def test_strips(channels: tuple[int, ...]) -> None:
    rows = {name: torch.rand(3, *channels, 4, 5) for name in ("one", "two")}
    axes = plots.strips(rows, marks={2: "end"})
    assert [ax.get_ylabel() for ax in axes] == ["one", "two"]
    for ax, batch in zip(axes, rows.values(), strict=True):
        expected = batch[2].permute(1, 2, 0) if channels else batch[2]
        np.testing.assert_allclose(ax.images[0].get_array()[:, 10:15], expected)
    assert [text.get_text() for text in axes[0].get_xticklabels()] == ["end"]
    assert axes[0].get_xticks() == [12]  # the middle of the third image


def test_strips_of_different_shapes() -> None:
    with pytest.raises(ValueError, match=r"all rows must have the same shape, got .*'two': \(2, 4, 5\)"):
        plots.strips({"one": torch.rand(3, 4, 5), "two": torch.rand(2, 4, 5)})


# --- codes -----------------------------------------------------------------------------------------------------------


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
    with pytest.raises(ValueError, match=r"got \[\(5, 2\), \(4,\)\]. Give one label to each code"):
        plots.codes({"a": (torch.zeros(5, 2), ["x"] * 4)})


# --- checks ----------------------------------------------------------------------------------------------------------


def check_of(observed: np.ndarray, replicated: np.ndarray) -> xr.Dataset:
    return xr.Dataset({"observed": ("datum", observed), "replicated": (("draw", "datum"), replicated)})


def test_posterior_predictive() -> None:
    random = np.random.default_rng(0)
    observed = np.array([0.0, 0.5, 9.0])
    replicated = random.normal(size=(1000, 3))
    ax = plots.posterior_predictive(check_of(observed, replicated), statistic="largest pixel")
    inside, outside = ax.containers
    np.testing.assert_allclose(inside.lines[0].get_xdata(), observed[:2])
    np.testing.assert_allclose(outside.lines[0].get_ydata(), replicated[:, 2:].mean(0))
    low, high = inside.lines[2][0].get_segments()[0][:, 1]
    np.testing.assert_allclose([low, high], np.quantile(replicated[:, 0], [0.05, 0.95]))
    assert [text.get_text()[-5:] for text in ax.get_legend().get_texts()] == ["(67%)", "(33%)"]
    with pytest.raises(ValueError, match=r"has no \['replicated'\]. Pass that of"):
        plots.posterior_predictive(check_of(observed, replicated).drop_vars("replicated"))


def ranks_of(ranks: np.ndarray, **others: np.ndarray) -> xr.Dataset:
    sites = {"z": ranks, **others}
    columns = {name: (("simulation", f"{name}_unit"), values) for name, values in sites.items()}
    return xr.Dataset(columns, attrs={"num_draws": 99})


def test_calibration_marks_the_units_that_are_not_calibrated() -> None:
    random = np.random.default_rng(3)
    ranks = random.integers(0, 100, (500, 3))
    ranks[:, 1] = ranks[:, 1] // 2  # the latents lie below the draws
    ax = plots.calibration(ranks_of(ranks))
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["95% band of uniform ranks", "z, unit 1"]
    line = next(line for line in ax.lines if line.get_label() == "z, unit 1")
    assert line.get_ydata().max() == pytest.approx(0.5, abs=0.1)


def test_the_band_of_calibration_holds_uniform_ranks() -> None:
    random = np.random.default_rng(1)
    runs, left = 100, 0
    for _ in range(runs):
        ax = plots.calibration(ranks_of(random.integers(0, 100, (200, 4))), ax=plt.figure().subplots())
        left += len(ax.get_legend().get_texts()) > 1
        plt.close("all")
    assert left <= 5 + 4 * np.sqrt(runs * 0.05 * 0.95)


def test_calibration_of_several_sites() -> None:
    ranks = np.random.default_rng(0).integers(0, 100, (200, 1))
    result = ranks_of(ranks, w=ranks)
    assert plots.calibration(result, site="w").get_ylabel()
    with pytest.raises(ValueError, match=r"sites \['z', 'w'\], but site=None. Name one of them with site="):
        plots.calibration(result)


# --- axes, text and legends ------------------------------------------------------------------------------------------

HISTORY = History("IWAE", train=[-3.0, -2.0, -1.5], valid=[-3.1, -2.2, -1.7])
CURVES = xr.Dataset(
    {"iwae": (("datum", "k"), np.cumsum(np.ones((5, 4)), 1)), "iwae_mcse": (("datum", "k"), np.ones((5, 4)))},
    coords={"k": [1, 5, 50, 500]},
)
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
    assert plt.get_fignums() == [1]  # no second figure, which a notebook would show


@pytest.mark.parametrize("name", sorted(PANELS))
def test_figures_of_several_panels_take_an_array_of_axes(name: str) -> None:
    _, axes = plt.subplots(1, 1, squeeze=False)
    assert FIGURES[name](axes=axes) is axes
    _, two = plt.subplots(1, 2)
    with pytest.raises(ValueError, match=r"There are 1 panels but 2 axes. Give axes= one for each panel"):
        FIGURES[name](axes=two)
    with pytest.raises(ValueError, match="There is nothing to draw"):
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
