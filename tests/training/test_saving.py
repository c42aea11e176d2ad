"""save and load: the tensors of a module in a file, which can be loaded into a module of the same structure."""

import copy
import io
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceGraph_ELBO
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import archives
from pyrovae.training.store import restore_stored, stored_parameters
from tests.components import LIKELIHOODS, POSTERIORS, PRIORS
from tests.conftest import small_vae
from tests.examples import Discrete
from tests.faulty import regularized_vae
from tests.training.damaged import flip, malicious
from tests.training.programs import Script

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


def test_a_checkpoint_gives_the_final_weights_of_fit(x: Tensor, tmp_path: Path) -> None:
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
        malicious(tmp_path / "run by it"): "holds objects other than tensors",
        state.getvalue(): "not written by pyrovae",
    }.items():
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=message):
            pv.load(path, into=vae)
    with pytest.raises(FileNotFoundError):
        pv.load(tmp_path / "nowhere.pt", into=vae)
    assert not (tmp_path / "run by it").exists()
    assert_same_tensors(vae, before)


class WithStore(nn.Module):
    """A module whose programs make a parameter with ``pyro.param``."""

    def __init__(self, constraint: Any, start: Tensor) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(2))
        self.options = lambda: (start.clone(), constraint)  # not numbers of the module, which its description holds

    def model(self, x: Tensor) -> None:
        start, constraint = self.options()
        scale = pyro.param("scale", start, constraint=constraint)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.loc, 1.0).to_event(1))
            loc = z.sum(-1, keepdim=True).expand(*z.shape[:-1], 6)
            pyro.sample("x", dist.Normal(loc, 1 + scale.square().mean()).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc, 1.0).expand((len(x), 2)).to_event(1))


constraints = dist.constraints
CONSTRAINTS: dict[str, tuple[Any, Tensor]] = {
    "real": (constraints.real, torch.tensor(0.5)),
    "positive": (constraints.positive, torch.tensor(1.0)),
    "interval": (constraints.interval(0.5, 3.0), torch.ones(3)),
    "simplex": (constraints.simplex, torch.tensor([0.1, 0.2, 0.3, 0.4])),
    "lower Cholesky": (constraints.lower_cholesky, torch.eye(3)),
    "independent": (constraints.independent(constraints.greater_than(-1.0), 1), torch.ones(2)),
    "softplus": (constraints.softplus_positive, torch.ones(2)),
    "bounds of a tensor": (constraints.greater_than(torch.tensor([0.0, 1.0])), torch.full((2,), 2.0)),
}


@pytest.mark.parametrize(("constraint", "start"), CONSTRAINTS.values(), ids=CONSTRAINTS)
def test_parameters_of_the_store_travel_with_their_constraint(
    constraint: Any, start: Tensor, x: Tensor, tmp_path: Path
) -> None:
    module = WithStore(constraint, start)
    pv.fit(module, x, epochs=2, learning_rate=0.1, seed=0, checkpoint=tmp_path / "run", progress=False)
    trained = pyro.param("scale").detach().clone()
    unconstrained = pyro.param("scale").unconstrained().detach().clone()
    assert not torch.equal(trained, start)
    pv.save(module, tmp_path / "module.pt")
    for path in (tmp_path / "module.pt", max((tmp_path / "run").iterdir())):
        pyro.clear_param_store()
        other = pv.load(path, into=WithStore(constraint, start))
        assert torch.equal(pyro.param("scale").unconstrained(), unconstrained)
        pv.fit(other, x, epochs=1, learning_rate=0.1, seed=0, progress=False)  # trains the parameter further
        assert not torch.equal(pyro.param("scale"), trained)
        assert constraint.check(pyro.param("scale")).all()
        pv.load(path, into=WithStore(constraint, start))  # over a parameter that the store has
        assert torch.equal(pyro.param("scale"), trained)


def test_the_bounds_of_a_constraint_are_on_the_device_of_the_parameter() -> None:
    """Values do not matter here, so the other device is the one without values."""
    bounds = constraints.interval(torch.zeros(3), torch.ones(3))
    pyro.param("p", torch.full((3,), 0.5), constraint=bounds)
    stored = stored_parameters(WithStore(bounds, torch.zeros(3)))
    pyro.clear_param_store()
    restore_stored(stored, torch.device("meta"))
    assert pyro.param("p").device.type == "meta"


def test_a_parameter_of_the_store_with_another_shape_or_constraint_is_refused(x: Tensor, tmp_path: Path) -> None:
    module = WithStore(constraints.positive, torch.ones(3))
    pv.fit(module, x, epochs=1, seed=0, progress=False)
    pv.save(module, tmp_path / "module.pt")
    for constraint, start, message in (
        (constraints.positive, torch.ones(2), r"has shape \(2,\) in Pyro's store and \(3,\) in the file"),
        (constraints.real, torch.ones(3), "has constraint Real.* in Pyro's store and .* in the file"),
    ):
        pyro.clear_param_store()
        pyro.param("scale", start, constraint=constraint)
        other = WithStore(constraint, start)
        with pytest.raises(ValueError, match=f"pyro.param 'scale' {message}. Call pyro.clear_param_store"):
            pv.load(tmp_path / "module.pt", into=other)
        assert torch.equal(pyro.param("scale"), start)
        pyro.clear_param_store()
        pv.load(tmp_path / "module.pt", into=WithStore(constraints.positive, torch.ones(3)))


def test_a_custom_constraint_is_refused_by_name(tmp_path: Path) -> None:
    class Even(constraints.Constraint):  # type: ignore[misc]
        def check(self, value: Tensor) -> Tensor:
            return value % 2 == 0

    pyro.get_param_store()._constraints["count"] = Even()
    pyro.get_param_store()._params["count"] = torch.ones(2, requires_grad=True)
    with pytest.raises(TypeError, match=r"constraint of pyro.param 'count', .* cannot be stored. Use a constraint of"):
        pv.save(Script(), tmp_path / "module.pt")
    pyro.clear_param_store()


def test_parameters_of_other_modules_are_not_saved(x: Tensor, tmp_path: Path) -> None:
    pyro.param("of a script", torch.ones(2))
    pyro.module("other", nn.Linear(2, 3))
    pv.save(pv.priors.GaussianMixture(3, 2), tmp_path / "prior.pt")
    assert archives.read(tmp_path / "prior.pt")["stored"] == {}
    pv.save(small_vae(), tmp_path / "vae.pt")
    assert archives.read(tmp_path / "vae.pt")["stored"].keys() == {"of a script"}


def test_averages_of_an_objective_are_no_parameters(x: Tensor, tmp_path: Path) -> None:
    module = Discrete(baseline={"use_decaying_avg_baseline": True})
    pv.fit(module, x[:10], epochs=1, batch_size=5, objective=TraceGraph_ELBO(), progress=False, checkpoint=tmp_path)
    pv.save(module, tmp_path / "module.pt")
    for path in (tmp_path / "module.pt", max(tmp_path.glob("checkpoint*"))):
        pyro.clear_param_store()
        pv.load(path, into=Discrete(baseline={"use_decaying_avg_baseline": True}))
        assert not list(pyro.get_param_store())


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
