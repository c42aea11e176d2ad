"""SVI: the steps of ``pyro.infer.SVI``, compiled on request, and a state to go on from."""

import io
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from pyro.infer import ReweightedWakeSleep, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoNormal
from torch import Tensor, nn

import pyrovae as pv
from tests.conftest import small_vae
from tests.examples import Stored

Program = Callable[..., Any]
Pair = tuple[Program, Program]


class Encoder(nn.Module):
    """A guide that is a module and announces itself."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.2), nn.Linear(8, 4))

    def forward(self, x: Tensor, annealing: Any = 1.0) -> None:
        pyro.module("encoder", self)
        loc, log_scale = self.network(x).chunk(2, -1)
        with pyro.plate("data", len(x)), pyro.poutine.scale(scale=annealing):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def decoder(x: Tensor, annealing: Any = 1.0) -> None:
    weight = pyro.param("weight", lambda: torch.randn(2, 6))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        with pyro.poutine.scale(scale=annealing):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ weight, scale).to_event(1), obs=x)


class Labelled:
    """A semi-supervised program, in which a label that is given leaves a network without a gradient."""

    def __init__(self) -> None:
        self.networks = nn.ModuleDict({"label": nn.Linear(6, 2), "decoder": nn.Linear(2, 6)})

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        pyro.module("networks", self.networks)
        with pyro.plate("data", len(x)):
            label = pyro.sample("y", dist.Bernoulli(torch.full((2,), 0.5)).to_event(1), obs=y)
            pyro.sample("x", dist.Normal(self.networks["decoder"](label), 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        pyro.module("networks", self.networks)
        if y is None:
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Bernoulli(logits=self.networks["label"](x)).to_event(1))


def regression(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(torch.zeros(6), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)


def stored() -> Pair:
    module = Stored()
    return module.model, module.guide


def vae() -> Pair:
    made = small_vae()
    return made.model, made.guide


def labelled() -> Pair:
    made = Labelled()
    return made.model, made.guide


ADAM = partial(pyro.optim.Adam, {"lr": 0.02})
CASES: dict[str, tuple[Callable[[], Pair], Callable[[], Any], Callable[[], Any]]] = {
    "a function and a module": (lambda: (decoder, Encoder()), ADAM, Trace_ELBO),
    "particles": (lambda: (decoder, Encoder()), ADAM, lambda: Trace_ELBO(num_particles=2, vectorize_particles=True)),
    "methods": (stored, ADAM, TraceMeanField_ELBO),
    "a VAE": (vae, ADAM, Trace_ELBO),
    "IWAE": (vae, ADAM, lambda: pv.objectives.IWAE(3)),
    "an autoguide": (lambda: (regression, AutoNormal(regression)), ADAM, Trace_ELBO),
    "a packed autoguide": (lambda: (regression, AutoDiagonalNormal(regression)), ADAM, Trace_ELBO),
    "a point": (lambda: (regression, AutoDelta(regression)), ADAM, Trace_ELBO),
    "scores": (labelled, ADAM, TraceGraph_ELBO),
    "a function as loss": (lambda: (decoder, Encoder()), ADAM, lambda: Trace_ELBO().differentiable_loss),
    "clipped": (
        lambda: (decoder, Encoder()),
        lambda: pyro.optim.ClippedAdam({"lr": 0.02, "clip_norm": 1.0}),
        Trace_ELBO,
    ),
    "clip arguments": (
        lambda: (decoder, Encoder()),
        lambda: pyro.optim.Adam({"lr": 0.02}, {"clip_norm": 0.1}),
        Trace_ELBO,
    ),
    "options for each parameter": (
        lambda: (decoder, Encoder()),
        lambda: pyro.optim.Adam(lambda name: {"lr": 0.1 if name == "scale" else 0.01}),
        Trace_ELBO,
    ),
    "a schedule": (
        lambda: (decoder, Encoder()),
        lambda: pyro.optim.ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05}, "gamma": 0.8}),
        Trace_ELBO,
    ),
}


def calls() -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The arguments of some steps: new data, of two shapes."""
    generator = torch.Generator().manual_seed(3)
    for step in range(9):
        yield (torch.randn(7 if step % 3 == 2 else 12, 6, generator=generator).round().clamp(0, 1),), {}


def losses(svi: Any, arguments: Any = None) -> list[float]:
    values = []
    for args, kwargs in calls() if arguments is None else arguments:
        values.append(svi.step(*args, **kwargs))
        if isinstance(svi.optim, pyro.optim.lr_scheduler.PyroLRScheduler):
            svi.optim.step()
    return [*values, svi.evaluate_loss(*args, **kwargs)]


def made(make: Any, case: str, **options: Any) -> Any:
    programs, optimizer, objective = CASES[case]
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    return make(*programs(), optimizer(), objective(), **options)


@pytest.mark.parametrize("case", CASES)
def test_losses_are_those_of_pyro_step_by_step(case: str) -> None:
    expected = losses(made(pyro.infer.SVI, case))
    assert losses(made(pv.SVI, case)) == expected
    assert all(isinstance(loss, float) for loss in expected)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    "case", [case for case in CASES if case not in ("an autoguide", "a packed autoguide", "a point")]
)
def test_compiled_losses_are_those_of_pyro(case: str) -> None:
    """Shapes alternate, so each has a graph of its own; the first call of each runs eagerly."""
    expected = losses(made(pyro.infer.SVI, case))
    svi = made(pv.SVI, case, compile=True)
    assert losses(svi) == pytest.approx(expected, rel=1e-4)
    assert len(svi._step.gradients.kinds) == 2
    assert svi._step.gradients.compile_seconds > 0


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
    with pytest.raises(ValueError, match=r"the state holds '.*', which model and guide do not have; give those"):
        other.step(*args, **kwargs)


