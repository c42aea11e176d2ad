"""SVI: the steps of ``pyro.infer.SVI``, compiled on request, with a state that can be saved."""

import io
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from pyro.infer import ReweightedWakeSleep, Trace_ELBO, TraceEnum_ELBO
from torch import Tensor, nn

import pyrovae as pv
from tests.examples import Stored
from tests.training.svi_programs import ADAM, CASES, Encoder, calls, decoder, losses, made


@pytest.mark.parametrize("case", CASES)
def test_losses_are_those_of_pyro_step_by_step(case: str) -> None:
    expected = losses(made(pyro.infer.SVI, case))
    assert losses(made(pv.SVI, case)) == expected
    assert all(isinstance(loss, float) for loss in expected)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    "case", [case for case in CASES if case not in ("an autoguide", "a packed autoguide", "a flow", "a point")]
)
def test_compiled_losses_are_those_of_pyro(case: str) -> None:
    """Shapes alternate, so each has a graph of its own. The first call of each runs eagerly."""
    expected = losses(made(pyro.infer.SVI, case))
    svi = made(pv.SVI, case, compile=True)
    assert losses(svi) == pytest.approx(expected, rel=1e-4)
    assert len(svi._step.gradients.kinds) == 2
    assert svi._step.gradients.compile_seconds > 0


@pytest.mark.slow
def test_compiled_for_real() -> None:
    expected = losses(made(pyro.infer.SVI, "a function and a module"))
    assert losses(made(pv.SVI, "a function and a module", compile=True)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("is_compiled", [False, True])
def test_a_network_that_is_not_in_a_loss_moves_by_its_momentum_as_in_pyro(is_compiled: bool) -> None:
    """Alternating supervised and unsupervised steps, by keyword and by position."""
    y = nn.functional.one_hot(torch.arange(12) % 2, 2).float()
    arguments = [
        ((args[0],), {"y": y} if step % 2 else {}) for step, (args, _) in enumerate(calls()) if len(args[0]) == 12
    ]
    expected = losses(made(pyro.infer.SVI, "scores"), arguments)
    found = losses(made(pv.SVI, "scores", **({"compile": True} if is_compiled else {})), arguments)
    assert found == pytest.approx(expected, rel=1e-4 if is_compiled else 0)


def test_several_losses_are_a_tuple() -> None:
    class Dreaming(Stored):
        def guide(self, x: Tensor, observations: Any = None) -> None:
            super().guide(x if observations is None else observations["x"])

    pairs = []
    for make in (pyro.infer.SVI, pv.SVI):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        module = Dreaming()

        def model(x: Tensor, observations: Any = None, module: Any = module) -> None:
            module.model(x)

        svi = make(model, module.guide, ADAM(), ReweightedWakeSleep(num_particles=2))
        pairs.append([svi.step(torch.randn(5, 6, generator=torch.Generator().manual_seed(1))) for _ in range(3)])
    assert pairs[0] == pairs[1]
    assert isinstance(pairs[1][0], tuple)


def test_an_optimizer_of_torch_gets_parameters_as_they_occur() -> None:
    def model(x: Tensor, wide: bool) -> None:
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        loc = pyro.param("loc", torch.tensor(1.0)) if wide else 0.0
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, scale), obs=x)

    x = 2 + torch.randn(50)
    svi = pv.SVI(model, lambda x, wide: None, partial(torch.optim.SGD, lr=1e-3), Trace_ELBO())
    first = [svi.step(x, wide=False) for _ in range(3)]
    assert first == sorted(first, reverse=True)
    loc = [svi.step(x, True), float(pyro.param("loc").detach())][1]
    assert loc > 1
    svi.step(x, wide=False)
    assert float(pyro.param("loc").detach()) == loc


def test_a_module_need_not_announce_its_parameters() -> None:
    class Silent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(self.loc, 1.0), obs=x)

    model, x = Silent(), torch.randn(30) + 2
    svi = pv.SVI(model, lambda x: None, partial(torch.optim.Adam, lr=0.1), Trace_ELBO().differentiable_loss)
    for _ in range(200):
        svi.step(x)
    assert model.loc.item() == pytest.approx(x.mean().item(), abs=1e-3)


@pytest.mark.parametrize("case", ["a function and a module", "methods", "a VAE", "an autoguide"])
@pytest.mark.parametrize("optim", [ADAM, lambda: partial(torch.optim.Adam, lr=0.02)], ids=["pyro", "torch"])
def test_a_state_goes_on_in_another_process(case: str, optim: Callable[[], Any]) -> None:
    programs, _, objective = CASES[case]
    arguments = [*calls()]

    def start() -> Any:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        return pv.SVI(*programs(), optim(), objective())

    whole = losses(start(), arguments)
    svi = start()
    losses_before = [svi.step(*args, **kwargs) for args, kwargs in arguments[:4]]
    buffer, noise = io.BytesIO(), torch.get_rng_state()
    torch.save(svi.state_dict(), buffer)
    other = start()
    pyro.set_rng_seed(77)
    other.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    torch.set_rng_state(noise)
    assert losses_before + losses(other, arguments[4:]) == pytest.approx(whole, rel=1e-6)


def test_a_state_of_other_programs_is_refused() -> None:
    svi = made(pv.SVI, "methods")
    args, kwargs = next(calls())
    svi.step(*args, **kwargs)
    state = svi.state_dict()
    other = made(pv.SVI, "a VAE")
    other.load_state_dict(state)
    with pytest.raises(
        ValueError,
        match=r"the state holds '.*', but model and guide have no parameter or buffer of this name\. Use the",
    ):
        other.step(*args, **kwargs)


@pytest.mark.parametrize(
    ("optim", "loss", "message"),
    [
        (
            lambda: {"lr": 1e-3},
            Trace_ELBO(),
            r"optim must be an optimizer of pyro.optim, .* got dict\. Pass pyro.optim.Adam",
        ),
        (
            lambda: torch.optim.Adam([torch.zeros(1)]),
            Trace_ELBO(),
            r"optim must be .* got Adam\. Pass .*functools.partial",
        ),
        (ADAM, Trace_ELBO, "loss must be a Pyro ELBO such as"),
        (ADAM, "ELBO", "loss must be a Pyro ELBO such as"),
    ],
)
def test_other_arguments_are_refused(optim: Callable[[], Any], loss: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        pv.SVI(decoder, Encoder(), optim(), loss)


def test_a_loss_without_parameters_is_refused() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    svi = pv.SVI(model, lambda x: None, ADAM(), Trace_ELBO())
    with pytest.raises(ValueError, match=r"no parameter of \(model, <lambda>\) gets a gradient"):
        svi.step(torch.zeros(3))


def test_enumerated_sites() -> None:
    def model(x: Tensor) -> None:
        locs = pyro.param("locs", torch.tensor([-1.0, 1.0]))
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(locs[y], 1.0), obs=x)

    x = torch.cat([torch.randn(30) - 3, torch.randn(30) + 3])
    found = []
    for make in (pyro.infer.SVI, pv.SVI):
        pyro.clear_param_store()
        svi = make(model, lambda x: None, ADAM(), TraceEnum_ELBO(max_plate_nesting=1))
        found.append([svi.step(x) for _ in range(5)])
    assert found[0] == found[1]
