"""Files of tensors: contents that are refused before memory is allocated, and accepted paths."""

import hashlib
import io
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pyrovae as pv
from pyrovae import archives
from tests.conftest import small_vae


def signed(payload: bytes) -> bytes:
    """Return a file with the right checksum."""
    return b"pyrovae archive 1 %s\n%s" % (hashlib.sha256(payload).hexdigest().encode(), payload)


def saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def compressed(payload: bytes) -> bytes:
    """Return the same records, compressed."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(payload)) as source,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for record in source.infolist():
            target.writestr(record.filename, source.read(record))
    return buffer.getvalue()


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "compressed": (lambda: compressed(saved(torch.zeros(10**7))), "would occupy 40[0-9]{6} bytes in memory"),
    "compressed in part": (
        lambda: compressed(saved({"kind": "module", "tensors": {"a": torch.zeros(3), "b": torch.zeros(10**7)}})),
        "would occupy 40[0-9]{6} bytes in memory",
    ),
    "expanded": (lambda: saved(torch.zeros(1).expand(10**9)), r"shape \(1000000000,\) in only 4 bytes"),
    "expanded in two dimensions": (
        lambda: saved([torch.zeros(2, 1, dtype=torch.uint8).expand(2, 10**8)]),
        r"shape \(2, 100000000\) in only 2 bytes",
    ),
}


@pytest.mark.parametrize(("make", "message"), BOMBS.values(), ids=BOMBS)
def test_a_small_file_with_large_tensors_is_refused(make: Callable[[], bytes], message: str, tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    path.write_bytes(signed(make()))
    with pytest.raises(archives.ArchiveError, match=message):
        archives.read(path)
    with pytest.raises(ValueError, match=message):
        pv.load(path, into=small_vae())


def test_another_file_is_refused_by_its_first_line(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(2**34)  # a sparse file of 16 GiB
    tracemalloc.start()
    with pytest.raises(archives.ArchiveError, match="not written by pyrovae"):
        archives.read(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_a_check_sees_names_and_shapes_and_no_values(tmp_path: Path) -> None:
    path, seen = tmp_path / "file.pt", []
    archives.write(path, {"weight": torch.ones(3, 4), "count": 7})

    def check(content: Any) -> None:
        seen.append(content)

    assert torch.equal(archives.read(path, check)["weight"], torch.ones(3, 4))
    assert seen[0]["weight"].is_meta
    assert seen[0]["weight"].shape == (3, 4)
    assert seen[0]["count"] == 7


@pytest.mark.parametrize(
    "into",
    [pv.priors.StandardNormal(3), small_vae(latent=3), torch.nn.Linear(2, 1)],
    ids=["prior", "another VAE", "layer"],
)
def test_another_module_is_refused_before_the_tensors_are_read(
    into: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pv.save(small_vae(), tmp_path / "vae.pt")
    places: list[Any] = []
    load = torch.load

    def recorded(*args: Any, map_location: Any, **options: Any) -> Any:
        places.append(map_location)
        return load(*args, map_location=map_location, **options)

    monkeypatch.setattr(torch, "load", recorded)
    with pytest.raises(ValueError, match="built in another way"):
        pv.load(tmp_path / "vae.pt", into=into)
    assert places == ["meta"]


def test_another_run_is_refused_before_the_tensors_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(epochs: int, seed: int) -> None:
        pv.fit(small_vae(), torch.ones(4, 6), epochs=epochs, seed=seed, progress=False, checkpoint=tmp_path)

    train(2, seed=0)
    places: list[Any] = []
    load = torch.load

    def recorded(*args: Any, map_location: Any, **options: Any) -> Any:
        places.append(map_location)
        return load(*args, map_location=map_location, **options)

    monkeypatch.setattr(torch, "load", recorded)
    with pytest.raises(ValueError, match="of another run: seed is 1 here and was 0"):
        train(3, seed=1)
    assert places == ["meta", "meta"]  # of the two checkpoints


def test_numpy_scalars_are_stored_as_numbers(tmp_path: Path) -> None:
    numbers = {"a": np.float64(0.5), "b": [np.int64(3), (np.float32(2), np.bool_(True))], "c": 1}
    archives.write(tmp_path / "file.pt", numbers)
    found = archives.read(tmp_path / "file.pt")
    assert found == {"a": 0.5, "b": [3, (2.0, True)], "c": 1}
    assert [type(value) for value in (found["a"], found["b"][0], *found["b"][1])] == [float, int, float, bool]


def test_a_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    vae = small_vae()
    pv.save(vae, "~/vae.pt")
    pv.load("~/vae.pt", into=small_vae())
    pv.fit(vae, torch.ones(4, 6), epochs=1, progress=False, checkpoint="~/run")
    pv.load(Path("~/run/checkpoint-000001-000000.pt"), into=small_vae())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "vae.pt"]


@pytest.mark.parametrize("path", ["", "  "])
def test_an_empty_path_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="path is an empty path"):
        pv.save(small_vae(), path)
    with pytest.raises(ValueError, match="path is an empty path"):
        pv.load(path, into=small_vae())
    with pytest.raises(ValueError, match="checkpoint is an empty path"):
        pv.fit(small_vae(), torch.ones(4, 6), epochs=1, progress=False, checkpoint=path)


@pytest.mark.parametrize("path", [3, None, b"vae.pt"])
def test_other_objects_are_no_paths(path: Any) -> None:
    with pytest.raises(TypeError, match="path must be a path, got"):
        pv.save(small_vae(), path)
