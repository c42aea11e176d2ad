"""Growth of the cost of a training step with the batch, the latent space, the draws per datum, or the data.

The race of :mod:`experiments.benchmarks.training` is run at several values of one quantity, with all others fixed. If
the time of a step does not grow with the quantity, arithmetic is not what limits it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import matplotlib.pyplot as plt
import pandas as pd
import tyro
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from experiments.benchmarks import training
from pyrovae.plots import style

QUANTITIES = {
    "batch_size": ("data per step", (10, 30, 100, 300, 1000)),
    "latent": ("latent dimensions", (2, 10, 50, 250)),
    "k": ("draws per datum", (1, 3, 10, 30)),
    "num_data": ("data per epoch", (500, 5000, 50000)),
}
STEPS = 20  # steps per epoch if the batch size grows


@dataclass
class Options(training.Options):
    """Options of the benchmark."""

    quantity: Literal["batch_size", "latent", "k", "num_data"] = "batch_size"
    """Quantity that grows. The number of data grows with the batch size, so that all epochs have the same steps."""
    num_data: int = 5000
    """Data per epoch. All of them are trained on at every value."""
    values: tuple[int, ...] = ()
    """Values of the quantity [default: three to five for each quantity]."""
    contenders: tuple[str, ...] = ("Pyro", "PyTorch", "pyrovae", "pyrovae, compiled")
    """Names of the contenders."""
    rounds: int = 5
    """Number of rounds at each value, after one warm-up round."""


def main(options: Options) -> pd.DataFrame:
    """Run the race at each value. Print and write the table and the figure."""
    label, values = QUANTITIES[options.quantity]
    races, times = {}, {}
    for value in options.values or values:
        sizes = sized(options, value)
        races[value] = training.compete(sizes, options.contenders, options.rounds)
        times[value] = races[value].table("Pyro", sizes.steps)
    rows = {value: dict(zip(time.index, training.spreads(time, "ms"), strict=True)) for value, time in times.items()}
    table = pd.DataFrame(rows).T.rename_axis(label)
    print(f"\nms per step on {options.device}: median [quartiles] of {options.rounds} rounds\n")
    print(table.to_string())
    name = f"growth_{options.quantity}"
    training.write(options, name, table, races)
    figure = draw(times, label)
    figure.savefig(options.out / f"{name}.png", dpi=200, bbox_inches="tight")
    plt.close(figure)
    return table


def sized(options: Options, value: int) -> Options:
    """Return the options with the growing quantity set to a value."""
    sizes: dict[str, Any] = {options.quantity: value}
    if options.quantity == "batch_size":
        sizes["num_data"] = STEPS * value
    return replace(options, **sizes)


def draw(times: Mapping[int, pd.DataFrame], label: str) -> Figure:
    """Draw milliseconds per step against the growing quantity, with the quartiles as error bars."""
    figure, ax = plt.subplots(figsize=(5.5, 3.8), layout="constrained")
    all_times = pd.concat(times, names=["value", "contender"])
    for i, (name, group) in enumerate(all_times.groupby("contender", sort=False)):
        spread = (group.ms - group.ms_low, group.ms_high - group.ms)
        values = group.index.get_level_values("value")
        ax.errorbar(
            values, group.ms, spread, label=name, color=style.color(i), marker=style.marker(i), markersize=4, capsize=3
        )
    ax.set(xscale="log", yscale="log", xlabel=label, ylabel="milliseconds per step")
    ax.set_xticks(list(times), [f"{value:,}" for value in times])
    ax.minorticks_off()
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.legend(frameon=False)
    return figure


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
