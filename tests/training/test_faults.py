"""Injected faults: killed processes, signals, full disks, and folders that cannot be written to."""

import errno
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae import archives
from tests import faulty
from tests.faulty import data, newest

EPOCHS = 80

Record = Callable[[str, object], None]


def kill_until_it_ends(folder: Path, kills: int, chance: random.Random, **options: Any) -> Counter[str]:
    """Kill one run repeatedly, during steps and writes in turn, then let it end."""
    found: Counter[str] = Counter()
    while found["killed"] < kills:
        slow = found["killed"] % 2 == 1
        process, told = faulty.start(folder, EPOCHS, slow=slow, **options)
        told.recv()
        known = newest(folder)
        if slow:
            phase = faulty.wait_amid_writing(told, chance)
        else:
            wait_for(folder, known[0] + chance.randrange(9))
            time.sleep(chance.uniform(0, 0.03))
            phase = "anywhere"
        process.kill()
        process.join()
        if phase is None or process.exitcode != -signal.SIGKILL:
            raise AssertionError("the run ended before it was killed; make it longer")
        found["killed"] += 1
        found[f"amid {phase}"] += 1
        found["resumed"] += known > (0, 0)
        assert newest(folder) >= known  # an earlier checkpoint is never lost
        for path in folder.glob("checkpoint-*.pt"):
            archives.read(path)  # all that has a name is whole
    process, _ = faulty.start(folder, EPOCHS, **options)
    process.join()
    assert process.exitcode == 0
    return found


def differing(folder: Path, expected: tuple[dict[str, Tensor], pv.History]) -> int:
    """Return the number of tensors that differ from the expected run. The histories must be equal."""
    state, history = expected
    found = archives.read(folder / "result")
    for column in ("train", "valid", "kl_weight", "learning_rate", "best_epoch", "skipped"):
        assert found["history"][column] == getattr(history, column), column
    assert found["state"].keys() == state.keys()
    return sum(not torch.equal(found["state"][name], tensor) for name, tensor in state.items())


def kill_runs(folder: Path, runs: int, kills: int, seed: int, record: Record, **options: Any) -> None:
    expected = uninterrupted(folder / "whole", EPOCHS, **options)
    found, differences = Counter[str](), 0
    for i in range(runs):
        place = folder / str(i)
        found += kill_until_it_ends(place, kills, random.Random(seed + i), **options)
        differences += differing(place, expected)
        assert not list(place.glob(".*"))  # nothing half written is left
    phases = ", ".join(f"{count} {phase}" for phase, count in sorted(found.items()) if phase.startswith("amid"))
    record(
        "printed",
        f"killed {found['killed']} times ({phases}), {found['resumed']} resumed from a checkpoint, "
        f"{differences} differing parameters",
    )
    assert differences == 0
    assert found["killed"] == runs * kills


def test_a_killed_run_is_resumed_to_the_same_parameters(tmp_path: Path, record_property: Record) -> None:
    kill_runs(tmp_path, runs=1, kills=4, seed=0, record=record_property)


@pytest.mark.slow
def test_many_killed_runs(tmp_path: Path, record_property: Record) -> None:
    kill_runs(tmp_path, runs=5, kills=8, seed=100, record=record_property)


@pytest.mark.slow
def test_killed_runs_that_are_compiled(tmp_path: Path, record_property: Record) -> None:
    kill_runs(tmp_path, runs=1, kills=4, seed=200, record=record_property, compile=True)


def wait_for(folder: Path, epoch: int) -> None:
    while newest(folder) < (epoch, 0):
        time.sleep(0.005)


def uninterrupted(folder: Path, epochs: int, **options: Any) -> tuple[dict[str, Tensor], pv.History]:
    process, _ = faulty.start(folder, epochs, **options)
    process.join()
    found = archives.read(folder / "result")
    return found["state"], pv.History(**found["history"])


def test_a_sigterm_saves_and_ends_the_process(tmp_path: Path) -> None:
    process, _ = faulty.start(tmp_path / "run", 30)
    wait_for(tmp_path / "run", 2)
    process.terminate()
    process.join()
    assert process.exitcode == -signal.SIGTERM  # the exit code of any program
    assert not (tmp_path / "run" / "result").exists()
    process, _ = faulty.start(tmp_path / "run", 30)
    process.join()
    assert differing(tmp_path / "run", uninterrupted(tmp_path / "whole", 30)) == 0


def test_ctrl_c_saves_and_ends_training_but_not_the_script(tmp_path: Path) -> None:
    process, _ = faulty.start(tmp_path / "run", 30)
    wait_for(tmp_path / "run", 2)
    os.kill(process.pid, signal.SIGINT)
    process.join()
    history = archives.read(tmp_path / "run" / "result")["history"]
    assert history["interrupted"]
    assert len(history["train"]) == newest(tmp_path / "run")[0] < 30
    process, _ = faulty.start(tmp_path / "run", 30)
    process.join()
    assert not archives.read(tmp_path / "run" / "result")["history"]["interrupted"]
    assert differing(tmp_path / "run", uninterrupted(tmp_path / "whole", 30)) == 0


