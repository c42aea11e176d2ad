"""Checkpoints: a resumed run equals an uninterrupted one, and invalid checkpoints are refused."""

import random
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceGraph_ELBO
from torch import Tensor, nn
from torch.optim import lr_scheduler

import pyrovae as pv
from pyrovae import archives
from tests import faulty
from tests.conftest import small_vae
from tests.examples import Discrete
from tests.training.continuation import assert_same, fitted
from tests.training.programs import Script

pytestmark = [  # runs in several parts give these warnings
    pytest.mark.filterwarnings("ignore:the KL warm-up does not end within"),
    pytest.mark.filterwarnings("ignore:OneCycleLR has total_steps=20, but one step per epoch"),
]


def noisy(x: Tensor) -> Tensor:
    """Add draws from NumPy's and Python's generators."""
    return (x + 0.1 * torch.as_tensor(np.random.normal(size=x.shape)).to(x) + 0.1 * random.random()).clamp(0, 1).round()


def autoencoder() -> nn.Module:
    return pv.autoencoders.DenoisingAutoencoder(pv.networks.mlp(6, 8, 3), pv.networks.mlp(3, 8, 6))


def momentum(parameters: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9, nesterov=True)


def in_turns(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
    parts = [lr_scheduler.ConstantLR(optimizer, 0.5, 2), lr_scheduler.ExponentialLR(optimizer, 0.9)]
    return lr_scheduler.SequentialLR(optimizer, parts, [2])


plateau = partial(lr_scheduler.ReduceLROnPlateau, patience=0, factor=0.5)
RUNS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "buffers, annealing, binarization, IWAE": (
        faulty.regularized_vae,
        {"objective": pv.objectives.IWAE(2), "kl_warmup": 5, "transform": pv.data.binarize},
    ),
    **dict.fromkeys(
        ("graph", "compiled"),
        (faulty.regularized_vae, {"compile": True, "kl_warmup": 5, "transform": pv.data.binarize}),
    ),
    "an objective that asks the program": (
        small_vae,
        {"objective": Trace_ELBO(num_particles=2, vectorize_particles=True)},
    ),
    "decaying baselines": (
        lambda: Discrete(baseline={"use_decaying_avg_baseline": True}),
        {"objective": TraceGraph_ELBO(), "batch_size": 7},  # they are of batches of one size
    ),
    "pyro.param": (Script, {}),
    "autoencoder": (autoencoder, {}),
    "momentum, plateaus": (small_vae, {"optimizer": momentum, "scheduler": plateau}),
    "schedules in turns, clipping": (small_vae, {"scheduler": in_turns, "clip_norm": 0.5}),
    "once a cycle": (
        small_vae,
        {"scheduler": partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=20), "on_nonfinite": "skip"},
    ),
    "milestones": (small_vae, {"scheduler": partial(lr_scheduler.MultiStepLR, milestones=[1, 4])}),
    "noise of NumPy and Python": (small_vae, {"transform": noisy}),
    "global generators": (small_vae, {"seed": None, "transform": noisy}),
    "no validation data": (small_vae, {"valid": None}),
}
LONG = ("compiled", "graph", "milestones", "once a cycle", "momentum, plateaus", "an objective that asks the program")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in LONG else ()) for n in RUNS])
def test_a_run_that_goes_on_is_the_run(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if name == "graph":
        request.getfixturevalue("interpreted")
    make, options = RUNS[name]
    whole = fitted(make, 7, None, 0, **options)
    fitted(make, 3, tmp_path, 0, **options)
    went_on = fitted(make, 7, tmp_path, 1, **options)
    assert_same(went_on, whole)
    assert went_on[1].seconds == sorted(went_on[1].seconds)
    again = fitted(make, 7, tmp_path, 2, **options)
    assert_same(again, whole)
    assert again[1].seconds == went_on[1].seconds  # nothing was trained


def test_a_run_that_ran_out_of_patience_is_over(tmp_path: Path) -> None:
    options = {"learning_rate": 0.3, "patience": 2}
    _, history = fitted(small_vae, 200, tmp_path, 0, **options)
    assert len(history.train) < 200
    assert_same(fitted(small_vae, 300, tmp_path, 1, **options), fitted(small_vae, 200, None, 0, **options))
    _, longer = fitted(small_vae, len(history.train) + 2, tmp_path, 1, learning_rate=0.3, patience=50)
    assert len(longer.train) == len(history.train) + 2


def test_the_last_two_checkpoints_are_kept(tmp_path: Path) -> None:
    fitted(small_vae, 8, tmp_path, 0, checkpoint_every=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-000006-000000.pt",
        "checkpoint-000008-000000.pt",
    ]
    (tmp_path / ".checkpoint-000009-000000.pt.77.partial").touch()
    fitted(small_vae, 11, tmp_path, 0, checkpoint_every=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-000010-000000.pt",
        "checkpoint-000011-000000.pt",
    ]


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "batch size": ({"batch_size": 6}, "batch_size is 6 here and was 5"),
    "learning rate": (
        {"learning_rate": 0.1},
        "learning_rate is 0.1 here and was 0.02|optimizer lr is 0.1 here and was 0.02",
    ),
    "optimizer": ({"optimizer": momentum}, "optimizer type is 'SGD' here and was 'Adam'"),
    "group of parameters": (
        {"optimizer": lambda parameters, lr: torch.optim.Adam([{"params": parameters, "lr": lr / 2}], lr, fused=True)},
        "optimizer group 0 is {'lr': 0.01} here and was not there",
    ),
    "schedule": ({"scheduler": plateau}, "schedule is .*ReduceLROnPlateau.* here and was None"),
    "objective": ({"objective": pv.objectives.IWAE(3)}, "loss type is 'IWAE' here and was 'Trace_ELBO'"),
    "annealing": ({"kl_warmup": 3}, "kl_warmup is 3 here and was 0"),
    "transform": ({"transform": pv.data.binarize}, "transform is 'binarize' here and was None"),
    "seed": ({"seed": 2}, "seed is 2 here and was 1"),
    "clipping": ({"clip_norm": 1.0}, "clip_norm is 1.0 here and was None"),
    "precision": ({"precision": "bfloat16"}, "precision is 'bfloat16' here and was None"),
    "validation data": ({"valid": torch.zeros(8, 6)}, "valid data SHA-1 is '[0-9a-f]{40}' here and was"),
    "fewer validation data": (
        {"valid": torch.zeros(7, 6)},
        r"valid data shapes is \[\[7, 6\]\] here and was \[\[8, 6\]\]",
    ),
}


