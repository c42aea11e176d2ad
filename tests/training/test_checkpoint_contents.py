"""The content of a checkpoint: a run continues if parameters, optimizer states and entries are those of the run."""

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import archives
from pyrovae.training.description import misfits, of_trained
from tests.conftest import small_vae

X = torch.bernoulli(torch.full((14, 6), 0.4), generator=torch.Generator().manual_seed(0))


def fitted(folder: Path, change: Callable[[pv.VAE], Any] | None = None, **options: Any) -> pv.VAE:
    pyro.set_rng_seed(7)
    vae = small_vae()
    if change is not None:
        change(vae)
    pv.fit(vae, X, **{"epochs": 2, "seed": 1, "batch_size": 5, "progress": False, "checkpoint": folder, **options})
    return vae


def freeze(*names: str) -> Callable[[pv.VAE], Any]:
    """Return a function that freezes parts of a VAE."""
    return lambda vae: [vae.get_submodule(name).requires_grad_(False) for name in names]


def square(vae: pv.VAE) -> None:
    """Give the likelihood three layers, two of which have the same shapes."""
    vae.likelihood.network = pv.networks.mlp(2, 8, 8, 8, 6)


def square_and_freeze(name: str) -> Callable[[pv.VAE], Any]:
    def change(vae: pv.VAE) -> None:
        square(vae)
        vae.likelihood.network.get_submodule(name).requires_grad_(False)

    return change


FIRST = "model.likelihood.network.0"
FROZEN: dict[str, tuple[Callable[[pv.VAE], Any] | None, Callable[[pv.VAE], Any] | None, str]] = {
    "the other part": (freeze("likelihood"), freeze("posterior"), f"parameter 0 name is '{FIRST}.weight' here and was"),
    "a part more": (None, freeze("posterior"), "trained parameter . was {'name': '.*posterior.*'} and is not here|was"),
    "a part less": (freeze("posterior"), None, "trained parameter . is {'name': '.*posterior.*'.* here and was not"),
    "a bias": (
        None,
        lambda vae: vae.likelihood.network[0].bias.requires_grad_(False),
        f"name is '.*weight' here and was '{FIRST}.bias'",
    ),
    "a layer of equal shapes": (square_and_freeze("2"), square_and_freeze("4"), "name is '.*2.weight' here and was '"),
}


@pytest.mark.parametrize(("before", "after", "message"), FROZEN.values(), ids=FROZEN)
@pytest.mark.parametrize("optimizer", [None, torch.optim.SGD, torch.optim.Adagrad])
def test_other_trained_parameters_are_refused_by_name(
    before: Any, after: Any, message: str, optimizer: Any, tmp_path: Path
) -> None:
    fitted(tmp_path, before, optimizer=optimizer)
    with pytest.raises(ValueError, match=f"is of another run: trained parameter .*{message}"):
        fitted(tmp_path, after, optimizer=optimizer, epochs=3)
    fitted(tmp_path, before, optimizer=optimizer, epochs=3)  # the advice of the message


def test_another_order_in_the_optimizer_is_refused(tmp_path: Path) -> None:
    def reverse(parameters: Any, lr: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(list(parameters)[::-1], lr=lr, fused=True)

    fitted(tmp_path)
    with pytest.raises(ValueError, match=r"trained parameter 0 name is '.*posterior.*bias' here and was '.*likelihood"):
        fitted(tmp_path, optimizer=reverse, epochs=3)


def changed(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = archives.read(path)
    change(content)
    archives.write(path, content)


@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq"])
def test_states_of_other_shapes_are_refused_before_they_are_loaded(name: str, tmp_path: Path) -> None:
    fitted(tmp_path)
    for path in tmp_path.iterdir():
        if not path.name.startswith("checkpoint-000000"):
            changed(path, lambda content: content["state"]["optimizer"]["state"][0].update({name: torch.zeros(3, 2)}))
    with pytest.raises(ValueError, match=rf"{name} of trained parameter 0, '{FIRST}.weight', has shape \[3, 2\]"):
        fitted(tmp_path, epochs=3)


def test_states_of_other_optimizers_may_have_any_shape() -> None:
    weight = nn.Parameter(torch.zeros(4, 3))
    optimizer = torch.optim.Adafactor([weight])
    weight.grad = torch.ones(4, 3)
    optimizer.step()
    trained = of_trained(optimizer, {"weight": weight})
    assert trained == {"parameter 0": {"name": "weight", "dtype": "torch.float32", "shape": [4, 3]}}
    assert misfits(optimizer.state_dict(), trained, "Adafactor") == []


MISSING: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "description": (lambda content: content.pop("description"), "the entry 'description' is missing"),
    "versions": (lambda content: content.pop("versions"), "the entry 'versions' is missing"),
    "state": (lambda content: content.pop("state"), "the entry 'state' is missing"),
    "generators": (lambda content: content["state"].pop("generators"), "the entry 'generators' is missing"),
    "moments": (lambda content: content["state"]["optimizer"].pop("state"), "the entry 'state' is missing"),
    "bounds": (lambda content: content["state"]["history"].pop("train"), "the entry 'train' is missing"),
    "epoch": (lambda content: content["state"]["progress"].pop("epoch"), "the entry 'epoch' is missing"),
    "a tensor": (
        lambda content: content["state"]["tensors"].pop(f"{FIRST}.bias"),
        f"the tensor '{FIRST}.bias' is missing",
    ),
    "a module's tensors": (
        lambda content: content["description"]["module"].pop("tensors"),
        "the entry 'tensors' is missing",
    ),
}
LATER: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a column": (
        lambda content: content["state"]["history"].update(gradient_norm=[1.0]),
        "the history entry 'gradient_norm', which this version of pyrovae does not know. Use pyrovae",
    ),
    "a counter": (
        lambda content: content["state"]["progress"].update(restarts=1),
        "the progress entry 'restarts', which this version",
    ),
    "a format": (lambda content: content.update(format=99), "has format 99, but this version"),
    "a strange format": (lambda content: content.update(format="new"), "has format 'new', but this version"),
}


