"""Does a VAE gain from alternating steps, as in EM?

An E step of EM changes q alone, and an M step theta alone. The posterior of a VAE is an encoder. Its E step is
therefore several steps of gradient ascent on the guide with the model frozen, and its M step the reverse; neither is
exact. The same network is trained from the same weights and on the same batches, jointly and with turns of 1, 10, 100
and more steps. A joint step changes all parameters, but a step of a turn only one half of them. Joint training is
therefore shown twice: with as many steps, and with half as many, which gives each parameter as many updates as the
turns do.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib.pyplot as plt
import pandas as pd
import torch
import tyro
import xarray as xr
from matplotlib.figure import Figure
from torch import Tensor
from tqdm.auto import tqdm

import pyrovae as pv
from experiments import _comparison as comparison
from experiments._comparison import cell
from experiments._figures import printed
from pyrovae.plots import style


@dataclass
class Options(comparison.Options):
    """Options of the experiment."""

    data: Literal["digits", "mnist5k", "mnist", "fashion_mnist"] = "digits"
    """Data set; ``mnist5k`` and ``digits`` need no download."""
    latent: int = 10
    """Number of latent dimensions."""
    hidden: tuple[int, ...] = (100,)
    """Widths of the hidden layers, in the order from data to latents."""
    turns: tuple[int, ...] = (1, 10, 100, 500)
    """Numbers of steps of a turn."""
    steps: int = 2000
    """Total number of steps of the optimizer."""
    runs: int = 2
    """Number of runs of each schedule, from different initial weights."""
    record: int = 100
    """Number of steps between two measurements on the validation data."""
    learning_rate: float = 2e-3
    """Learning rate of Adam."""
    num_samples: int = 1000
    """Draws per test datum in the evaluation."""
    out: Path = Path("results/em/alternating")
    """Folder for tables and figures."""


class Schedule(NamedTuple):
    """Programs that train in turns, the steps of a turn, and the total number of steps."""

    turns: Sequence[str]
    length: int
    steps: int


def schedules(options: Options) -> dict[str, Schedule]:
    """Return the schedules of joint training and of turns, by name."""
    joint = {"joint": options.steps, "joint, half the steps": options.steps // 2}
    return {
        **{name: Schedule(("all",), options.record, steps) for name, steps in joint.items()},
        **{f"turns of {n}": Schedule(("guide", "model"), n, options.steps) for n in options.turns},
    }


class Turn:
    """One part of a VAE, with an optimizer whose moments persist from turn to turn."""

    def __init__(self, vae: pv.VAE, part: str, learning_rate: float) -> None:
        self.vae, self.moving = vae, vae if part == "all" else getattr(vae, part)
        self.optimizer = torch.optim.Adam(self.moving.parameters(), lr=learning_rate, fused=True)

    def fit(self, x: Tensor, options: Options, transform: Any) -> None:
        """Make one step for each batch, with all other parameters frozen."""
        self.vae.requires_grad_(False)
        self.moving.requires_grad_(True)
        pv.fit(
            self.vae,
            x,
            epochs=1,
            batch_size=options.batch_size,
            optimizer=self._kept,
            transform=transform,
            device=options.device,
            progress=False,
        )

    def _kept(self, *_: Any, **__: Any) -> torch.optim.Optimizer:
        return self.optimizer


def batches(train: Tensor, size: int) -> Iterator[Tensor]:
    """Yield the data of batches without end. Each pass holds each datum once, and leftovers start the next batch."""
    rest = train[:0]
    while True:
        rest = torch.cat([rest, train[torch.randperm(len(train))]])
        while len(rest) >= size:
            yield rest[:size]
            rest = rest[size:]


def main(options: Options) -> pd.DataFrame:
    """Train with all schedules. Print and write the table and the figure."""
    splits = comparison.load(options)
    curves: dict[str, pd.DataFrame] = {}
    results: dict[str, xr.Dataset] = {}
    for name, schedule in comparison.chosen(schedules(options), options).items():
        runs = []
        for run in tqdm(range(options.runs), desc=name, disable=None):
            own = replace(options, seed=options.seed + run)
            vae = comparison.build(own, splits.train.shape[1:])
            curve = train(vae, splits, schedule, own)
            curves.setdefault(name, curve)
            runs.append(comparison.evaluate(vae, splits, options))
        results[name] = average(runs)
    table = summarize(results)
    comparison.report(splits, table)
    record = pd.concat(curves, names=["schedule", "record"]).reset_index()
    comparison.write(options, table, {"alternating": draw(curves, options)}, results=results)
    record.to_csv(options.out / "curves.csv", index=False)
    return table


def train(vae: pv.VAE, splits: pv.data.Splits, schedule: Schedule, options: Options) -> pd.DataFrame:
    """Train with a schedule, and return bounds on the validation data by the step of their measurement."""
    parts = [Turn(vae, part, options.learning_rate) for part in schedule.turns]
    stream, records = batches(splits.train, options.batch_size), []
    for turn in range(schedule.steps // schedule.length):
        x = torch.cat([next(stream) for _ in range(schedule.length)])
        parts[turn % len(parts)].fit(x, options, splits.transform)
        done = (turn + 1) * schedule.length
        if done % max(options.record, schedule.length) == 0:
            bounds = pv.evaluation.evaluate(vae.model, vae.guide, splits.valid, 100, seed=options.seed, progress=False)
            records.append(
                {"step": done, "ELBO": float(bounds.elbo.mean()), "IWAE": float(bounds.log_likelihood.mean())}
            )
    vae.requires_grad_(True)
    return pd.DataFrame(records)


def average(runs: Sequence[xr.Dataset]) -> xr.Dataset:
    """Return the mean over runs for each datum. ``run_means`` holds the mean over the data for each run."""
    every = xr.concat(runs, "run", combine_attrs="drop_conflicts")
    result = every[["elbo", "log_likelihood"]].mean("run", keep_attrs=True)
    for error in ("elbo_mcse", "mcse"):
        result[error] = (every[error] ** 2).sum("run") ** 0.5 / len(runs)
    return result.assign(run_means=every.log_likelihood.mean("datum"))


def summarize(results: Mapping[str, xr.Dataset]) -> pd.DataFrame:
    """Return one row for each schedule: bounds, and the difference from the first, paired over data and runs."""
    compared = pv.evaluation.compare(results)
    first = next(iter(results.values()))
    rows = {}
    for name, result in results.items():
        gaps = result.log_likelihood - result.elbo
        difference = compared.loc[name, ["difference", "difference_error", "difference_mcse"]]
        of_runs = (result.run_means - first.run_means).values
        rows[name] = {
            "ELBO": cell(result.elbo, result.elbo_mcse),
            "log p(x)": cell(result.log_likelihood, result.mcse),
            "gap": f"{float(gaps.mean()):.2f}",
            "difference": "" if result is first else "{:.2f} ± {:.2f} ({:.2f})".format(*difference),
            "of the runs": "" if result is first else ", ".join(f"{value:.2f}" for value in of_runs),
        }
    return pd.DataFrame(rows).T


@printed
def draw(curves: Mapping[str, pd.DataFrame], options: Options) -> Figure:
    """Draw the ELBO of the validation data by schedule, and the half-steps of one schedule."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(style.PAGE, 3.2), layout="constrained")
    for i, (name, curve) in enumerate(curves.items()):
        dashes = ":" if "half" in name else "-"
        left.plot(
            curve.step,
            curve.ELBO,
            color=style.color(i),
            linestyle=dashes,
            marker=style.marker(i),
            markersize=4,
            markevery=max(1, len(curve) // 7),
            label=name,
        )
    best = max(curve.ELBO.max() for curve in curves.values())
    middle = max(curve.ELBO[len(curve) // 4] for curve in curves.values())
    left.set(xlabel="step", ylabel="ELBO (nats per datum)", ylim=(best - 3 * (best - middle), best + 0.5))
    style.legend_above(left)
    by_turns = [name for name in curves if name.startswith("turns")]
    shown = curves[min(by_turns, key=lambda name: abs(int(name.split()[-1]) - options.record))] if by_turns else None
    if shown is not None:
        for turn in shown.step[::2]:
            right.axvspan(turn - shown.step[0], turn, color="0.93", linewidth=0)
        right.fill_between(
            shown.step, shown.ELBO, shown.IWAE, color=style.color(1), alpha=0.4, linewidth=0, label="gap"
        )
        right.plot(shown.step, shown.IWAE, color="black", marker="_", label="log $p(x)$, IWAE$_{100}$")
        right.plot(shown.step, shown.ELBO, color=style.color(0), marker=".", label="ELBO")
        right.set_ylim(shown.ELBO[len(shown) // 4 :].min() - 0.5, shown.IWAE.max() + 0.5)  # leaves out the first turns
        style.legend_above(right)
    right.set(xlabel=f"step, in turns of {options.record}:\nencoder (grey), decoder (white)", ylabel="nats per datum")
    return figure


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
