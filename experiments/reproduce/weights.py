"""Weights of the rows that were run: functions that pack them into an archive, and that load a row from a folder.

The archive is not part of the repository. ``python -m experiments.reproduce.weights`` packs the weights in the folder
of checkpoints together with the committed results. :func:`load` reads from the folder of the unpacked archive:

    <folder>/<paper>/<row>.pt, .json                 a row of a table
    <folder>/<part>/<paper>/<row>.pt, .json          the same row, run again with another seed or schedule
    <folder>/SHA256SUMS                              digests of all files, for sha256sum --check
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import torch
import tyro

import pyrovae as pv
from experiments.reproduce import vampprior
from experiments.reproduce.papers import MAIN, PAPERS, PARTS, paper_of
from experiments.reproduce.rows import digest, slug

EVENT_SHAPE = (28, 28)  # shape of a digit


@dataclass
class Options:
    """Options of the archive."""

    archive: Path = Path("dist/pyrovae-weights.zip")
    """File of the archive."""
    out: Path = Path("docs/reproduction")
    """Folder of the committed results of the rows."""
    checkpoints: Path = Path("results/reproduce")
    """Folder of checkpoints and weights."""


def main(options: Options) -> Path:
    """Pack the weights of all rows that were run, and print the rows without weights.

    Raises:
        ValueError: If :func:`pack` raises it.
    """
    packed, missing = pack(options.archive, out=options.out, checkpoints=options.checkpoints)
    print(f"{options.archive}: {len(packed)} rows")
    for name in packed:
        print(f"  {name}")
    for name in missing:
        print(f"  left out, because its weights are not in {options.checkpoints}: {name}")
    return options.archive


def pack(archive: Path, *, out: Path, checkpoints: Path) -> tuple[list[str], list[str]]:
    """Write one archive with the weights and the results of all rows that were run.

    The same files give the same archive, byte for byte.

    Args:
        archive: Path of the archive. An interrupted call leaves no partial file.
        out: Folder of the results of the rows.
        checkpoints: Folder of their weights.

    Returns:
        Names of the rows in the archive, and of the rows that were run but have no weights.

    Raises:
        ValueError: If no row has weights, or if the results were computed from other weights.
    """
    files: dict[str, bytes] = {}
    packed, missing = [], []
    for part, paper, row in _run(out):
        result = out / part / paper / f"{slug(row)}.json"
        weights = checkpoints / part / paper / slug(row) / "weights.pt"
        name = f"{row} ({PARTS[part]})" if PARTS[part] else row
        if not weights.exists():
            missing.append(name)
            continue
        if digest(weights) != json.loads(result.read_text()).get("weights", digest(weights)):
            raise ValueError(f"{result} was computed from other weights than {weights}. Evaluate these weights again.")
        stem = (Path(part) / paper / slug(row)).as_posix()
        files |= {f"{stem}.json": result.read_bytes(), f"{stem}.pt": weights.read_bytes()}
        packed.append(name)
    if not packed:
        raise ValueError(f"No row under {out} has weights under {checkpoints}. Run a row first.")
    sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items())
    archive.parent.mkdir(parents=True, exist_ok=True)
    unfinished = archive.with_name(f"{archive.name}.unfinished")
    with ZipFile(unfinished, "w") as zipped:
        for name, content in {**files, "SHA256SUMS": sums.encode()}.items():
            zipped.writestr(ZipInfo(name), content, compress_type=ZIP_DEFLATED)  # the date is the same in every archive
    unfinished.replace(archive)
    return packed, missing


def load(row: str, folder: str | Path, *, part: str = MAIN) -> Any:
    """Return the trained VAE of a row, in evaluation mode, from a local folder.

    Args:
        row: Name of the row, such as ``"1 layer, IWAE, k = 5"``.
        folder: An unpacked archive of :func:`pack`.
        part: Key of ``papers.PARTS`` that states the seed or schedule: ``"."`` for the row of the table, or
            ``"paper_schedule"``, ``"seed_1"``, ``"seed_2"``.

    Returns:
        A module with ``model`` and ``guide`` for data of shape ``(N, 28, 28)``.

    Raises:
        ValueError: If the row or the part is unknown, or the file belongs to another module.
        OSError: If the folder has no weights of the row.

    Example:
        >>> import pathlib, tempfile, torch, pyrovae as pv
        >>> from experiments.reproduce import iwae, weights
        >>> folder, row = pathlib.Path(tempfile.mkdtemp()), "1 layer, VAE, k = 1"
        >>> (folder / "iwae").mkdir()
        >>> pv.save(iwae.ROWS[row].build(torch.zeros(1, 28, 28)), folder / "iwae" / "1_layer-vae-k_1.pt")
        >>> weights.load(row, folder).generate(2).shape
        torch.Size([2, 28, 28])
    """
    paper = paper_of(row)
    if part not in PARTS:
        raise ValueError(f"{part!r} is not a part. Choose from {list(PARTS)}.")
    with torch.random.fork_rng(devices=[]):
        untrained = PAPERS[paper][row].build(torch.zeros(vampprior.COMPONENTS, *EVENT_SHAPE))
    return pv.load(Path(folder) / part / paper / f"{slug(row)}.pt", into=untrained).eval()


def _run(out: Path) -> Iterator[tuple[str, str, str]]:
    """Yield part, paper and name of the rows that were run."""
    for part in PARTS:
        for paper, rows in PAPERS.items():
            for row in rows:
                if (out / part / paper / f"{slug(row)}.json").exists():
                    yield part, paper, row


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
