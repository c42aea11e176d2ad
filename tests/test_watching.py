"""What is told of a run while it goes: it is right, it is quiet where nobody asked, and it changes nothing."""

import ast
import io
import logging
import os
import random
import re
import shutil
import signal
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

import pyrovae as pv
from tests import faulty
from tests.conftest import small_vae

fit = partial(pv.fit, progress=False)


def events(folder: Path) -> Any:
    """What TensorBoard reads in a folder, all of it."""
    kept = EventAccumulator(str(folder), dict.fromkeys(("scalars", "histograms", "images", "tensors"), 0))
    return kept.Reload()


def curve(kept: Any, tag: str) -> dict[int, float]:
    points = [(point.step, point.value) for point in kept.Scalars(tag)]
    assert len({step for step, _ in points}) == len(points)
    return dict(points)


def as_curve(column: list[float]) -> dict[int, float]:
    return {epoch: float(np.float32(value)) for epoch, value in enumerate(column)}


def assert_is(kept: Any, history: pv.History) -> None:
    """Asserts that the curves are the history's columns."""
    assert curve(kept, "bound/train") == as_curve(history.train)
    assert curve(kept, "bound/valid") == as_curve(history.valid)
    assert curve(kept, "learning_rate") == as_curve(history.learning_rate)
    assert curve(kept, "kl_weight") == as_curve(history.kl_weight)
    assert curve(kept, "seconds") == as_curve(history.seconds)
    assert curve(kept, "skipped_steps") == as_curve(history.skipped)


def pictures(kept: Any, tag: str) -> list[np.ndarray]:
    return [np.asarray(Image.open(io.BytesIO(image.encoded_image_string))) for image in kept.Images(tag)]


def images(*event: int, n: int = 20) -> Tensor:
    return torch.rand(n, *event, generator=torch.Generator().manual_seed(1)).round()


def image_vae(*event: int) -> pv.VAE:
    layers = nn.Flatten(), nn.Linear(int(np.prod(event)), 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 4)
    return pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Bernoulli(pv.networks.mlp(2, 8, event)),
        pv.posteriors.DiagonalNormal(nn.Sequential(*layers)),
    )


class Moody(pv.VAE):
    """Its pictures move every global generator."""

    def generate(self, n: int, *given: Tensor, mean: bool = False) -> Tensor:
        assert not self.training
        return super().generate(n, *given, mean=mean) * random.random() * float(np.random.rand())


