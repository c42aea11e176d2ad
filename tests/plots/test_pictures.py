"""Images, manifolds and strips show the pixels that they are given."""

import numpy as np
import pytest
import torch

from pyrovae import plots


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
    assert "\n" in axes[0].get_title()  # a title is wrapped to the width of its panel


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
