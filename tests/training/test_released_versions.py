"""Files that released versions wrote can be read: one checkpoint and one module for each version in ``tests/files``."""

import copy
import shutil
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import archives

FILES = Path(__file__).parents[1] / "files"
VERSIONS = sorted(path.name for path in FILES.iterdir())
CHECKPOINT = "checkpoint-000002-000000.pt"
WAS_RELU = r"(module )?structure(: ReLU was there| \S+ type is '\w+' here and was 'ReLU')"
FROZEN = {  # by the format of the file
    1: r"states for 9 trained parameters, but . are trained here. Freeze the same",
    2: r"is of another run: trained parameter \d",
}


def build(activation: type[nn.Module] = nn.ReLU) -> pv.VAE:
    """Return the model of the files: dropout, and batch normalization with its buffers."""
    layers = nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.Dropout(0.2), activation(), nn.Linear(8, 4)
    return pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Bernoulli(pv.networks.mlp(2, 8, 6)),
        pv.posteriors.DiagonalNormal(nn.Sequential(*layers)),
    )


def resume(folder: Path, vae: pv.VAE, epochs: int = 6, **options: Any) -> pv.History:
    grey = torch.rand(60, 6, generator=torch.Generator().manual_seed(1))
    usual = {
        "objective": pv.objectives.IWAE(2),
        "batch_size": 11,
        "learning_rate": 0.01,
        "kl_warmup": 5,
        "transform": pv.data.binarize,
        "scheduler": partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.99),
        "seed": 3,
        "progress": False,
    }
    return pv.fit(vae, grey[:40], grey[40:].round(), epochs=epochs, checkpoint=folder, **{**usual, **options})


@pytest.fixture(autouse=True)
def _other_versions() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*continues with other versions", UserWarning)
        yield


@pytest.fixture(params=VERSIONS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(FILES / request.param, tmp_path / "run"))


def values(tensors: dict[str, Tensor], module: nn.Module) -> list[str]:
    """Return the names of the tensors of a module that differ from the tensors of a file."""
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    assert named.keys() == tensors.keys()
    return [name for name, tensor in named.items() if not torch.equal(tensor, tensors[name])]


def test_a_module_is_loaded(folder: Path) -> None:
    vae = pv.load(folder / "module.pt", into=build())
    assert values(archives.read(folder / "module.pt")["tensors"], vae) == []


def test_a_checkpoint_is_loaded(folder: Path) -> None:
    vae = pv.load(folder / CHECKPOINT, into=build())
    assert values(archives.read(folder / CHECKPOINT)["state"]["best"]["copies"], vae) == []


def test_a_run_continues(folder: Path) -> None:
    before = archives.read(folder / CHECKPOINT)["state"]["history"]
    history = resume(folder, build())
    assert history.train[:2] == before["train"]
    assert len(history.train) == 6
    assert archives.read(folder / "checkpoint-000006-000000.pt")["format"] == 2


@pytest.mark.parametrize("activation", [nn.Tanh, nn.Softplus, nn.Identity])
def test_another_activation_is_refused(activation: type[nn.Module], folder: Path) -> None:
    with pytest.raises(ValueError, match=f"built in another way: {WAS_RELU}"):
        pv.load(folder / "module.pt", into=build(activation).apply(no_relu))
    with pytest.raises(ValueError, match=f"of another run: {WAS_RELU}"):
        resume(folder, build(activation).apply(no_relu))


def no_relu(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.ReLU):
            setattr(module, name, nn.Tanh())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 4}, "seed is 4"),
        ({"learning_rate": 0.1}, "(learning_rate|lr) is 0.1"),
        ({"batch_size": 12}, "batch_size is 12"),
    ],
    ids=["seed", "learning rate", "batch size"],
)
def test_another_run_is_refused(options: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=f"of another run: .*{message}"):
        resume(folder, build(), **options)


@pytest.mark.parametrize("part", ["prior", "likelihood", "posterior"])
def test_a_frozen_part_is_refused(part: str, folder: Path) -> None:
    """Version 0.1.0 did not describe the trained parameters, so the state of the optimizer decides."""
    vae = build()
    if part == "prior":
        vae.likelihood.network[0].requires_grad_(False)
    else:
        getattr(vae, part).requires_grad_(False)
    before = copy.deepcopy(vae.state_dict())
    with pytest.raises(ValueError, match=FROZEN[archives.read(folder / CHECKPOINT).get("format", 1)]):
        resume(folder, vae)
    assert all(torch.equal(tensor, before[name]) for name, tensor in vae.state_dict().items())
