"""Thickness and slant are right for strokes that were drawn with known values."""

import pytest
import torch

from experiments._arithmetic import interpolate
from experiments._strokes import slant, thickness
from tests.experiments.strokes import stroke


@pytest.mark.parametrize("degrees", [-35.0, -10.0, 0.0, 20.0, 40.0])
def test_slant(degrees: float) -> None:
    assert slant(stroke(2.5, degrees)[None]).item() == pytest.approx(degrees, abs=0.3)


@pytest.mark.parametrize("degrees", [0.0, 15.0, 30.0])
@pytest.mark.parametrize("width", [2.0, 3.0, 4.0, 5.0])
def test_thickness(width: float, degrees: float) -> None:
    assert thickness(stroke(width, degrees)[None]).item() == pytest.approx(width, rel=0.12)


def test_measures_do_not_depend_on_brightness_or_place() -> None:
    image = stroke(3.3, 17.0)[None]
    moved = image.roll((1, -3), (1, 2)) / 4
    torch.testing.assert_close(slant(moved), slant(image))
    torch.testing.assert_close(thickness(moved), thickness(image), atol=1e-6, rtol=0)


def test_the_measures_of_a_batch_are_those_of_its_images() -> None:
    images = torch.stack([stroke(2.0, 10.0), stroke(4.0, -20.0)])
    torch.testing.assert_close(slant(images), torch.cat([slant(image[None]) for image in images]))
    torch.testing.assert_close(thickness(images), torch.cat([thickness(image[None]) for image in images]))


def test_spherical_interpolation_keeps_the_norm_and_the_straight_one_the_line() -> None:
    start, end = torch.nn.functional.normalize(torch.randn(2, 7, 5), dim=-1)
    arc, line = (interpolate(start, end, 9, spherical=spherical) for spherical in (True, False))
    torch.testing.assert_close(arc.norm(dim=-1), torch.ones(9, 7))
    for path in (arc, line):
        torch.testing.assert_close(path[0], start)
        torch.testing.assert_close(path[-1], end)
    angles = torch.cosine_similarity(arc[1:], arc[:-1], dim=-1).acos()
    torch.testing.assert_close(angles, angles.mean(0).expand_as(angles), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(line.diff(dim=0), ((end - start) / 8).expand(8, -1, -1))
    longer = interpolate(start, 3 * end, 9, spherical=True)
    torch.testing.assert_close(longer.norm(dim=-1), torch.linspace(1, 3, 9)[:, None].expand(-1, 7))
    torch.testing.assert_close(torch.nn.functional.normalize(longer, dim=-1), arc)
