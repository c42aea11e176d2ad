"""Options of fit: the weight of the latent sites over the epochs, accumulation, schedules per batch, callbacks."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import lr_scheduler

import pyrovae as pv
from pyrovae.training.observers.best_weights import BestWeights
from pyrovae.training.state import Tensors
from tests.conftest import small_vae
from tests.training.programs import Declared, Regression

fit = partial(pv.fit, progress=False)


def cyclical(epoch: float) -> float:
    """A weight with cycles of two epochs. The first epoch of a cycle is a ramp."""
    return min(1.0, epoch % 2) if epoch % 2 else 1.0


def test_the_kl_weight_may_be_a_function_of_the_epoch(vae: pv.VAE, x: Tensor) -> None:
    """The function is called after every step, with fractions of an epoch."""
    asked: list[float] = []

    def weight(epoch: float) -> float:
        asked.append(epoch)
        return cyclical(epoch)

    history = fit(vae, x, epochs=4, batch_size=6, kl_warmup=weight)
    assert history.kl_weight == [1.0, 1.0, 1.0, 1.0]
    assert {0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0} <= {*asked}


@pytest.mark.parametrize("warmup", [2, 2.0, lambda epoch: min(1.0, epoch / 2)])
def test_a_linear_function_is_a_linear_warm_up(x: Tensor, warmup: Any) -> None:
    runs = []
    for given in (2, warmup):
        torch.manual_seed(0)
        runs.append(fit(small_vae(), x, x, epochs=3, batch_size=5, kl_warmup=given, seed=0))
    assert runs[0].train == runs[1].train
    assert runs[0].kl_weight == runs[1].kl_weight


@pytest.mark.usefixtures("interpreted")
def test_a_function_is_compiled_too(x: Tensor) -> None:
    runs = []
    for is_compiled in (False, True):
        torch.manual_seed(0)
        runs.append(fit(small_vae(), x, epochs=3, batch_size=6, kl_warmup=cyclical, seed=0, compile=is_compiled).train)
    assert runs[0] == pytest.approx(runs[1], rel=1e-5)


@pytest.mark.parametrize(
    ("warmup", "reached"), [(400, "0.0075"), (3.5, "0.857"), (lambda epoch: 0.4, "0.4"), (4, "0.75")]
)
def test_a_warm_up_that_does_not_end_is_a_warning(x: Tensor, warmup: Any, reached: str) -> None:
    with pytest.warns(
        UserWarning, match=f"KL warm-up does not end within the 3 epochs .* reaches {reached}\\. "
    ) as told:
        fit(small_vae(), x, epochs=3, kl_warmup=warmup)
    assert [warning.filename for warning in told] == [__file__]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kl_warmup": True}, TypeError, "kl_warmup must be a number of epochs or a function of the epoch, got True"),
        (
            {"kl_warmup": lambda epoch: -1.0},
            ValueError,
            r"kl_warmup\(.*\) returned -1.0\. Return a finite weight",
        ),
        ({"kl_warmup": lambda epoch: math.nan}, ValueError, r"kl_warmup\(.*\) returned nan\. Return a finite weight"),
        ({"accumulate": 0}, ValueError, "accumulate must be at least 1, got 0"),
        ({"scheduler_step": "step"}, ValueError, r"scheduler_step must be one of \('epoch', 'batch'\), got 'step'"),
        ({"callback": 3}, TypeError, "callback must be a function of the history, got 3"),
        (
            {"scheduler_step": "batch", "scheduler": lr_scheduler.ReduceLROnPlateau},
            ValueError,
            r"ReduceLROnPlateau needs the bound of an epoch\. Pass scheduler_step='epoch'",
        ),
        (
            {"scheduler_step": "batch", "scheduler": partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=5)},
            ValueError,
            r"OneCycleLR has total_steps=5, but scheduler_step='batch' makes 6 steps in this run\. Set total_steps=6",
        ),
        (
            {"scheduler": partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=1)},
            ValueError,
            r"OneCycleLR has total_steps=1, but scheduler_step='epoch' makes 2 steps in this run\. Set total_steps=2",
        ),
    ],
)
def test_options_out_of_range_are_refused(x: Tensor, options: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        fit(small_vae(), x, epochs=2, batch_size=4, **options)


@pytest.mark.parametrize("warmup", [8, cyclical, lambda epoch: min(1.0, epoch / 8)])
def test_patience_and_best_weights_count_epochs_with_a_full_kl_weight(x: Tensor, warmup: Any) -> None:
    """Validation data of another kind get worse from the first epoch on."""
    history = fit(
        small_vae(), x[:6], 1 - x[:6], epochs=60, batch_size=3, kl_warmup=warmup, learning_rate=0.1, patience=3, seed=0
    )
    counted = [epoch for epoch, weight in enumerate(history.kl_weight) if weight >= 1]
    assert history.best_epoch == max(counted, key=history.valid.__getitem__)
    assert len([epoch for epoch in counted if epoch > history.best_epoch]) == 3
    assert history.kl_weight[-1] == 1


def test_a_later_epoch_of_a_cycle_that_does_not_count_is_not_the_best() -> None:
    """Under a cyclical warm-up, epochs with a KL weight below 1 follow epochs that count."""
    weight = torch.zeros(1)
    best = BestWeights(Tensors(torch.nn.ParameterList([torch.nn.Parameter(weight)]), {}))
    bounds = [(-10.0, False), (-12.0, True), (-5.0, False), (-11.0, True), (-11.5, True), (-4.0, False)]
    found = [best.update(epoch, bound, counts=counts) for epoch, (bound, counts) in enumerate(bounds)]
    assert found == [0, 1, 1, 3, 3, 3]
    assert best.bound == -11.0


@pytest.mark.filterwarnings("ignore:the KL warm-up does not end within")
def test_a_run_that_ends_within_its_warm_up_has_its_last_weights(x: Tensor) -> None:
    vae = small_vae()
    history = fit(vae, x[:6], 1 - x[:6], epochs=5, kl_warmup=50, learning_rate=0.1, patience=1)
    assert (history.best_epoch, len(history.train)) == (4, 5)


def one_cycle(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
    return lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=12)


def test_a_schedule_per_batch_ends_with_the_run(x: Tensor) -> None:
    rates: list[float] = []

    class Recording(torch.optim.Adam):
        def step(self, closure: Any = None) -> Any:
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    history = fit(
        small_vae(), x, epochs=4, batch_size=4, optimizer=Recording, scheduler=one_cycle, scheduler_step="batch"
    )
    assert len({*rates}) == len(rates) == 12
    assert max(rates) == pytest.approx(0.1, rel=0.1)
    assert history.learning_rate[-1] < 1e-4


def test_a_schedule_for_batches_that_is_stepped_once_per_epoch_is_a_warning(x: Tensor) -> None:
    with pytest.warns(
        UserWarning, match=r"total_steps=12, but scheduler_step='epoch' makes only 4 steps .*scheduler_step='batch'"
    ) as told:
        fit(small_vae(), x, epochs=4, batch_size=4, scheduler=one_cycle)
    assert [warning.filename for warning in told] == [__file__]
    fit(small_vae(), x, epochs=12, batch_size=4, scheduler=one_cycle)  # made for as many epochs


def as_one(make: Callable[[], Any], data: Any, **options: Any) -> list[Any]:
    """Run with batches of six, and with accumulation over their six parts."""
    runs = []
    for size, accumulate in ((6, 1), (1, 6), (2, 3)):
        torch.manual_seed(0)
        module = make()
        history = fit(
            module, data, epochs=3, batch_size=size, accumulate=accumulate, learning_rate=0.05, seed=0, **options
        )
        runs.append((history.train, dict(module.named_parameters())))
    return runs


class Whole(Declared):
    size = 12

    def guide(self, x: Tensor) -> None: ...

    def model(self, x: Tensor) -> None:
        import pyro
        import pyro.distributions as dist

        pyro.factor("penalty", -self.loc.square())
        with pyro.plate("data", self.size, subsample=torch.arange(len(x))):
            pyro.sample("x", dist.Normal(self.loc, self.log_scale.exp()), obs=x)


@pytest.mark.parametrize(
    ("make", "data"),
    [
        (Whole, torch.randn(12)),
        (Regression, (torch.randn(12, dtype=torch.float64), torch.randn(12, dtype=torch.float64))),
    ],
    ids=["a plate of the full size", "has its own loss"],
)
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, None])
def test_an_accumulated_step_is_that_of_one_batch(make: Any, data: Any, optimizer: Any) -> None:
    whole, *others = as_one(make, data, optimizer=optimizer)
    for train, parameters in others:
        assert train == pytest.approx(whole[0], rel=1e-5)
        torch.testing.assert_close(parameters, whole[1], rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("is_compiled", [False, True])
def test_accumulated_gradients_of_a_sum_add_up(x: Tensor, is_compiled: bool) -> None:
    """With plain steps of size one, a step moves by the sum of the gradients, clipped once."""
    torch.manual_seed(0)
    vae, calls = small_vae(), []
    before = torch.cat([p.detach().flatten().clone() for p in vae.parameters()])
    options: dict[str, Any] = {"optimizer": torch.optim.SGD, "learning_rate": 1.0, "clip_norm": 0.25}
    schedule = partial(lr_scheduler.LambdaLR, lr_lambda=lambda step: calls.append(step) or 1.0)
    options |= {"scheduler": schedule, "scheduler_step": "batch", "compile": is_compiled}
    history = fit(vae, x, epochs=1, batch_size=3, accumulate=4, seed=0, **options)
    moved = torch.cat([p.detach().flatten() for p in vae.parameters()]) - before
    assert moved.norm().item() == pytest.approx(0.25, rel=1e-4)
    assert calls == [0]  # the schedule is called for the only step
    assert -6 < history.train[0] < -1


def test_an_accumulated_run_goes_on_from_a_checkpoint(x: Tensor, tmp_path: Path) -> None:
    states = []
    for folder, parts in ((None, (4,)), (tmp_path, (2, 4))):
        for epochs in parts:
            torch.manual_seed(0)
            vae = small_vae()
            fit(vae, x, epochs=epochs, batch_size=2, accumulate=4, seed=0, checkpoint=folder)
        states.append(vae.state_dict())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_a_callback_sees_each_epoch_and_may_stop_the_run(x: Tensor, tmp_path: Path) -> None:
    seen: list[int] = []

    def stop(history: pv.History) -> bool:
        seen.append(len(history.train))
        assert history.best_epoch is not None
        return len(history.train) == 3

    vae = small_vae()
    history = fit(vae, x, x, epochs=50, callback=stop, checkpoint=tmp_path)
    assert (seen, len(history.train), history.interrupted) == ([1, 2, 3], 3, False)
    assert max(path.name for path in tmp_path.iterdir()) == "checkpoint-000003-000000.pt"
    assert len(fit(small_vae(), x, epochs=4, callback=lambda history: None).train) == 4


def test_an_error_in_a_callback_is_the_users(x: Tensor) -> None:
    def fail(history: pv.History) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fit(small_vae(), x, epochs=2, callback=fail)


def test_a_history_prints_as_a_line_and_a_small_table(x: Tensor) -> None:
    history = fit(small_vae(), x, x, epochs=30)
    assert repr(history).startswith("<History of Trace_ELBO: 30 epochs, train -")
    assert len(repr(history)) < 120
    table = history._repr_html_()
    assert table.count("<tr") == 2 + 10
    frame = history.to_dataframe()
    assert list(frame["train"]) == history.train
    assert list(frame.columns) == ["train", "valid", "kl_weight", "learning_rate", "seconds", "skipped"]
    assert (frame.index.name, len(frame)) == ("epoch", 30)
    assert "valid" not in fit(small_vae(), x, epochs=1).to_dataframe()
    assert repr(pv.History("IWAE")) == "<History of IWAE: 0 epochs>"
    assert pv.History("IWAE").to_dataframe().empty
