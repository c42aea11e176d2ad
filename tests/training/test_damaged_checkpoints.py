"""Damaged checkpoints are refused, and the last good one is used."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import pyrovae as pv
from pyrovae import archives
from tests.conftest import small_vae
from tests.training.continuation import assert_same, fitted, newest
from tests.training.damaged import flip, malicious

pytestmark = [  # runs in several parts give these warnings
    pytest.mark.filterwarnings("ignore:the KL warm-up does not end within"),
    pytest.mark.filterwarnings("ignore:OneCycleLR has total_steps=20, but one step per epoch"),
]


def of_another_architecture(folder: Path) -> bytes:
    fitted(partial(small_vae, latent=3), 1, folder / "another", 0)
    return (folder / "another" / "checkpoint-000001-000000.pt").read_bytes()


DAMAGES: dict[str, tuple[Callable[[bytes, Path], bytes], str]] = {
    "empty": (lambda content, _: b"", "not written by pyrovae"),
    "cut off": (lambda content, _: content[: len(content) // 2], "cut off or damaged"),
    "cut off in the first line": (lambda content, _: content[:30], "cut off or damaged"),
    "torn": (lambda content, _: content[:2000] + bytes(len(content) - 2000), "cut off or damaged"),
    "appended": (lambda content, _: content + b"\0", "cut off or damaged"),
    **{f"flipped at {at}": (lambda content, _, at=at: flip(content, at), "damage") for at in (0, 0.1, 0.5, 0.9, 1)},
    "checksum flipped": (lambda content, _: flip(content, 40 / (len(content) - 1)), "cut off or damaged"),
    "another format": (
        lambda content, _: content.replace(b"archive 1", b"archive 2", 1),
        "has format '2', but this",
    ),
    "a pickle": (lambda content, _: b"\x80\x04N.", "not written by pyrovae"),
    "malicious": (lambda content, folder: malicious(folder / "run by it"), "objects other than tensors and plain"),
    "another architecture": (
        lambda content, folder: of_another_architecture(folder),
        r"of another run: module tensors model.likelihood.network.0.weight is .*\(8, 2\)' here and was .*\(8, 3\)",
    ),
    "incomplete": (lambda content, folder: without_an_entry(content, folder), "the entry 'generators' is missing"),
    "a module": (lambda content, folder: saved_module(folder), "is not a checkpoint of a run"),
}


def without_an_entry(content: bytes, folder: Path) -> bytes:
    path = folder / "copy.pt"
    path.write_bytes(content)
    kept = archives.read(path)
    del kept["state"]["generators"]
    archives.write(path, kept)
    return path.read_bytes()


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


def test_without_a_valid_checkpoint_no_run_starts_again(tmp_path: Path) -> None:
    fitted(small_vae, 4, tmp_path, 0)
    for path in tmp_path.glob("*.pt"):
        path.write_bytes(flip(path.read_bytes(), 0.5))
    with pytest.raises(ValueError, match=r"000004-000000.pt' is cut off or damaged: .*000003-000000.pt' is cut off"):
        fitted(small_vae, 6, tmp_path, 0)
    assert len(list(tmp_path.glob("*.pt"))) == 2
