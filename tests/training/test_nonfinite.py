"""Values that are not finite: their first occurrence, the state that is kept, and steps that may be skipped."""

import pickle
import re
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO, TraceGraph_ELBO
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.training import steps as training_steps
from pyrovae.training.nonfinite import are_finite
from tests.conftest import small_vae

pytestmark = pytest.mark.filterwarnings("ignore:Encountered NaN")  # by Pyro's objectives, as they come across it
fit = partial(pv.fit, progress=False)
SEED, SIZE, BATCH = 3, 20, 4


def normal_vae() -> pv.VAE:
    pyro.set_rng_seed(0)
    return pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Normal(pv.networks.mlp(2, 8, 6)),
        pv.posteriors.DiagonalNormal(
            nn.Sequential(nn.Hardtanh(-9, 9), nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
        ),
    )


def first_step_with(datum: int) -> int:
    """Return the step of the first epoch that uses a datum."""
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        return int((torch.randperm(SIZE) == datum).nonzero()) // BATCH


class Poisoned:
    """A transform that makes a datum too large for float32, or interrupts the run at the step of that datum."""

    def __init__(self, interrupt: bool = False) -> None:
        self.interrupt = interrupt

    def __call__(self, x: Tensor) -> Tensor:
        is_bad = (x[:, 0] == 7).any() and torch.is_grad_enabled()
        if is_bad and self.interrupt:
            raise KeyboardInterrupt
        return torch.where((x[:, :1] == 7) & is_bad, 1e25, x)


def poisoned_data() -> Tensor:
    x = torch.randn(SIZE, 6, generator=torch.Generator().manual_seed(0))
    x[11, 0] = 7
    return x


@pytest.mark.parametrize("way", ["eager", "graph", pytest.param("compiled", marks=pytest.mark.slow)])
def test_a_loss_that_is_not_finite_stops_the_run_before_that_step(
    way: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if way == "graph":
        request.getfixturevalue("interpreted")
    options = {"batch_size": BATCH, "epochs": 3, "seed": SEED, "compile": way != "eager"}
    vae = normal_vae()
    with pytest.raises(pv.DivergenceError) as error:
        fit(vae, poisoned_data(), transform=Poisoned(), checkpoint=tmp_path, **options)
    step = first_step_with(11)
    assert 0 < step < SIZE // BATCH - 1
    assert re.match(
        r"the Trace_ELBO objective became (nan|-inf): the first site that is not finite is 'x', in its Normal "
        r"log-probabilities \(1 of 4 infinite\), ",
        str(error.value),
    )
    assert f"in epoch 0, step {step}, counted from 0. Lower the learning rate" in str(error.value)
    assert (error.value.epoch, error.value.step, error.value.history.train) == (0, step, [])
    assert error.value.checkpoint == tmp_path / "checkpoint-000000-000000.pt"
    assert str(error.value.checkpoint) in str(error.value)
    assert vars(pickle.loads(pickle.dumps(error.value))) == vars(error.value)
    assert_same_tensors(pv.load(error.value.checkpoint, into=small_like(vae)), normal_vae())
    expected = normal_vae()
    fit(expected, poisoned_data(), transform=Poisoned(interrupt=True), **options)
    assert_same_tensors(vae, expected)


def small_like(module: pv.VAE) -> pv.VAE:
    made = normal_vae()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
    return made


def assert_same_tensors(found: nn.Module, expected: nn.Module) -> None:
    assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in found.state_dict().items())


