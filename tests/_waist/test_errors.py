"""Errors in programs state the cause in the message, and Pyro's table of shapes in a note."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

import pyrovae as pv
from pyrovae._waist.weights import importance_weights
from tests.conftest import small_vae
from tests.truth.programs import normal_model


def of_integers() -> None:
    vae = small_vae()
    pv.evaluation.evaluate(vae.model, vae.guide, torch.ones(12, 6, dtype=torch.int64), 5)


def of_another_width() -> None:
    vae = small_vae()
    pv.evaluation.evaluate(vae.model, vae.guide, torch.ones(12, 5), 5)


def of_a_script() -> None:
    def model(x: Tensor) -> None:
        scale = pyro.param("a_parameter_with_a_long_name", torch.ones(3))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x @ scale)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    pv.evaluation.evaluate(model, guide, torch.ones(12, 5), 5)


@pytest.mark.parametrize("run", [of_integers, of_another_width, of_a_script])
def test_the_table_of_shapes_is_a_note(run: Callable[[], Any]) -> None:
    with pytest.raises((ValueError, RuntimeError)) as caught:
        run()
    error: BaseException | None = caught.value
    assert "Shapes" not in str(error)
    assert "Sites:" not in str(error)
    notes: list[str] = []
    while error is not None:
        notes += getattr(error, "__notes__", [])
        error = error.__cause__
    assert any("Param Sites:" in note for note in notes)


def test_a_guide_with_parameters_for_other_data_is_named() -> None:
    guide = AutoNormal(normal_model)
    guide(torch.randn(37))
    with pytest.raises(ValueError, match=r"5 entries along plate 'data', but the distribution has 37\..*AutoGuide"):
        importance_weights(normal_model, guide, (torch.randn(5),))
