"""Checkpoints: a run that goes on is the run that was never interrupted, and what cannot be trusted is refused."""

import copy
import random
import signal
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyro
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
from tests.training.damaged import flip, malicious
from tests.training.programs import Script

pytestmark = [  # of runs that are made in parts
    pytest.mark.filterwarnings("ignore:the KL warm-up does not end within"),
    pytest.mark.filterwarnings("ignore:OneCycleLR has total_steps=20, and one step per epoch"),
]
Result = tuple[dict[str, Tensor], pv.History]


def noisy(x: Tensor) -> Tensor:
    """Draws from NumPy's and Python's generators too."""
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
    "compiled": (faulty.regularized_vae, {"compile": True, "kl_warmup": 5, "transform": pv.data.binarize}),
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


def fitted(make: Callable[[], nn.Module], epochs: int, folder: Path | None, trash: int, **options: Any) -> Result:
    """Trains as a new process would: what the generators and Pyro's store hold else does not matter."""
    pyro.set_rng_seed(7)
    pyro.clear_param_store()
    module, x = make(), torch.bernoulli(torch.full((22, 6), 0.4))
    pyro.set_rng_seed(0 if options.get("seed", 1) is None and not trash else trash)
    usual = {"valid": x[14:], "batch_size": 5, "learning_rate": 0.02, "seed": 1, "progress": False}
    options = copy.deepcopy({**usual, **options})
    history = pv.fit(module, x[:14], epochs=epochs, checkpoint=folder, **options)
    stored = {f"stored {name}": value.detach().clone() for name, value in pyro.get_param_store().named_parameters()}
    return module.state_dict() | stored, history


def assert_same(found: Result, expected: Result) -> None:
    for column in ("train", "valid", "kl_weight", "learning_rate", "best_epoch", "skipped", "interrupted"):
        assert getattr(found[1], column) == getattr(expected[1], column), column
    assert found[0].keys() == expected[0].keys()
    assert [name for name, tensor in found[0].items() if not torch.equal(tensor, expected[0][name])] == []


@pytest.mark.parametrize(("make", "options"), RUNS.values(), ids=RUNS)
def test_a_run_that_goes_on_is_the_run(make: Callable[[], nn.Module], options: dict[str, Any], tmp_path: Path) -> None:
    whole = fitted(make, 7, None, 0, **options)
    fitted(make, 3, tmp_path, 0, **options)
    went_on = fitted(make, 7, tmp_path, 1, **options)
    assert_same(went_on, whole)
    assert went_on[1].seconds == sorted(went_on[1].seconds)
    again = fitted(make, 7, tmp_path, 2, **options)
    assert_same(again, whole)
    assert again[1].seconds == went_on[1].seconds  # nothing was trained


class Stopping:
    """Binarizes, and sends the process a signal at a call; calls before the training are not counted."""

    def __init__(self, at: int, signals: tuple[signal.Signals, ...] = (signal.SIGINT,)) -> None:
        self.left, self.signals = at, signals

    def __call__(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.left -= 1
            if self.left == 0:
                for each in self.signals:
                    signal.raise_signal(each)
        return pv.data.binarize(x)


NEVER = Stopping(-1)


@pytest.mark.parametrize("step", [1, 7, 8, 9])  # of three steps an epoch
@pytest.mark.parametrize("way", ["eager", "graph", pytest.param("compiled", marks=pytest.mark.slow)])
def test_a_run_stopped_amid_an_epoch_goes_on_from_that_step(
    step: int, way: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if way == "graph":
        request.getfixturevalue("interpreted")
    options = {"kl_warmup": 5, "compile": way != "eager"}
    whole = fitted(faulty.regularized_vae, 5, None, 0, transform=NEVER, **options)
    _, history = fitted(faulty.regularized_vae, 5, tmp_path, 0, transform=Stopping(step), **options)
    assert history.interrupted
    assert len(history.train) == step // 3
    assert newest(tmp_path) == f"checkpoint-{step // 3:06d}-{step % 3:06d}.pt"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    went_on = fitted(faulty.regularized_vae, 5, tmp_path, 1, transform=NEVER, **options)
    assert_same(went_on, whole)


def test_a_sigterm_takes_its_usual_course_once_the_run_is_saved(tmp_path: Path) -> None:
    taken: list[str] = []
    before = signal.signal(signal.SIGTERM, lambda *_: taken.append(newest(tmp_path)))
    try:
        _, history = fitted(small_vae, 5, tmp_path, 0, transform=Stopping(4, (signal.SIGTERM,) * 2))
        assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, None)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert taken == ["checkpoint-000001-000001.pt"]
    assert history.interrupted
    assert_same(fitted(small_vae, 5, tmp_path, 1, transform=NEVER), fitted(small_vae, 5, None, 0, transform=NEVER))


@pytest.mark.parametrize(
    "signals",
    [("SIGINT", "SIGTERM"), ("SIGTERM", "SIGINT"), ("SIGINT", "SIGTERM", "SIGINT"), ("SIGTERM", "SIGTERM", "SIGINT")],
    ids="-".join,
)
def test_a_sigterm_takes_its_usual_course_whatever_else_comes(signals: tuple[str, ...], tmp_path: Path) -> None:
    taken: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: taken.append(number))
    try:
        stopping = Stopping(5, tuple(getattr(signal, name) for name in signals))
        _, history = fitted(small_vae, 5, tmp_path, 0, transform=stopping)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert taken == [signal.SIGTERM]
    assert history.interrupted
    assert_same(fitted(small_vae, 5, tmp_path, 1, transform=NEVER), fitted(small_vae, 5, None, 0, transform=NEVER))