class Copying(nn.Module):
    """Reconstructs whatever it is given, and draws one image, of ones."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def loss(self, x: Tensor) -> Tensor:
        return (x.mean() - self.weight).square()

    def reconstruct(self, x: Tensor) -> Tensor:
        return x

    def generate(self, n: int) -> Tensor:
        return torch.ones(n, 4, 5)


def test_curves_are_the_columns_of_the_history(tmp_path: Path) -> None:
    x = images(4, 5)
    schedule = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5)
    options: Any = {"kl_warmup": 3, "scheduler": schedule, "batch_size": 6}
    history = fit(image_vae(4, 5), x[:12], x[12:], epochs=5, tensorboard=tmp_path, **options)
    kept = events(tmp_path)
    assert_is(kept, history)
    assert set(kept.Tags()["scalars"]) == {
        *("bound/train", "bound/valid", "learning_rate", "kl_weight", "seconds", "skipped_steps", "gradient_norm")
    }
    assert history.kl_weight[0] < history.kl_weight[1]
    assert history.learning_rate[0] > history.learning_rate[1]


def test_histograms_and_norm_are_those_of_parameters_and_gradients(tmp_path: Path, vae: pv.VAE, x: Tensor) -> None:
    fit(vae, x, epochs=5, batch_size=5, tensorboard=tmp_path, tensorboard_every=2)
    kept = events(tmp_path)
    slopes = {name: p.grad for name, p in vae.named_parameters()}
    for kind, tensors in (("parameters", vae.state_dict()), ("gradients", slopes)):
        for name, tensor in tensors.items():
            told = kept.Histograms(f"{kind}/{name}")
            assert [each.step for each in told] == [0, 2, 4]
            last = told[-1].histogram_value
            assert (last.num, last.min, last.max) == (tensor.numel(), float(tensor.min()), float(tensor.max()))
            assert last.sum == pytest.approx(float(tensor.double().sum()), abs=1e-5)
    norm = torch.cat([slope.flatten() for slope in slopes.values()]).norm()
    assert curve(kept, "gradient_norm")[4] == pytest.approx(float(norm), rel=1e-5)


def test_pictures_are_data_above_reconstructions_and_draws(tmp_path: Path) -> None:
    x = images(4, 5)
    fit(Copying(), x, x, epochs=3, tensorboard=tmp_path, tensorboard_every=2)
    for tag, count in (("reconstructions", 32), ("prior draws", 20)):
        first, last = pictures(events(tmp_path), tag)
        assert first.shape == (-(-count // 8) * 5 + 1, 8 * 6 + 1, 3)
        assert np.array_equal(first, last)
    tiles = pictures(events(tmp_path), "reconstructions")[0][1:, 1:, 0].reshape(4, 5, 8, 6).swapaxes(1, 2)
    expected = (x[:16].reshape(2, 8, 4, 5) * 255).numpy()
    assert np.array_equal(tiles[0::2, :, :4, :5], expected)
    assert np.array_equal(tiles[1::2, :, :4, :5], expected)


@pytest.mark.parametrize(
    ("event", "with_valid", "tags"),
    [
        ((4, 5), True, {"reconstructions", "prior draws"}),
        ((3, 4, 5), True, {"reconstructions", "prior draws"}),
        ((1, 4, 5), False, {"prior draws"}),
        ((4, 5), False, {"prior draws"}),
        ((2, 4, 5), True, set()),
        ((5,), True, set()),
    ],
)
def test_what_is_no_image_is_left_out(event: tuple[int, ...], with_valid: bool, tags: set[str], tmp_path: Path) -> None:
    x = images(*event, n=3)
    fit(image_vae(*event), x, x if with_valid else None, epochs=1, tensorboard=tmp_path)
    kept = events(tmp_path)
    assert set(kept.Tags()["images"]) == tags
    if tags and event[0] == 3:
        assert np.ptp(pictures(kept, "prior draws")[0].astype(int), axis=-1).max() > 0


def test_values_beyond_those_of_grey_images_are_scaled(tmp_path: Path) -> None:
    x = torch.linspace(-3, 5, 16 * 20).reshape(16, 4, 5)
    fit(Copying(), x, x, epochs=1, tensorboard=tmp_path)
    tiles = pictures(events(tmp_path), "reconstructions")[0]
    assert (tiles.min(), tiles.max()) == (0, 255)
    assert tiles[1, 3, 0] == pytest.approx(255 * (float(x[0, 0, 2]) + 3) / 8, abs=1)


def test_images_that_cannot_be_drawn_are_left_out_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Copying):
        def generate(self, n: int) -> Tensor:
            torch.rand(3)
            raise KeyError("no draws today")

    x = images(4, 5)
    fit(Broken(), x, x, epochs=4, tensorboard=tmp_path, tensorboard_every=1)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "there are no pictures of prior draws: KeyError: 'no draws today'"
    ]
    assert set(events(tmp_path).Tags()["images"]) == {"reconstructions"}


def test_what_a_likelihood_is_given_it_is_given_for_pictures(tmp_path: Path) -> None:
    x, y = images(4, 5), torch.eye(2)[torch.arange(20) % 2]
    joint, mlp = pv.networks.Joint, pv.networks.mlp
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Bernoulli(joint(mlp(2 + 2, (4, 5)), event_dims=(1, 1))),
        pv.posteriors.DiagonalNormal(joint(mlp(20 + 2, 4), event_dims=(2, 1))),
    )
    fit(vae, (x, y), (x, y), epochs=1, tensorboard=tmp_path)
    assert set(events(tmp_path).Tags()["images"]) == {"reconstructions", "prior draws"}


def moody_vae() -> pv.VAE:
    vae = image_vae(4, 5)
    return Moody(vae.prior, vae.likelihood, vae.posterior)


@pytest.mark.parametrize("seed", [0, None])
@pytest.mark.parametrize("make", [partial(image_vae, 4, 5), moody_vae])
def test_a_run_that_is_watched_has_the_same_numbers(
    make: Callable[[], pv.VAE], seed: int | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    results = []
    for tensorboard in (None, tmp_path):
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        vae, x = make(), images(4, 5)
        options: Any = {"batch_size": 6, "learning_rate": 0.02, "seed": seed, "tensorboard_every": 1}
        history = fit(vae, x[:12], x[12:], epochs=4, transform=pv.data.binarize, tensorboard=tensorboard, **options)
        told = {name: column for name, column in asdict(history).items() if name != "seconds"}
        left = torch.rand(()).item(), float(np.random.rand()), random.random()  # by the generators
        results.append((told, left, vae.training, vae.state_dict()))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    (*watched, state), (*expected, expected_state) = results
    assert watched == expected
    assert all(torch.equal(tensor, expected_state[name]) for name, tensor in state.items())
    assert len(events(tmp_path).Images("prior draws")) == 4


def test_a_run_that_goes_on_continues_its_curves(tmp_path: Path) -> None:
    x, calls = images(4, 5), 0

    def failing(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 2 + 5 * 2 + 2:  # the check, five epochs, and amid the sixth
            raise RuntimeError("lost")
        return x

    options: Any = {"batch_size": 6, "seed": 0, "tensorboard_every": 1, "checkpoint": tmp_path / "kept"}
    options |= {"checkpoint_every": 4, "tensorboard": tmp_path / "board", "transform": failing}
    with pytest.raises(RuntimeError, match="lost"):
        fit(image_vae(4, 5), x[:12], x[12:], epochs=8, **options)
    assert set(curve(events(tmp_path / "board"), "bound/valid")) == set(range(5))  # one more than in the checkpoint
    history = fit(image_vae(4, 5), x[:12], x[12:], epochs=8, **options)
    kept = events(tmp_path / "board")
    assert_is(kept, history)
    assert len(history.train) == 8
    for picture in ("reconstructions", "prior draws"):
        assert [image.step for image in kept.Images(picture)] == list(range(8))


def test_a_folder_shows_the_last_run_alone(tmp_path: Path, x: Tensor) -> None:
    fit(small_vae(), x, x, epochs=5, tensorboard=tmp_path)
    (file,) = tmp_path.iterdir()
    file.rename(tmp_path / f"events.out.tfevents.{int(time.time()):010d}.zzz")  # whose name is the last of this second
    history = fit(small_vae(), x, x, epochs=3, tensorboard=tmp_path)
    assert_is(events(tmp_path), history)


def test_a_killed_run_loses_no_point(tmp_path: Path) -> None:
    options: Any = {"tensorboard": tmp_path / "board", "checkpoint_every": 3}
    process, told = faulty.start(tmp_path, 100_000, **options)
    while not any(int(path.name[11:17]) > 5 for path in tmp_path.glob("checkpoint-*.pt")):
        assert process.is_alive()
        time.sleep(0.01)
    process.kill()
    process.join()
    told.close()
    before = len(curve(events(tmp_path / "board"), "bound/train"))
    assert before > 5
    _, history = faulty.train(tmp_path, before + 2, **options)
    assert_is(events(tmp_path / "board"), history)


class Recorder:
    """A writer that only notes what it is given."""

    def __init__(self) -> None:
        self.steps: dict[str, list[int]] = {}
        self.readable: list[int] = []

    def note(self, tag: str, value: Any, step: int) -> None:
        self.steps.setdefault(tag, []).append(step)

    add_scalar = add_histogram = add_image = note

    def flush(self) -> None:
        self.readable = self.steps["bound/train"].copy()


def test_a_writer_of_ones_own(tmp_path: Path, x: Tensor) -> None:
    recorder = Recorder()
    fit(small_vae(), x, epochs=3, tensorboard=recorder)
    assert recorder.steps["bound/train"] == recorder.readable == [0, 1, 2]
    with SummaryWriter(str(tmp_path)) as writer:
        history = fit(small_vae(), x, x, epochs=3, tensorboard=writer)
        writer.add_scalar("mine", 1.0, 7)  # it is still open
        writer.flush()
        assert_is(events(tmp_path), history)
    assert set(curve(events(tmp_path), "mine")) == {7}


@pytest.mark.filterwarnings("ignore:Encountered NaN")  # Pyro's word, before ours
def test_steps_that_are_made_again_are_not_told_again(x: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "pyrovae")
    recorder = Recorder()
    schedule = partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda epoch: 1.0 if epoch < 5 else 1e30)
    with pytest.raises(pv.DivergenceError) as caught:
        fit(small_vae(), x, epochs=20, optimizer=torch.optim.SGD, scheduler=schedule, seed=0, tensorboard=recorder)
    assert caught.value.epoch >= 5
    assert recorder.steps["bound/train"] == list(range(caught.value.epoch))
    assert len([told for told in messages(caplog) if told.startswith("epoch")]) == caught.value.epoch


def test_the_gradient_of_a_skipped_step_is_no_histogram(x: Tensor) -> None:
    class Spoiled(Copying):
        calls = 0

        def loss(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().loss(x) * (torch.nan if self.calls == 2 + 2 else 1)  # the check, and an epoch's last step

    recorder = Recorder()
    history = fit(Spoiled(), x, epochs=2, batch_size=6, on_nonfinite="skip", tensorboard=recorder, tensorboard_every=1)
    assert history.skipped == [1, 0]
    assert recorder.steps["parameters/weight"] == [0, 1]
    assert recorder.steps["gradients/weight"] == [1]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of the thread that writes
def test_a_run_goes_on_where_nothing_can_be_written(tmp_path: Path, x: Tensor) -> None:
    folder, calls = tmp_path / "board", 0

    def removing(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 1 + 3:
            shutil.rmtree(folder)
            folder.write_text("in the way")
        return x

    vae, other = small_vae(), small_vae()
    other.load_state_dict(vae.state_dict())
    with pytest.warns(UserWarning, match="fit goes on without TensorBoard") as caught:
        history = fit(vae, x, epochs=6, seed=0, tensorboard=folder, transform=removing)
    assert [warning.filename for warning in caught] == [__file__]
    assert fit(other, x, epochs=6, seed=0).train == history.train
    assert all(torch.equal(p, q) for p, q in zip(vae.parameters(), other.parameters(), strict=True))


@pytest.fixture
def _without_tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if re.match(r"tensorboard|torch\.utils\.tensorboard", name)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # type: ignore[arg-type]


@pytest.mark.usefixtures("_without_tensorboard")
def test_without_tensorboard_the_error_comes_first_and_says_how_to_get_it(tmp_path: Path, x: Tensor) -> None:
    vae = small_vae()
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    with pytest.raises(ModuleNotFoundError, match=re.escape("pip install 'pyrovae[tensorboard]'")):
        fit(vae, x, epochs=1, tensorboard=tmp_path / "board")
    assert all(torch.equal(tensor, before[name]) for name, tensor in vae.state_dict().items())
    assert not (tmp_path / "board").exists()
    fit(vae, x, epochs=1)


def test_bad_arguments_are_errors_before_the_first_step(tmp_path: Path, vae: pv.VAE, x: Tensor) -> None:
    (tmp_path / "file").touch()
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    with pytest.raises(TypeError, match="tensorboard= is a folder, or a SummaryWriter of torch's, got True"):
        fit(vae, x, tensorboard=True)  # type: ignore[arg-type]
    with pytest.raises(OSError, match=r"file' \(.*\); give a folder that can be written to"):
        fit(vae, x, tensorboard=tmp_path / "file")
    with pytest.raises(ValueError, match="tensorboard_every must be at least 1, got 0"):
        fit(vae, x, tensorboard=tmp_path, tensorboard_every=0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in vae.state_dict().items())


def messages(caplog: pytest.LogCaptureFixture, level: int = logging.INFO) -> list[str]:
    told = [record for record in caplog.records if record.levelno >= level]
    assert all(record.name.startswith("pyrovae.") for record in told)
    return [re.sub(r"\d+\.\d+", "#", record.getMessage()) for record in told]


def test_a_run_is_logged(tmp_path: Path, x: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "pyrovae")
    vae = small_vae()
    fit(vae, x[:8], x[8:], epochs=2, checkpoint=tmp_path, device="cpu")
    count = sum(parameter.numel() for parameter in vae.parameters())
    first, second = (tmp_path / f"checkpoint-00000{epoch}-000000.pt" for epoch in (1, 2))
    about = f"training VAE ({count} parameters) by Trace_ELBO on 8 data of shape (6,), 4 validation data, on cpu, from"
    assert messages(caplog, logging.DEBUG) == [
        f"wrote {tmp_path / 'checkpoint-000000-000000.pt'}",
        f"{about} epoch 0, step 0",
        "epoch 0: train -#, valid -#, # s",
        f"wrote {first}",
        "epoch 1: train -#, valid -#, # s",
        f"wrote {second}",
        "trained 2 epochs; the module has the weights of epoch 1",
    ]
    caplog.clear()
    fit(vae, x[:8], x[8:], epochs=3, checkpoint=tmp_path, device="cpu")
    assert messages(caplog) == [
        f"going on from {second}",
        f"{about} epoch 2, step 0",
        "epoch 2: train -#, valid -#, # s",
        "trained 3 epochs; the module has the weights of epoch 2",
    ]


@pytest.mark.usefixtures("interpreted")
def test_how_a_run_ended_is_logged(tmp_path: Path, x: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    def stopping(x: Tensor, calls: list[int] = []) -> Tensor:  # noqa: B006
        calls.append(0)
        if len(calls) == 3 + 3 * 1 + 2:  # the check, an epoch, and the second step
            signal.raise_signal(signal.SIGINT)
        return x

    caplog.set_level("INFO", "pyrovae")
    fit(small_vae(), x, epochs=9, batch_size=4, checkpoint=tmp_path, compile=True, transform=stopping)
    told = messages(caplog)
    assert told[1:3] == ["compiled for a batch of 4 in # s", "epoch 0: train -#, # s"]
    assert told[3:] == [
        "stopped by SIGINT in epoch 1, step 2",
        "trained 1 epochs; the module has the weights amid an epoch",
    ]
    caplog.clear()
    history = fit(small_vae(), x[:6], 1 - x[:6], epochs=500, learning_rate=0.1, patience=2)
    assert messages(caplog)[-2:] == [
        "stopped since the bound on the validation data has not become better for long enough",
        f"trained {len(history.train)} epochs; the module has the weights of epoch {history.best_epoch}",
    ]


def test_nothing_is_on_the_screen_unless_asked_for(
    tmp_path: Path, vae: pv.VAE, x: Tensor, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's
    pv.fit(vae, x, epochs=2, checkpoint=tmp_path / "kept", tensorboard=tmp_path / "board")
    logging.getLogger("pyrovae.training").warning("heard by nobody")
    pv.evaluation.evaluate(vae.model, vae.guide, x, 5)
    pv.evaluation.nuts(vae.model, vae.guide, x[:2], 20, warmup_steps=20, num_chains=2, seed=0)
    assert capfd.readouterr() == ("", "")


def test_the_package_prints_nothing_itself() -> None:
    for path in Path(pv.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.Name) and node.id == "print"), path
            if isinstance(node, ast.Attribute) and node.attr in ("stdout", "stderr", "__stdout__", "__stderr__"):
                assert path.name == "nuts.py", path  # which asks whether it is a terminal


@contextmanager
def as_stderr(is_terminal: bool) -> Iterator[Callable[[], str]]:
    """A standard error that is a pseudo-terminal or a pipe; gives a function that reads what was written to it."""
    here, there = os.openpty() if is_terminal else os.pipe()
    os.set_blocking(here, False)
    if is_terminal:
        termios.tcsetwinsize(there, (24, 120))

    def read() -> str:
        parts = []
        with suppress(BlockingIOError):  # there is no more
            while True:
                parts.append(os.read(here, 1024))
        return b"".join(parts).decode()

    with os.fdopen(there, "w", buffering=1) as stream, redirect_stderr(stream):
        yield read
    os.close(here)


def pause(seconds: float) -> Callable[[Tensor], Tensor]:
    """A transform that takes its time."""

    def transform(x: Tensor) -> Tensor:
        time.sleep(seconds)
        return x

    return transform


def test_on_a_terminal_a_bar_shows_bounds_rate_and_time_left(x: Tensor) -> None:
    with as_stderr(is_terminal=True) as read:
        history = pv.fit(small_vae(), x, x, epochs=12, batch_size=6, transform=pause(0.05))
        bars = read().rstrip().split("\r")
    pattern = r"Trace_ELBO: +\d+%\|.*\| \d+/24 \[00:0\d<00:0\d, +\d+\.\d+step/s, train -\d+\.\d\d, valid -\d+\.\d\d\]"
    assert sum(re.match(pattern, bar) is not None for bar in bars) > 3, bars
    assert "24/24" in bars[-1]
    assert f"train {history.train[-1]:.2f}, valid {history.valid[-1]:.2f}" in bars[-1]


def test_the_rate_of_a_run_that_goes_on_is_that_of_its_own_steps(tmp_path: Path, x: Tensor) -> None:
    options: Any = {"checkpoint": tmp_path, "checkpoint_every": 500, "batch_size": 1}
    fit(small_vae(), x, epochs=10, transform=pause(0), **options)
    with as_stderr(is_terminal=True) as read:
        pv.fit(small_vae(), x, epochs=12, transform=pause(0.05), **options)
        rates = [float(rate) for rate in re.findall(r"(\d+\.\d+)step/s", read())]
    assert rates
    assert max(rates) < 20


def test_in_a_pipe_there_is_no_bar(vae: pv.VAE, x: Tensor) -> None:
    for is_terminal, progress in ((False, True), (True, False)):
        with as_stderr(is_terminal) as read:
            pv.fit(vae, x, epochs=3, transform=pause(0.05), progress=progress)
            pv.evaluation.evaluate(vae.model, vae.guide, x, 5, progress=progress)
            assert read() == ""
