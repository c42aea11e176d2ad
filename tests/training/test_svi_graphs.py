"""SVI keeps one graph for each kind of arguments, and runs eagerly if there are too many."""

from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

import pyrovae as pv
from tests.training.svi_programs import ADAM, calls, decoder, losses, made


@pytest.mark.usefixtures("interpreted")
def test_other_kinds_of_arguments_have_graphs_of_their_own() -> None:
    """A changed number needs a new graph, but a changed tensor does not."""
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
            "there are already 8 graphs",
        ),
        ([(step, (torch.zeros(step + 1, 6), {})) for step in range(12)], "there are already 8 graphs"),
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
            with pytest.warns(UserWarning, match=f"SVI continues without compilation: .*{reason}") as told:
                results.append(losses(svi, given))
            assert [warning.filename for warning in told] == [losses.__code__.co_filename]
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
    assert loss > -expected - 1  # loss of a decoder that ignores z, with the KL term
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
        with pytest.warns(UserWarning, match="SVI continues without compilation: a decision in Python depends"):
            svi.step(*args)
    before = pyro.param("loc").detach().clone()
    svi.step(*args)
    assert not torch.equal(pyro.param("loc"), before)


def test_reduced_precision_is_used() -> None:
    args, _ = next(calls())
    exact, rounded = (made(pv.SVI, "a VAE", precision=precision).step(*args) for precision in (None, "bfloat16"))
    assert 0 < abs(exact - rounded) < 0.02 * abs(exact)
    with pytest.raises(ValueError, match=r"'tf32' is available only on CUDA devices, not on 'cpu'"):
        made(pv.SVI, "a VAE", precision="tf32")
