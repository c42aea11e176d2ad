"""Curves and histograms of a run for TensorBoard are right, and do not affect the run."""

import logging
import random
import re
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

import pyrovae as pv
from tests import faulty
from tests.conftest import small_vae
from tests.watched import Copying, Recorder, assert_is, curve, events, fit, image_vae, images, messages


class Moody(pv.VAE):
    """A model whose pictures use every global generator."""

    def generate(self, n: int, *given: Tensor, mean: bool = False) -> Tensor:
        assert not self.training
        return super().generate(n, *given, mean=mean) * random.random() * float(np.random.rand())


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
    fit(vae, x, epochs=5, batch_size=5, tensorboard=tmp_path, tensorboard_every=2, clip_norm=0.01)
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
    assert float(norm) == pytest.approx(0.01, rel=1e-4)  # after clipping


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
    file.rename(
        tmp_path / f"events.out.tfevents.{int(time.time()):010d}.zzz"
    )  # the last name of this second in sorted order
    history = fit(small_vae(), x, x, epochs=3, tensorboard=tmp_path)
    assert_is(events(tmp_path), history)


def test_a_killed_run_keeps_all_points_of_its_curves(tmp_path: Path) -> None:
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


def test_a_custom_writer(tmp_path: Path, x: Tensor) -> None:
    recorder = Recorder()
    fit(small_vae(), x, epochs=3, tensorboard=recorder)
    assert recorder.steps["bound/train"] == recorder.readable == [0, 1, 2]
    with SummaryWriter(str(tmp_path)) as writer:
        history = fit(small_vae(), x, x, epochs=3, tensorboard=writer)
        writer.add_scalar("mine", 1.0, 7)  # the writer is still open
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


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # the writing thread raises it
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
    with pytest.warns(UserWarning, match="fit continues without TensorBoard") as caught:
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
    with pytest.raises(TypeError, match="tensorboard must be a folder or a SummaryWriter of torch, got True"):
        fit(vae, x, tensorboard=True)  # type: ignore[arg-type]
    with pytest.raises(OSError, match=r"file' \(.*\)\. Pass a folder that is writable"):
        fit(vae, x, tensorboard=tmp_path / "file")
    with pytest.raises(ValueError, match="tensorboard_every must be at least 1, got 0"):
        fit(vae, x, tensorboard=tmp_path, tensorboard_every=0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in vae.state_dict().items())