@pytest.mark.parametrize(("options", "message"), OTHERS.values(), ids=OTHERS)
def test_the_checkpoint_of_another_run_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    fitted(small_vae, 2, tmp_path, 0)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=f"is of another run: .*({message})") as error:
        fitted(small_vae, 4, tmp_path, 0, **options)
    assert "another folder" in str(error.value)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def gamma(value: float) -> Any:
    return partial(lr_scheduler.ExponentialLR, gamma=value)


def cosine(epochs: int) -> Any:
    return partial(lr_scheduler.CosineAnnealingLR, T_max=epochs)


def betas(value: float) -> Callable[..., torch.optim.Optimizer]:
    return lambda parameters, lr: torch.optim.Adam(parameters, lr=lr, betas=(value, 0.99))


SETTINGS: dict[str, tuple[str, Any, Any, str]] = {
    "draws of an objective": (
        "objective",
        pv.objectives.IWAE(2),
        pv.objectives.IWAE(3),
        "loss num_particles is 3 here and was 2",
    ),
    "a weight": (
        "objective",
        pv.objectives.BetaELBO(4.0),
        pv.objectives.BetaELBO(2.0),
        "loss beta is 2.0 here and was",
    ),
    "an objective in an objective": (
        "objective",
        pv.objectives.BetaELBO(4.0, Trace_ELBO(num_particles=2)),
        pv.objectives.BetaELBO(4.0, Trace_ELBO(num_particles=3)),
        "loss objective num_particles is 3 here and was 2",
    ),
    "the optimizer": (
        "optimizer",
        betas(0.9),
        betas(0.5),
        r"optimizer betas is \[0.5, 0.99\] here and was \[0.9, 0.99\]",
    ),
    "a schedule": ("scheduler", gamma(0.9), gamma(0.8), "schedule gamma is 0.8 here and was 0.9"),
    "a schedule of more epochs": ("scheduler", cosine(2), cosine(4), "schedule T_max is 4 here and was 2"),
    "accumulation": ("accumulate", 1, 2, "accumulate is 2 here and was 1"),
    "steps of the schedule": ("scheduler_step", "epoch", "batch", "scheduler_step is 'batch' here and was 'epoch'"),
}


@pytest.mark.parametrize(("name", "before", "after", "message"), SETTINGS.values(), ids=SETTINGS)
def test_another_setting_is_refused_by_name(name: str, before: Any, after: Any, message: str, tmp_path: Path) -> None:
    fitted(small_vae, 2, tmp_path, 0, **{name: before})
    with pytest.raises(ValueError, match=f"is of another run: .*{message}"):
        fitted(small_vae, 4, tmp_path, 0, **{name: after})
    fitted(small_vae, 2, tmp_path, 0, **{name: before})


