"""Figures show the results that they are given."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from pyrovae import plots
from pyrovae.evaluation import evaluate
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


def test_images() -> None:
    batch = torch.rand(6, 4, 5)
    figure = plots.images({"one": batch, "two": batch}, columns=3, stacked=True)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["one", "two"]
    tile = figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(tile[1:5, 1:6], batch[0])
    np.testing.assert_allclose(tile[6:10, 1:6], batch[3])
    assert len(plots.images({"one": batch}, columns=2).axes) == 1


def test_images_of_a_wrong_shape() -> None:
    with pytest.raises(ValueError, match=r"images of 'x' must have shape \(n, height, width\), got \(6, 20\)"):
        plots.images({"x": torch.rand(6, 20)}, columns=2)


def test_aggregate_posteriors_shows_all_draws_of_both() -> None:
    draws = {name: (torch.randn(50, 3), torch.randn(40, 3)) for name in "abcd"}
    figure = plots.aggregate_posteriors(draws, columns=3)
    panels = [ax for ax in figure.axes if ax.get_title()]
    assert [ax.get_title() for ax in panels] == list("abcd")
    assert all(len(ax.collections[0].get_offsets()) == 90 for ax in panels)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["prior", "aggregate posterior"]


def test_aggregate_posteriors_lie_on_their_principal_components() -> None:
    z = torch.randn(200, 4) * torch.tensor([0.1, 5.0, 0.1, 2.0])
    figure = plots.aggregate_posteriors({"a": (z, z[:0])})
    spread = figure.axes[0].collections[0].get_offsets().std(axis=0)
    assert abs(spread[0] - 5) < 0.6
    assert abs(spread[1] - 2) < 0.3


def test_aggregate_posteriors_of_one_dimension_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'a' must have shape \(n, latent\).*got \[\(5, 1\), \(5, 1\)\]"):
        plots.aggregate_posteriors({"a": (torch.zeros(5, 1), torch.zeros(5, 1))})


def test_panels_side_by_side_wrap_after_five() -> None:
    figure = plots.images({str(i): torch.rand(4, 3, 3) for i in range(7)}, columns=2)
    assert len(figure.axes) == 10
    assert sum(bool(ax.images) for ax in figure.axes) == 7


def test_manifold_sets_the_images_of_a_grid_side_by_side() -> None:
    images = torch.rand(2, 3, 4, 5)
    figure = plots.manifold(images, x=torch.tensor([-1.0, 0.0, 1.0]), y=torch.tensor([0.5, -0.5]))
    (ax,) = figure.axes
    picture = ax.images[0].get_array()
    assert picture.shape == (8, 15)
    np.testing.assert_allclose(picture[4:8, 10:15], images[1, 2])
    labels = [label.get_text() for label in ax.get_xticklabels()]
    assert (labels[0], labels[-1]) == ("-1.0", "1.0")
    assert ax.get_yticks()[0] == 0.5
    assert ax.get_yticklabels()[0].get_text() == "0.5"  # the first row, on top
    assert ax.get_ylim() == (2, 0)


def test_manifold_of_a_wrong_shape() -> None:
    with pytest.raises(ValueError, match=r"shape \(rows, columns, height, width\), got \(6, 4, 5\)"):
        plots.manifold(torch.rand(6, 4, 5))


def test_strips() -> None:
    rows = {name: torch.rand(3, 4, 5) for name in ("one", "two")}
    figure = plots.strips(rows, marks={2: "end"})
    assert [ax.get_ylabel() for ax in figure.axes] == ["one", "two"]
    for ax, batch in zip(figure.axes, rows.values(), strict=True):
        np.testing.assert_allclose(ax.images[0].get_array()[:, 10:15], batch[2])
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["end"]
    assert figure.axes[0].get_xticks() == [12]  # the middle of the third image


def test_strips_of_different_shapes() -> None:
    with pytest.raises(ValueError, match=r"images of 'two' must have shape \(n, height, width\).*got \(2, 4, 5\)"):
        plots.strips({"one": torch.rand(3, 4, 5), "two": torch.rand(2, 4, 5)})


def test_codes_have_the_colours_of_their_classes() -> None:
    labels = torch.tensor([0, 2, 2, 0, 5])
    figure = plots.codes({"a": (torch.randn(5, 2), labels), "b": (torch.randn(3, 2), labels[:3])})
    first, second = figure.axes
    sizes = [len(collection.get_offsets()) for collection in first.collections[:3]]
    assert sizes == [2, 2, 1]
    assert [len(collection.get_offsets()) for collection in second.collections] == [1, 2]
    legend = figure.legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["0", "2", "5"]
    colours = [handle.get_facecolor()[0, :3].tolist() for handle in legend.legend_handles]
    assert colours == [collection.get_facecolor()[0, :3].tolist() for collection in first.collections[:3]]


def test_codes_that_do_not_lie_in_a_plane_are_refused() -> None:
    with pytest.raises(ValueError, match=r"of 'a' must have shapes \(n, 2\) and \(n,\), got \[\(5, 3\), \(5,\)\]"):
        plots.codes({"a": (torch.zeros(5, 3), torch.zeros(5))})