class Breaking:
    """A binarization that causes a fault at a call. Calls before the training are not counted."""

    def __init__(self, at: int, how: Any = None) -> None:
        self.left, self.how = at, how

    def __call__(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.left -= 1
            if self.left == 0:
                self.how()
        return pv.data.binarize(x)


STEPS = 4  # steps per epoch


def check_that_a_broken_disk_costs_nothing(folder: Path, breaking: Any, mend: Any, reason: str) -> None:
    """Check that a run survives a fault in its third epoch, at whose end a checkpoint is due."""
    expected = faulty.train(None, 5, transform=Breaking(-1))
    with pytest.raises(pv.CheckpointError, match=f"checkpoint-000003-000000.pt' cannot be written .*{reason}") as error:
        faulty.train(folder, 5, transform=Breaking(2 * STEPS + 1, breaking))
    assert len(error.value.history.train) == 3
    assert error.value.history.train == expected[1].train[:3]
    assert "checkpoint-000002-000000.pt is complete" in str(error.value)
    mend()
    assert sorted(path.name for path in folder.iterdir() if "checkpoint" in path.name) == [
        "checkpoint-000001-000000.pt",
        "checkpoint-000002-000000.pt",
    ]
    state, history = faulty.train(folder, 5, transform=Breaking(-1))
    assert history.train == expected[1].train
    assert all(torch.equal(state[name], tensor) for name, tensor in expected[0].items())


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EIO], ids=errno.errorcode.get)
def test_a_write_that_fails_leaves_the_state_in_memory_and_the_previous_checkpoint_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        check_that_a_broken_disk_costs_nothing(
            tmp_path, lambda: patch.setattr(os, call, fail), patch.undo, os.strerror(number)
        )


def test_a_full_disk(small_disk: Path) -> None:
    ballast = small_disk / "ballast"

    def fill() -> None:
        with ballast.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))

    check_that_a_broken_disk_costs_nothing(small_disk / "run", fill, ballast.unlink, "No space left on device")


def test_a_disk_that_can_no_longer_be_written_to(small_disk: Path) -> None:
    def remount(mode: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{mode}", str(small_disk)], check=True)

    check_that_a_broken_disk_costs_nothing(
        small_disk / "run", lambda: remount("ro"), lambda: remount("rw"), "Read-only file system"
    )


@pytest.mark.filterwarnings("ignore:the KL warm-up does not end")
@pytest.mark.parametrize("epochs", [3, 6])
def test_a_damaged_checkpoint_on_a_read_only_disk(epochs: int, small_disk: Path) -> None:
    """The older checkpoint is used. A run without further writes ends, and another one names the problem."""
    folder = small_disk / "run"
    faulty.train(folder, 4)
    newest_one = folder / "checkpoint-000004-000000.pt"
    newest_one.write_bytes(newest_one.read_bytes()[:-100])
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    expected = (
        nullcontext() if epochs == 3 else pytest.raises(pv.CheckpointError, match=r"Read-only.*000003.* is complete")
    )
    with (
        pytest.warns(UserWarning, match=r"000004.* is cut off .* continues from 'checkpoint-000003-000000.pt'"),
        expected,
    ):
        assert len(faulty.train(folder, epochs)[1].train) == 3
    assert newest_one.exists()


def test_the_module_has_its_weights_where_no_checkpoint_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The module has the weights with which a run of as many epochs would end."""

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    x = data()[0].round()
    options: dict[str, Any] = {"batch_size": 11, "learning_rate": 0.1, "seed": 3, "progress": False}
    vaes = []
    for epochs in (7, 3):
        pyro.set_rng_seed(0)
        vaes.append(faulty.regularized_vae())
        options["transform"] = Breaking(
            2 * STEPS + 1 if epochs == 7 else -1, partial(monkeypatch.setattr, os, "fsync", fail)
        )
        with pytest.raises(pv.CheckpointError) if epochs == 7 else nullcontext():
            pv.fit(vaes[-1], x, 1 - x, epochs=epochs, checkpoint=tmp_path if epochs == 7 else None, **options)
    state, expected = (vae.state_dict() for vae in vaes)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())


def test_an_invalid_folder_is_an_error_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    steps: list[int] = []
    with pytest.raises(pv.CheckpointError, match=r"folder .*file/run.* cannot hold checkpoints .*that is writable"):
        faulty.train(tmp_path / "file" / "run", 5, transform=Breaking(1, lambda: steps.append(1)))
    assert not steps
