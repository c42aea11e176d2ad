"""save and load: a module's tensors in a file, which goes into a module that was built alike."""

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyrovae as pv
from tests.conftest import small_vae
from tests.faulty import regularized_vae
from tests.test_checkpoints import flip, malicious
from tests.test_components import LIKELIHOODS, POSTERIORS, PRIORS
from tests.test_training import Script

COMPONENTS = {**PRIORS, **LIKELIHOODS, **POSTERIORS}


def assert_same_tensors(found: nn.Module, expected: nn.Module) -> None:
    assert found.state_dict().keys() == expected.state_dict().keys()
    assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in found.state_dict().items())


def test_a_trained_model_comes_back(x: Tensor, tmp_path: Path) -> None:
    vae, other = regularized_vae(), regularized_vae()
    pv.fit(vae, x, epochs=2, progress=False)
    pv.save(vae, tmp_path / "vae.pt")
    assert pv.load(tmp_path / "vae.pt", into=other) is other
    assert_same_tensors(other, vae)
    results = [pv.evaluation.evaluate(each.model, each.guide, x, 50, seed=0, progress=False) for each in (vae, other)]
    assert results[0].equals(results[1])


@pytest.mark.parametrize("name", [name for name, part in COMPONENTS.items() if isinstance(part, nn.Module)])
def test_every_component_comes_back(name: str, tmp_path: Path) -> None:
    component = copy.deepcopy(COMPONENTS[name])
    other = copy.deepcopy(component)
    with torch.no_grad():
        for parameter in component.parameters():
            parameter.add_(0.1)
    pv.save(component, tmp_path / "component.pt")
    assert_same_tensors(pv.load(tmp_path / "component.pt", into=other), component)


def test_a_file_holds_no_more_than_the_tensors(tmp_path: Path) -> None:
    module = nn.Module()
    module.inputs = nn.Parameter(torch.zeros(100_000)[:3])
    pv.save(module, tmp_path / "module.pt")
    assert (tmp_path / "module.pt").stat().st_size < 5000
    assert_same_tensors(pv.load(tmp_path / "module.pt", into=copy.deepcopy(module)), module)


def test_a_checkpoint_gives_the_weights_that_fit_would_have_ended_with(x: Tensor, tmp_path: Path) -> None:
    vae = small_vae()
    history = pv.fit(vae, x[:6], 1 - x[:6], epochs=40, learning_rate=0.1, checkpoint=tmp_path / "run", progress=False)
    assert history.best_epoch < 39
    assert_same_tensors(pv.load(max((tmp_path / "run").iterdir()), into=small_vae()), vae)
    pv.fit(vae, x, epochs=2, checkpoint=tmp_path / "other", progress=False)
    assert_same_tensors(pv.load(max((tmp_path / "other").iterdir()), into=small_vae()), vae)


def other_activation() -> pv.VAE:
    vae = small_vae()
    vae.likelihood.network[1] = nn.Tanh()
    return vae


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: small_vae(latent=3),
            r"model.likelihood.network.0.weight is 'torch.float32 \(8, 3\)' here and was .*\(8, 2\)",
        ),
        (lambda: small_vae().double(), r"is 'torch.float64 \(8, 2\)' here and was 'torch.float32 \(8, 2\)'"),
        (regularized_vae, r"posterior.network.1.weight is .* here and was not there"),
        (other_activation, "structure .*Tanh.* here and was .*ReLU"),
    ],
    ids=["shape", "dtype", "layers", "activation"],
)
def test_a_module_built_in_another_way_is_refused(make: Any, message: str, tmp_path: Path) -> None:
    pv.save(small_vae(), tmp_path / "vae.pt")
    into = make()
    before = copy.deepcopy(into)
    with pytest.raises(ValueError, match=f"built in another way: .*{message}"):
        pv.load(tmp_path / "vae.pt", into=into)
    assert_same_tensors(into, before)


def test_bad_files_are_refused_and_no_code_is_run(tmp_path: Path) -> None:
    vae, path = small_vae(), tmp_path / "vae.pt"
    before = copy.deepcopy(vae)
    pv.save(small_vae(), path)
    content = path.read_bytes()
    state = io.BytesIO()
    torch.save(vae.state_dict(), state)
    for bad, message in {
        content[:-100]: "cut off or damaged",
        flip(content, 0.7): "cut off or damaged",
        malicious(tmp_path / "run by it"): "holds something else than tensors",
        state.getvalue(): "not a file that pyrovae wrote",
    }.items():
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=message):
            pv.load(path, into=vae)
    with pytest.raises(FileNotFoundError):
        pv.load(tmp_path / "nowhere.pt", into=vae)
    assert not (tmp_path / "run by it").exists()
    assert_same_tensors(vae, before)


def test_parameters_of_no_module_are_not_left_out_silently(x: Tensor, tmp_path: Path) -> None:
    pv.fit(Script(), x, epochs=1, checkpoint=tmp_path, progress=False)
    with pytest.raises(ValueError, match=r"holds 'pyro.param weight', which belongs to no module"):
        pv.load(max(tmp_path.iterdir()), into=Script())


def test_a_save_that_fails_leaves_the_file_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vae, path = small_vae(), tmp_path / "vae.pt"
    pv.save(vae, path)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            pv.save(small_vae(), path)
    assert_same_tensors(pv.load(path, into=small_vae()), vae)
    assert [each.name for each in tmp_path.iterdir()] == ["vae.pt"]