@pytest.mark.parametrize(("change", "message"), [*MISSING.values(), *LATER.values()], ids=[*MISSING, *LATER])
def test_missing_and_unknown_entries_are_refused_by_name(
    change: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path
) -> None:
    vae = fitted(tmp_path)
    before = copy.deepcopy(vae.state_dict())
    for path in tmp_path.iterdir():
        changed(path, change)
    with pytest.raises(ValueError, match=message):
        fitted(tmp_path, epochs=3)
    with pytest.raises(ValueError, match=message):
        pv.load(max(tmp_path.iterdir()), into=vae)
    assert all(torch.equal(tensor, before[name]) for name, tensor in vae.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["tensors"].pop(f"{FIRST}.bias"), f"the tensor '{FIRST}.bias' is missing"),
        (
            lambda content: content["tensors"].update({f"{FIRST}.bias": torch.zeros(3)}),
            rf"{FIRST}.bias is 'torch.float32 \(8,\)' here and was 'torch.float32 \(3,\)'",
        ),
        (
            lambda content: content["tensors"].update({f"{FIRST}.bias": torch.zeros(8, dtype=torch.int64)}),
            rf"{FIRST}.bias is 'torch.float32 \(8,\)' here and was 'torch.int64",
        ),
        (lambda content: content["tensors"].update(more=torch.zeros(2)), "more was 'a buffer' and is not here"),
        (lambda content: content.pop("tensors"), "the entry 'tensors' is missing"),
        (lambda content: content.pop("description"), "the entry 'description' is missing"),
        (lambda content: content.update(format=3), "has format 3, but this version"),
    ],
    ids=["missing", "shape", "dtype", "more", "no tensors", "no description", "format"],
)
def test_a_module_whose_file_was_changed_is_refused_by_name(
    change: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path
) -> None:
    pv.save(small_vae(), tmp_path / "vae.pt")
    changed(tmp_path / "vae.pt", change)
    vae = small_vae()
    before = copy.deepcopy(vae.state_dict())
    with pytest.raises(ValueError, match=message):
        pv.load(tmp_path / "vae.pt", into=vae)
    assert all(torch.equal(tensor, before[name]) for name, tensor in vae.state_dict().items())


NUMBERS: dict[str, Any] = {
    "learning_rate": np.float64(0.01),
    "clip_norm": np.float32(5),
    "seed": np.int64(3),
    "batch_size": np.int32(5),
    "epochs": np.uint8(2),
    "kl_warmup": np.int64(1),
    "checkpoint_every": np.int64(1),
    "patience": np.int64(4),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numpy_scalars_are_stored_as_numbers(name: str, tmp_path: Path) -> None:
    number = NUMBERS[name]
    more = {"valid": X[:3]} if name == "patience" else {}
    fitted(tmp_path, **{name: number}, **more)
    content = archives.read(max(tmp_path.iterdir()))
    kept = {**content["changeable"], **content["description"]}
    if name in kept:
        assert kept[name] == number.item()
        assert type(kept[name]) is type(number.item())
    fitted(tmp_path, **{name: number.item(), "epochs": 3}, **more)  # the same run with a number of Python


def draws() -> tuple[float, float, list[int]]:
    return float(np.random.rand()), random.random(), random.getstate()[1][:3]  # type: ignore[return-value]


def noisy(x: Tensor) -> Tensor:
    return (x + 0.1 * np.random.rand() + 0.1 * random.random()).clamp(0, 1).round()


@pytest.mark.parametrize("transform", [None, noisy, pv.data.binarize], ids=["none", "NumPy and Python", "torch"])
@pytest.mark.parametrize("epochs", [2, 4], ids=["complete", "to continue"])
def test_a_seeded_resume_leaves_the_global_generators_alone(transform: Any, epochs: int, tmp_path: Path) -> None:
    fitted(tmp_path, transform=transform)
    np.random.seed(7)
    random.seed(7)
    expected = draws()
    np.random.seed(7)
    random.seed(7)
    pv.fit(
        fitted_like(), X, epochs=epochs, seed=1, batch_size=5, progress=False, checkpoint=tmp_path, transform=transform
    )
    assert draws() == expected


def fitted_like() -> pv.VAE:
    """Return a module as the runs build it, without touching the generators of NumPy and Python."""
    return small_vae()


def test_an_evaluation_leaves_the_global_generators_alone() -> None:
    vae = small_vae()

    def guide(x: Tensor) -> None:
        np.random.rand()
        random.random()
        vae.guide(x)

    np.random.seed(7)
    random.seed(7)
    expected = draws()
    np.random.seed(7)
    random.seed(7)
    pv.evaluation.evaluate(vae.model, guide, X, 3, seed=0, progress=False)
    assert draws() == expected
