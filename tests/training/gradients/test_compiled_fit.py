"""Compiled training by ``fit`` gives the results of uncompiled training."""

from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor, nn

import pyrovae as pv
from tests.conftest import small_vae
from tests.examples import binary
from tests.steps import compiled_step
from tests.training.runs import assert_same_run, fitted

CAPTURED: dict[str, dict[str, Any]] = {
    "as it is": {},
    "clipped": {"clip_norm": 0.1},
    "looked at": {"on_nonfinite": "skip"},
    "an optimizer that says it can be": {"optimizer": partial(torch.optim.NAdam, capturable=True)},
    "one that cannot": {"optimizer": torch.optim.SGD},
    "IWAE": {"objective": pv.objectives.IWAE(3, gradient="doubly_reparameterized")},
}


def regularized_vae() -> pv.VAE:
    vae = small_vae()
    layers = nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 4)
    vae.posterior = pv.posteriors.DiagonalNormal(nn.Sequential(*layers))
    return vae.double()


@pytest.mark.slow
def test_a_compiled_run_is_the_run(x: Tensor) -> None:
    """Two shapes of batch, annealing, new binary data at every step, a schedule and validation data."""
    options = {
        "train": 0.2 + 0.6 * x.double(),
        "valid": x.double(),
        "epochs": 4,
        "batch_size": 5,
        "kl_warmup": 2,
        "transform": pv.data.binarize,
        "scheduler": partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.8),
    }
    plain, compiled = (fitted(regularized_vae, compile=is_compiled, **options) for is_compiled in (False, True))
    assert plain.history.compile_seconds == 0 < compiled.history.compile_seconds < compiled.history.seconds[-1]
    assert_same_run(compiled, plain, tolerance=1e-9)


@pytest.mark.slow
def test_a_compiled_run_in_single_precision_is_the_run_but_for_rounding(x: Tensor) -> None:
    options = {"objective": pv.objectives.IWAE(3), "epochs": 4, "batch_size": 6, "kl_warmup": 2}
    plain, compiled = (fitted(small_vae, x, valid=x, compile=is_compiled, **options) for is_compiled in (False, True))
    assert compiled.history.compile_seconds > 0
    assert_same_run(compiled, plain, tolerance=1e-5)


@pytest.mark.cuda
@pytest.mark.filterwarnings(
    "ignore:This instance was constructed with capturable"
)  # the run without graphs gives this warning
@pytest.mark.parametrize("options", CAPTURED.values(), ids=CAPTURED)
def test_a_captured_run_is_the_run(x: Tensor, options: dict[str, Any]) -> None:
    """Two shapes of batch, each with a graph of its own, and a learning rate that changes."""
    options = options | {"scheduler": partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.8), "device": "cuda"}
    plain, compiled = (
        fitted(regularized_vae, x.double(), epochs=4, batch_size=5, kl_warmup=2, compile=is_compiled, **options)
        for is_compiled in (False, True)
    )
    assert compiled.history.compile_seconds > 0
    assert_same_run(compiled, plain, tolerance=1e-9)


@pytest.mark.cuda
def test_a_captured_run_goes_on_from_a_checkpoint(x: Tensor, tmp_path: Path) -> None:
    options = {"batch_size": 5, "compile": True, "device": "cuda"}
    whole = fitted(regularized_vae, x.double(), epochs=4, **options)
    for epochs in (2, 4):
        parts = fitted(regularized_vae, x.double(), epochs=epochs, checkpoint=tmp_path, **options)
    assert_same_run(parts, whole, tolerance=1e-9)


@pytest.mark.cuda
def test_a_captured_step_does_not_wait_for_the_device() -> None:
    vae, batch = small_vae().cuda(), (binary(6, 6).cuda(),)
    step, gradients = compiled_step(vae, batch, weighted=True, clip_norm=1.0)
    with pyro.validation_enabled(False):
        for weight in (0.1, 0.2, 0.3):
            step([batch], weight)
        torch.cuda.set_sync_debug_mode("error")
        try:
            step([batch], 0.4)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert all(parameter.isfinite().all() for parameter in vae.parameters())
    assert gradients.captured is not None
    assert len(gradients.captured.graphs) == 1
