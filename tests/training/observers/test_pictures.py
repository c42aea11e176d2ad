"""Pictures of a run for TensorBoard: data, reconstructions and draws, if they are images."""

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import pyrovae as pv
from tests.watched import Copying, events, fit, image_vae, images


def pictures(kept: Any, tag: str) -> list[np.ndarray]:
    return [np.asarray(Image.open(io.BytesIO(image.encoded_image_string))) for image in kept.Images(tag)]


def test_pictures_are_data_above_reconstructions_and_draws(tmp_path: Path) -> None:
    x = images(4, 5)
    fit(Copying(), x, x, epochs=3, tensorboard=tmp_path, tensorboard_every=2)
    for tag, count in (("reconstructions", 32), ("prior draws", 20)):
        first, last = pictures(events(tmp_path), tag)
        assert first.shape == (-(-count // 8) * 5 + 1, 8 * 6 + 1, 3)
        assert np.array_equal(first, last)
    tiles = pictures(events(tmp_path), "reconstructions")[0][1:, 1:, 0].reshape(4, 5, 8, 6).swapaxes(1, 2)
    expected = (x[:16].reshape(2, 8, 4, 5) * 255).numpy()
    assert np.array_equal(tiles[0::2, :, :4, :5], expected)
    assert np.array_equal(tiles[1::2, :, :4, :5], expected)


@pytest.mark.parametrize(
    ("event", "with_valid", "tags"),
    [
        ((4, 5), True, {"reconstructions", "prior draws"}),
        ((3, 4, 5), True, {"reconstructions", "prior draws"}),
        ((1, 4, 5), False, {"prior draws"}),
        ((4, 5), False, {"prior draws"}),
        ((2, 4, 5), True, set()),
        ((5,), True, set()),
    ],
)
def test_data_that_are_not_images_are_left_out(
    event: tuple[int, ...], with_valid: bool, tags: set[str], tmp_path: Path
) -> None:
    x = images(*event, n=3)
    fit(image_vae(*event), x, x if with_valid else None, epochs=1, tensorboard=tmp_path)
    kept = events(tmp_path)
    assert set(kept.Tags()["images"]) == tags
    if tags and event[0] == 3:
        assert np.ptp(pictures(kept, "prior draws")[0].astype(int), axis=-1).max() > 0


def test_values_beyond_those_of_grey_images_are_scaled(tmp_path: Path) -> None:
    x = torch.linspace(-3, 5, 16 * 20).reshape(16, 4, 5)
    fit(Copying(), x, x, epochs=1, tensorboard=tmp_path)
    tiles = pictures(events(tmp_path), "reconstructions")[0]
    assert (tiles.min(), tiles.max()) == (0, 255)
    assert tiles[1, 3, 0] == pytest.approx(255 * (float(x[0, 0, 2]) + 3) / 8, abs=1)


def test_images_that_cannot_be_drawn_are_left_out_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Copying):
        def generate(self, n: int) -> Tensor:
            torch.rand(3)
            raise KeyError("no draws today")

    x = images(4, 5)
    fit(Broken(), x, x, epochs=4, tensorboard=tmp_path, tensorboard_every=1)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "the images of prior draws are left out from now on, because drawing them raised KeyError: 'no draws today'"
    ]
    assert set(events(tmp_path).Tags()["images"]) == {"reconstructions"}


def test_pictures_receive_the_arguments_of_the_likelihood(tmp_path: Path) -> None:
    x, y = images(4, 5), torch.eye(2)[torch.arange(20) % 2]
    joint, mlp = pv.networks.Joint, pv.networks.mlp
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Bernoulli(joint(mlp(2 + 2, (4, 5)), event_dims=(1, 1))),
        pv.posteriors.DiagonalNormal(joint(mlp(20 + 2, 4), event_dims=(2, 1))),
    )
    fit(vae, (x, y), (x, y), epochs=1, tensorboard=tmp_path)
    assert set(events(tmp_path).Tags()["images"]) == {"reconstructions", "prior draws"}