def test_a_sigterm_takes_its_usual_course_if_the_run_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def failing(x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            signal.raise_signal(signal.SIGTERM)
            raise RuntimeError("a fault of the transform")
        return x

    taken: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: taken.append(number))
    try:
        with pytest.raises(RuntimeError, match="a fault of the transform"):
            fitted(small_vae, 5, tmp_path, 0, transform=failing)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert taken == [signal.SIGTERM]
    assert "the run failed before the SIGTERM took its course: RuntimeError: a fault of the transform" in caplog.text


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    _, history = fitted(small_vae, 5, tmp_path, 0, transform=Stopping(5, (signal.SIGINT,) * 2))
    assert history.interrupted
    assert newest(tmp_path) == "checkpoint-000001-000000.pt"
    assert_same(fitted(small_vae, 5, tmp_path, 1, transform=NEVER), fitted(small_vae, 5, None, 0, transform=NEVER))


def test_a_run_that_ran_out_of_patience_is_over(tmp_path: Path) -> None:
    options = {"learning_rate": 0.3, "patience": 2}
    _, history = fitted(small_vae, 200, tmp_path, 0, **options)
    assert len(history.train) < 200
    assert_same(fitted(small_vae, 300, tmp_path, 1, **options), fitted(small_vae, 200, None, 0, **options))
    _, longer = fitted(small_vae, len(history.train) + 2, tmp_path, 1, learning_rate=0.3, patience=50)
    assert len(longer.train) == len(history.train) + 2


def newest(folder: Path) -> str:
    return max(path.name for path in folder.glob("checkpoint-*.pt"))


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


def of_another_architecture(folder: Path) -> bytes:
    fitted(partial(small_vae, latent=3), 1, folder / "another", 0)
    return (folder / "another" / "checkpoint-000001-000000.pt").read_bytes()