class Own(nn.Module):
    """A loss of one parameter, which falls by a quarter of its slope at each step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.other = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(1.0))

    def loss(self, x: Tensor) -> Tensor:
        return self.weight.square().sqrt() + 0 * self.other  # the slope is 1, and none at 0


def test_a_gradient_that_is_not_finite_names_its_parameter(x: Tensor) -> None:
    module = Own()
    sgd = partial(torch.optim.SGD)
    with pytest.raises(pv.DivergenceError) as error:  # 1, 0.75, 0.5 | 0.25, 0
        fit(module, x, epochs=9, batch_size=4, learning_rate=0.25, optimizer=sgd)
    assert str(error.value).startswith(
        "the gradient of parameter 'weight' (1 of 1 NaN) is not finite, in epoch 1, step 1,"
    )
    assert error.value.history.train == pytest.approx([-0.75])
    assert (module.weight.item(), error.value.history.best_epoch, error.value.checkpoint) == (0, None, None)


def test_no_checkpoint_is_written_after_a_value_that_is_not_finite(tmp_path: Path) -> None:
    """A signal stops the run one step after the first value that is not finite."""
    stop = first_step_with(11) + 2
    steps = []

    def interrupted(x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            steps.append(len(steps))
            if len(steps) == stop:
                signal.raise_signal(signal.SIGINT)
        return Poisoned()(x)

    with pytest.raises(pv.DivergenceError, match=f"in epoch 0, step {stop - 2}"):
        fit(normal_vae(), poisoned_data(), transform=interrupted, checkpoint=tmp_path, batch_size=BATCH, seed=SEED)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-000000-000000.pt"]


def test_a_step_that_spoils_a_parameter_names_it(x: Tensor) -> None:
    class Steep(Own):
        def loss(self, x: Tensor) -> Tensor:
            return 1e30 * self.other + self.weight

    with pytest.raises(
        pv.DivergenceError,
        match=r"parameter 'other' \(1 of 1 infinite\) is not finite after the step of SGD, in epoch 0",
    ):
        fit(Steep(), x, epochs=1, batch_size=100, learning_rate=1e30, optimizer=torch.optim.SGD)


def test_a_run_that_blows_up_names_the_first_site_and_keeps_its_history(x: Tensor, tmp_path: Path) -> None:
    vae = small_vae()
    with pytest.raises(FloatingPointError, match=r"learning rate") as error:
        fit(vae, x, epochs=50, learning_rate=1e3, optimizer=torch.optim.SGD, checkpoint=tmp_path, batch_size=5)
    assert isinstance(error.value, pv.DivergenceError)
    assert all(tensor.isfinite().all() for tensor in vae.state_dict().values())
    assert len(error.value.history.train) == error.value.epoch
    if error.value.epoch:
        assert error.value.checkpoint == tmp_path / f"checkpoint-{error.value.epoch:06d}-000000.pt"


def test_a_run_that_blows_up_has_its_best_weights(x: Tensor) -> None:
    """With validation data the module has the weights of the best epoch, as after a run that ends there."""
    schedule = partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda epoch: 1.0 if epoch < 5 else 1e30)
    options: dict[str, Any] = {"optimizer": torch.optim.SGD, "learning_rate": 0.1, "scheduler": schedule, "seed": 0}
    pyro.set_rng_seed(0)
    vae = small_vae()
    with pytest.raises(pv.DivergenceError) as error:
        fit(vae, x, x, epochs=20, **options)
    assert error.value.epoch >= 5
    pyro.set_rng_seed(0)
    other = small_vae()
    assert fit(other, x, x, epochs=error.value.epoch, **options).best_epoch == error.value.history.best_epoch
    assert_same_tensors(vae, other)


def test_the_place_is_found_far_from_the_last_copy_of_the_state(x: Tensor) -> None:
    """Epochs have one step, and only some of them start with a copy of the state."""
    module = Own()
    with pytest.raises(pv.DivergenceError, match=r"'weight'.* in epoch 64, step 0,") as error:
        fit(module, x, epochs=99, batch_size=100, learning_rate=1 / 64, optimizer=torch.optim.SGD)
    assert len(error.value.history.train) == 64
    assert error.value.history.seconds == sorted(error.value.history.seconds)


def test_a_bound_on_validation_data_that_is_not_finite() -> None:
    valid = poisoned_data()
    valid[3, 2] = 1e25
    vae = normal_vae()
    with pytest.raises(
        pv.DivergenceError, match=r"became (nan|-inf): .*'x', in its Normal log-.* at the end of epoch 0,"
    ) as error:
        fit(vae, poisoned_data(), valid, epochs=2, batch_size=BATCH, seed=SEED)
    assert (error.value.step, error.value.history.valid) == (None, [])


def test_a_failure_that_cannot_be_repeated_is_reported(x: Tensor) -> None:
    calls = []

    def once(x: Tensor) -> Tensor:
        calls.append(len(calls))
        return x / 0 if len(calls) == 3 else x

    vae = normal_vae()
    with pytest.raises(pv.DivergenceError, match=r"not when the steps were repeated, .* does not depend on the seed"):
        fit(vae, poisoned_data(), epochs=2, batch_size=SIZE // 2, transform=once)


@pytest.mark.parametrize("valid", [None, poisoned_data()], ids=["no validation", "validation"])
def test_steps_that_are_not_finite_are_skipped_and_counted(valid: Tensor | None) -> None:
    vae = normal_vae()
    options: dict[str, Any] = {"batch_size": BATCH, "seed": SEED, "epochs": 4}
    history = fit(vae, poisoned_data(), valid, transform=Poisoned(), on_nonfinite="skip", **options)
    assert history.skipped == [1, 1, 1, 1]
    assert all(-100 < bound < 0 for bound in history.train)
    assert all(tensor.isfinite().all() for tensor in vae.state_dict().values())


def test_where_nothing_is_wrong_skipping_changes_nothing() -> None:
    runs = []
    for policy in ("raise", "skip"):
        vae = normal_vae()
        history = fit(vae, poisoned_data(), epochs=3, batch_size=BATCH, seed=SEED, on_nonfinite=policy)
        runs.append((history.train, history.skipped, vae.state_dict()))
    assert runs[0][:2] == runs[1][:2]
    assert all(torch.equal(tensor, runs[1][2][name]) for name, tensor in runs[0][2].items())


def test_where_all_steps_would_be_skipped_the_run_stops() -> None:
    def nothing(x: Tensor) -> Tensor:
        return x * torch.nan if torch.is_grad_enabled() else x

    with pytest.raises(pv.DivergenceError, match=r"all steps of the epoch were skipped, .* at the end of epoch 0"):
        fit(normal_vae(), poisoned_data(), epochs=3, transform=nothing, on_nonfinite="skip")


def test_a_value_of_probability_zero_is_not_named_as_the_cause(x: Tensor) -> None:
    """An enumerated site precedes the site that is at fault."""

    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.locs = nn.Parameter(torch.zeros(2))

        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                y = pyro.sample("y", dist.Categorical(torch.tensor([0.0, 1.0])), infer={"enumerate": "parallel"})
                pyro.sample("x", dist.Normal(self.locs[y], 1.0), obs=x[:, 0])

        def guide(self, x: Tensor) -> None: ...

    with pytest.raises(pv.DivergenceError, match="the first site that is not finite is 'x'"):
        fit(
            Mixture(),
            poisoned_data(),
            objective=TraceEnum_ELBO(max_plate_nesting=1),
            epochs=1,
            transform=Poisoned(),
            batch_size=BATCH,
        )


def test_gradients_are_clipped_to_their_norm(x: Tensor) -> None:
    vae, before = small_vae(), None
    before = [parameter.detach().clone() for parameter in vae.parameters()]
    fit(vae, x, epochs=1, batch_size=100, learning_rate=1.0, optimizer=torch.optim.SGD, clip_norm=0.25)
    moved = torch.cat([(new - old).flatten() for new, old in zip(vae.parameters(), before, strict=True)])
    assert moved.norm().item() == pytest.approx(0.25, rel=1e-5)


def test_no_tensor_is_finite() -> None:
    assert are_finite([])


def test_finite_steps_are_not_inspected(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_steps, "are_finite", None)
    monkeypatch.setattr(training_steps, "generator_states", None)
    assert len(fit(small_vae(), x, epochs=3, batch_size=5).train) == 3


@pytest.mark.cuda
def test_steps_of_an_objective_whose_loss_is_a_number_are_inspected_on_cuda(x: Tensor) -> None:
    options: dict[str, Any] = {"objective": TraceGraph_ELBO(), "device": "cuda"}
    assert len(fit(small_vae(), x, on_nonfinite="skip", epochs=2, **options).train) == 2
    with pytest.raises(pv.training.DivergenceError, match="first site that is not finite"):
        fit(normal_vae(), torch.randn(20, 6), optimizer=torch.optim.SGD, learning_rate=1e30, epochs=5, **options)


@pytest.mark.parametrize("where", ["prior", "likelihood", "posterior"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
def test_evaluation_of_a_diverged_model_raises_an_error(where: str, value: float, x: Tensor) -> None:
    vae = small_vae()
    vae.prior = pv.priors.GaussianMixture(2, 3)
    with torch.no_grad():
        for parameter in getattr(vae, where).parameters():
            parameter.fill_(value)
    programs = vae.model, vae.guide, x
    for run in (
        lambda: pv.evaluation.evaluate(*programs, 20, seed=0, progress=False),
        lambda: pv.evaluation.log_weights(*programs, 20, seed=0),
        lambda: pv.evaluation.ais(*programs, 5, seed=0),
        lambda: pv.evaluation.rqmc(*programs, 64, seed=0),
        lambda: pv.evaluation.kl_per_dimension(*programs, seed=0),
        lambda: fit(vae, x),
    ):
        with pytest.raises(
            FloatingPointError, match=r"^the model has diverged: .* is NaN or infinite\. .*checkpoint"
        ) as error:
            run()
        assert "\n" not in str(error.value)