@pytest.mark.usefixtures("interpreted")
def test_other_kinds_of_arguments_have_graphs_of_their_own() -> None:
    """A number that changes is another graph, and a tensor that changes is not."""
    args, _ = next(calls())
    weights = [0.1, 0.1, 0.5, 0.5, 1.0, 1.0]
    for annealing, graphs in (((lambda weight: weight), 3), (torch.tensor, 1)):
        arguments = [(args, {"annealing": annealing(weight)}) for weight in weights]
        expected = losses(made(pyro.infer.SVI, "a function and a module"), arguments)
        svi = made(pv.SVI, "a function and a module", compile=True)
        assert losses(svi, arguments) == pytest.approx(expected, rel=1e-4)
        assert len(svi._step.gradients.kinds) == graphs


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (
            [(step, (torch.zeros(12, 6), {"annealing": 1 / (step + 1)})) for step in range(12)],
            "there are 8 graphs already",
        ),
        ([(step, (torch.zeros(step + 1, 6), {})) for step in range(12)], "there are 8 graphs already"),
        ([(step, (torch.zeros(4, 6), {"annealing": Odd})) for step, Odd in enumerate([object()] * 3)], "is a object"),
    ],
    ids=["numbers", "shapes", "objects"],
)
def test_too_many_kinds_run_eagerly(arguments: Any, reason: str) -> None:
    def model(x: Tensor, annealing: Any = 1.0) -> None:
        decoder(x, 1.0 if type(annealing) is object else annealing)

    def guide(x: Tensor, annealing: Any = 1.0) -> None:
        with pyro.plate("data", len(x)):
            loc = pyro.param("loc", torch.zeros(2))
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    given = [((x,), kwargs) for _, (x, kwargs) in arguments]
    results = []
    for make, options in ((pyro.infer.SVI, {}), (pv.SVI, {"compile": True})):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        svi = make(model, guide, ADAM(), Trace_ELBO(), **options)
        if options:
            with pytest.warns(UserWarning, match=f"SVI goes on without compilation: .*{reason}") as told:
                results.append(losses(svi, given))
            assert [warning.filename for warning in told] == [__file__]
        else:
            results.append(losses(svi, given))
    assert results[1] == pytest.approx(results[0], rel=1e-4)


@pytest.mark.usefixtures("interpreted")
def test_a_graph_is_dropped_with_its_parameters_or_modes() -> None:
    """The parameter store is cleared, and dropout is switched off, after a graph has been made."""
    args, _ = next(calls())
    svi = made(pv.SVI, "a function and a module", compile=True)
    for _ in range(3):
        svi.step(*args)
    svi.guide.eval()
    pyro.clear_param_store()
    pyro.param("weight", torch.zeros(2, 6))
    loss = svi.step(*args)
    expected = dist.Normal(0.0, 1.0).log_prob(args[0]).sum().item()
    assert loss > -expected - 1  # of a decoder that says nothing, KL term included
    for _ in range(3):
        svi.step(*args)
    assert pyro.param("weight").abs().sum() > 0


@pytest.mark.parametrize("is_compiled", [False, True])
def test_a_program_that_cannot_be_traced_runs_as_it_is(is_compiled: bool) -> None:
    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(2))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc if loc.sum() > -1e9 else -loc, 1.0).to_event(1))

    args, _ = next(calls())
    svi = pv.SVI(decoder, guide, ADAM(), Trace_ELBO(), compile=is_compiled)
    svi.step(*args)
    if is_compiled:
        with pytest.warns(UserWarning, match="SVI goes on without compilation: a decision is made by the value"):
            svi.step(*args)
    before = pyro.param("loc").detach().clone()
    svi.step(*args)
    assert not torch.equal(pyro.param("loc"), before)


def test_reduced_precision_is_used() -> None:
    args, _ = next(calls())
    exact, rounded = (made(pv.SVI, "a VAE", precision=precision).step(*args) for precision in (None, "bfloat16"))
    assert 0 < abs(exact - rounded) < 0.02 * abs(exact)
    with pytest.raises(ValueError, match=r"TF32 .*not of 'cpu'"):
        made(pv.SVI, "a VAE", precision="tf32")


@pytest.mark.parametrize(
    ("optim", "loss", "message"),
    [
        ({"lr": 1e-3}, Trace_ELBO(), r"optim must be an optimizer of pyro.optim, .* got dict; give pyro.optim.Adam"),
        (torch.optim.Adam([torch.zeros(1)]), Trace_ELBO(), r"optim must be .* got Adam; give .*functools.partial"),
        (ADAM(), Trace_ELBO, "loss must be a Pyro ELBO such as"),
        (ADAM(), "ELBO", "loss must be a Pyro ELBO such as"),
    ],
)
def test_other_arguments_are_refused(optim: Any, loss: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        pv.SVI(decoder, Encoder(), optim, loss)


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