DAMAGES: dict[str, tuple[Callable[[bytes, Path], bytes], str]] = {
    "empty": (lambda content, _: b"", "not a file that pyrovae wrote"),
    "cut off": (lambda content, _: content[: len(content) // 2], "cut off or damaged"),
    "cut off in the first line": (lambda content, _: content[:30], "cut off or damaged"),
    "torn": (lambda content, _: content[:2000] + bytes(len(content) - 2000), "cut off or damaged"),
    "appended": (lambda content, _: content + b"\0", "cut off or damaged"),
    **{f"flipped at {at}": (lambda content, _, at=at: flip(content, at), "damage") for at in (0, 0.1, 0.5, 0.9, 1)},
    "checksum flipped": (lambda content, _: flip(content, 40 / (len(content) - 1)), "cut off or damaged"),
    "another format": (lambda content, _: content.replace(b"archive 1", b"archive 2", 1), "has format '2', and this"),
    "a pickle": (lambda content, _: b"\x80\x04N.", "not a file that pyrovae wrote"),
    "malicious": (lambda content, folder: malicious(folder / "run by it"), "something else than tensors and plain"),
    "another architecture": (
        lambda content, folder: of_another_architecture(folder),
        r"of another run: module tensors model.likelihood.network.0.weight is .*\(8, 2\)' here and was .*\(8, 3\)",
    ),
    "a module": (lambda content, folder: saved_module(folder), "is not a checkpoint of a run"),
}


def saved_module(folder: Path) -> bytes:
    pv.save(small_vae(), folder / "module")
    return (folder / "module").read_bytes()


@pytest.mark.parametrize(("damage", "reason"), DAMAGES.values(), ids=DAMAGES)
def test_a_bad_checkpoint_is_refused_and_the_last_good_one_used(
    damage: Callable[[bytes, Path], bytes], reason: str, tmp_path: Path
) -> None:
    whole = fitted(small_vae, 6, None, 0)
    fitted(small_vae, 4, tmp_path, 0)
    bad = tmp_path / "checkpoint-000004-000000.pt"
    bad.write_bytes(damage(bad.read_bytes(), tmp_path))
    with pytest.warns(
        UserWarning, match=f"{bad.name}'.*{reason}.*continues from 'checkpoint-000003-000000.pt'"
    ) as told:
        went_on = fitted(small_vae, 6, tmp_path, 1)
    assert len(told) == 1
    assert_same(went_on, whole)
    assert not (tmp_path / "run by it").exists()
    assert bad.with_name(f"{bad.name}.refused").exists()
    assert newest(tmp_path) == "checkpoint-000006-000000.pt"


def test_where_no_checkpoint_is_good_nothing_is_begun_anew(tmp_path: Path) -> None:
    fitted(small_vae, 4, tmp_path, 0)
    for path in tmp_path.glob("*.pt"):
        path.write_bytes(flip(path.read_bytes(), 0.5))
    with pytest.raises(ValueError, match=r"000004-000000.pt' is cut off or damaged: .*000003-000000.pt' is cut off"):
        fitted(small_vae, 6, tmp_path, 0)
    assert len(list(tmp_path.glob("*.pt"))) == 2


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


def test_another_architecture_with_the_same_tensors_is_refused(tmp_path: Path) -> None:
    def rectified() -> pv.VAE:
        vae = small_vae()
        vae.likelihood.network[1] = nn.Softplus()
        return vae

    fitted(small_vae, 2, tmp_path, 0)
    with pytest.raises(ValueError, match=r"is of another run: module structure .*Softplus.* here and was .*ReLU"):
        fitted(rectified, 4, tmp_path, 0)


def test_what_may_change(tmp_path: Path) -> None:
    fitted(small_vae, 2, tmp_path, 0)
    changed = {"patience": 50, "progress": True, "device": "cpu", "on_nonfinite": "skip", "checkpoint_every": 2}
    _, history = fitted(small_vae, 4, tmp_path, 0, **changed)
    assert len(history.train) == 4
    assert len(fitted(small_vae, 1, tmp_path, 0)[1].train) == 4  # fewer epochs than there are


def test_other_versions_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted(small_vae, 2, tmp_path, 0)
    monkeypatch.setattr("pyrovae.training.checkpoints.versions", lambda: {"torch": "99.0"})
    with pytest.warns(UserWarning, match="continues with other versions.*torch is '99.0' here and was"):
        fitted(small_vae, 3, tmp_path, 0)


def test_a_checkpoint_says_what_was_trained(tmp_path: Path) -> None:
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
    assert content["changeable"]["epochs"] == 2


@pytest.mark.parametrize("odd", [Path(), lambda: None], ids=["object", "function"])
def test_a_state_that_cannot_be_kept_is_an_error_before_the_first_step(odd: Any, tmp_path: Path) -> None:
    class Odd(lr_scheduler.LambdaLR):
        def state_dict(self) -> dict[str, Any]:
            return {**super().state_dict(), "odd": odd}

    with pytest.raises(TypeError, match="the state of the optimizer or of its schedule holds objects other than"):
        fitted(small_vae, 2, tmp_path, 0, scheduler=partial(Odd, lr_lambda=lambda epoch: 1.0))
    assert not list(tmp_path.iterdir())
