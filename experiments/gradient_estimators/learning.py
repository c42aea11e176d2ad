"""Effect of the variance of a gradient estimator on learning.

The same small VAE is trained from the same weights, for the same number of steps, with each estimator of the gradient.
The reparameterized and the score-function estimator use 1, 10 and 100 draws. The closed-form KL and the score function
with Pyro's baselines use one draw. Learning rate and data are the same for all.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import matplotlib.pyplot as plt
import pandas as pd
import pyro
import tyro
from matplotlib.figure import Figure

import pyrovae as pv
from experiments import _comparison as comparison
from experiments._figures import printed
from experiments.gradient_estimators.estimators import ESTIMATORS, Estimated
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
    epochs: int = 120
    """Passes over the training data."""
    kl_warmup: int = 0
    """Epochs over which the weight of the latent sites grows to 1."""
    draws: tuple[int, ...] = (1, 10, 100)
    """Draws per gradient, L. The closed-form KL and the baselines use one draw."""
    num_samples: int = 1000
    """Draws per test datum in the evaluation."""
    out: Path = Path("results/gradient_estimators/learning")
    """Folder for tables and figures."""


def main(options: Options) -> pd.DataFrame:
    """Train with each estimator. Print and write the table and the figures."""
    splits = comparison.load(options)
    whole = len(splits.train) // options.batch_size * options.batch_size
    splits = replace(splits, train=splits.train[:whole])  # Pyro's average baseline needs batches of equal size
    cells = {
        **{f"{name}, L = {n}": (name, n) for name in ("reparameterized", "score function") for n in options.draws},
        **{name: (name, 1) for name in ("closed-form KL", "average baseline", "network baseline")},
    }
    histories, results, quoted = {}, {}, {}
    for label, (name, draws) in comparison.chosen(cells, options).items():
        vae = comparison.build(options, splits.train.shape[1:])
        objective = ESTIMATORS[name].objective(num_particles=draws, vectorize_particles=True, max_plate_nesting=1)
        with pyro.get_param_store().scope():  # Pyro keeps the averages of the baseline in the parameter store
            estimated = Estimated(vae, ESTIMATORS[name], splits.train.shape[1:])
            histories[label] = comparison.train(estimated, splits, options, objective=objective)
        results[label] = comparison.evaluate(vae, splits, options)
        quoted[label] = comparison.log_likelihood(vae, splits, options)
    table = comparison.summarize(results, histories, likelihoods=quoted)
    table.insert(4, "difference", comparison.differences(quoted))
    comparison.report(splits, table)
    both = {name: comparison.with_quoted(result, quoted[name]) for name, result in results.items()}
    comparison.write(options, table, {"learning": draw(histories)}, histories, both)
    return table


@printed
def draw(histories: dict[str, pv.History]) -> Figure:
    """Draw the ELBO of the validation data against the epoch and against the time."""
    figure, axes = plt.subplots(1, 2, figsize=(style.PAGE, 3.6), sharey=True, layout="constrained")
    finals = [history.valid[-1] for history in histories.values()]
    for i, (name, history) in enumerate(histories.items()):
        dashes = ":" if "baseline" in name else "--" if "score" in name else "-"
        for ax, along in zip(axes, (range(1, len(history.valid) + 1), history.seconds), strict=True):
            ax.plot(
                along,
                history.valid,
                color=style.color(i),
                linestyle=dashes,
                marker=style.marker(i),
                markersize=4,
                markevery=0.1,
                label=name,
            )
    margin = max(finals) - min(finals)
    axes[0].set(xlabel="epoch", ylabel="validation ELBO (nats per datum)", ylim=(min(finals) - margin, max(finals) + 1))
    axes[1].set(xlabel="seconds of training", xscale="log")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