def test_other_training_data_are_refused(tmp_path: Path) -> None:
    def after_a_draw() -> pv.VAE:  # data are drawn after the module
        torch.rand(())
        return small_vae()

    fitted(small_vae, 2, tmp_path, 0)
    with pytest.raises(ValueError, match=r"is of another run: train data SHA-1 is '[0-9a-f]{40}' here and was"):
        fitted(after_a_draw, 4, tmp_path, 0)


def wide() -> pv.VAE:
    vae = small_vae()
    vae.likelihood.network = pv.networks.mlp(2, 500, 500, 6)
    return vae


@pytest.mark.parametrize(("options", "times"), [({"valid": None}, 3), ({}, 4)], ids=["training", "validation"])
def test_the_size_of_a_checkpoint(options: dict[str, Any], times: int, tmp_path: Path) -> None:
    """Adam has two moments of each parameter; with validation data the best weights are kept as well."""
    fitted(wide, 1, tmp_path, 0, **options)
    of_parameters = 4 * sum(parameter.numel() for parameter in wide().parameters())
    size = (tmp_path / "checkpoint-000001-000000.pt").stat().st_size
    assert size == pytest.approx(times * of_parameters, rel=0.05)


@pytest.mark.cuda
def test_a_run_on_cuda_goes_on_as_closely_as_two_runs_agree(tmp_path: Path) -> None:
    options: dict[str, Any] = {"device": "cuda", "transform": pv.data.binarize}
    whole = fitted(small_vae, 7, None, 0, **options)
    fitted(small_vae, 3, tmp_path, 0, **options)
    state, history = fitted(small_vae, 7, tmp_path, 1, **options)
    assert history.train == pytest.approx(whole[1].train, rel=1e-4)
    torch.testing.assert_close(state, whole[0], rtol=1e-3, atol=1e-4)


def test_another_architecture_with_the_same_tensors_is_refused(tmp_path: Path) -> None:
    def rectified() -> pv.VAE:
        vae = small_vae()
        vae.likelihood.network[1] = nn.Softplus()
        return vae

    fitted(small_vae, 2, tmp_path, 0)
    with pytest.raises(ValueError, match=r"is of another run: module structure .*Softplus.* here and was .*ReLU"):
        fitted(rectified, 4, tmp_path, 0)


@pytest.mark.usefixtures("interpreted")
def test_options_that_may_change_between_runs(tmp_path: Path) -> None:
    fitted(small_vae, 2, tmp_path, 0)
    changed = {"patience": 50, "progress": True, "device": "cpu", "on_nonfinite": "skip", "checkpoint_every": 2}
    changed |= {"compile": True, "checkpoint_wait": 1.0, "tensorboard": tmp_path / "board", "tensorboard_every": 2}
    _, history = fitted(small_vae, 4, tmp_path, 0, **changed)
    assert len(history.train) == 4
    assert len(fitted(small_vae, 1, tmp_path, 0)[1].train) == 4  # fewer epochs than there are


def test_other_versions_give_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted(small_vae, 2, tmp_path, 0)
    monkeypatch.setattr("pyrovae.training.checkpoints.versions", lambda: {"torch": "99.0"})
    with pytest.warns(UserWarning, match="continues with other versions.*torch is '99.0' here and was"):
        fitted(small_vae, 3, tmp_path, 0)


def test_a_checkpoint_records_the_trained_module(tmp_path: Path) -> None:
    fitted(small_vae, 2, tmp_path, 0, transform=pv.data.binarize)
    content = archives.read(tmp_path / "checkpoint-000002-000000.pt")
    description = content["description"]
    assert description["module"]["tensors"]["model.likelihood.network.0.weight"] == "torch.float32 (8, 2)"
    assert any("Bernoulli" in part["type"] for part in description["module"]["structure"].values())
    assert description["transform"] == "binarize"
    assert description["seed"] == 1
    assert description["optimizer"]["lr"] == 0.02
    assert description["train data"]["shapes"] == [[14, 6]]
    assert content["versions"]["torch"] == version("torch")
    assert content["versions"].keys() == {"python", "torch", "pyro-ppl", "numpy", "pyrovae"}
    assert content["changeable"]["epochs"] == 2


@pytest.mark.parametrize("odd", [Path(), lambda: None], ids=["object", "function"])
def test_a_state_that_cannot_be_kept_is_an_error_before_the_first_step(odd: Any, tmp_path: Path) -> None:
    class Odd(lr_scheduler.LambdaLR):
        def state_dict(self) -> dict[str, Any]:
            return {**super().state_dict(), "odd": odd}

    with pytest.raises(TypeError, match="the state of the optimizer or of its schedule holds objects other than"):
        fitted(small_vae, 2, tmp_path, 0, scheduler=partial(Odd, lr_lambda=lambda epoch: 1.0))
    assert not list(tmp_path.iterdir())
