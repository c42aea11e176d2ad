"""Error of the standard protocol, and the rankings of models that it changes.

The field reports negative log-likelihoods (NLL) by importance sampling with 5,000 draws from the encoder. By Jensen's
inequality this estimate overstates the NLL, and the poorer the encoder is as a proposal, the more. The quality of the
proposal differs between models with different priors, posteriors and objectives. This experiment trains such models on
the same data and estimates the NLL of the same test data in three ways: by 1, 50, 5,000 and 65,536 encoder draws, by
``pyrovae.evaluation.log_likelihood``, and, for a few data, by long annealed importance sampling.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import tyro
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from pyro.infer import ELBO
from torch import Tensor, nn

import pyrovae as pv
from experiments import _comparison as comparison
from experiments._comparison import cell, mlp
from experiments._figures import figure_of
from pyrovae.plots import style

QUOTED, ANNEALED = "log p(x)", "annealing"


@dataclass
class Options(comparison.Options):
    """Options of the experiment."""

    data: comparison.DataSet = "static_mnist"
    """Data set; ``mnist5k`` and ``digits`` need no download."""
    latent: int = 40
    """Number of latent dimensions."""
    epochs: int = 20
    """Passes over the training data."""
    kl_warmup: int = 5
    """Epochs over which the weight of the latent sites grows to 1."""
    components: int = 100
    """Number of pseudo-inputs of the VampPriors."""
    context: int = 64
    """Number of features of x that condition the flow."""
    test_size: int | None = 200
    """Number of test data to evaluate, drawn at random."""
    draws: tuple[int, ...] = (1, 50, 5000, 65536)
    """Numbers of encoder draws."""
    num_reference: int = 16
    """Number of test data, from the first on, with an annealed reference."""
    num_chains: int = 64
    """Number of annealing chains."""
    num_temperatures: int = 120
    """Number of intermediate densities between guide and posterior in annealing."""
    compile: bool = True
    """Compile training and the evaluation by encoder draws."""
    out: Path = Path("results/published_protocol")
    """Folder for weights, tables and figures."""


@dataclass
class Model:
    """A model of the comparison.

    Attributes:
        build: Function that builds the module.
        objective: Training objective; by default the ELBO.
        from_prior: Whether annealing starts from the prior, because the guide evaluates its density slowly.
    """

    build: Callable[[], nn.Module]
    objective: ELBO | None = None
    from_prior: bool = False


def main(options: Options) -> pd.DataFrame:
    """Train and evaluate the models. Print and write the table and the figures."""
    splits = comparison.load(options)
    histories, results = {}, {}
    for name, model in comparison.chosen(models(splits, options), options).items():
        pyro.set_rng_seed(options.seed)
        vae = model.build()
        histories[name] = comparison.train(
            vae, splits, options, objective=model.objective, checkpoint=options.out / "training" / name
        )
        results[name] = estimate(vae, model, splits, options, options.out / "estimates" / name)
        means = {key: round(float(found.log_likelihood.mean()), 3) for key, found in results[name].items()}
        print(f"{name}: {means}", flush=True)
    table = tabulate(results, options)
    comparison.report(splits, table)
    changes = rank_changes(results)
    print("\npairs that encoder draws order differently than log p(x) does, differences of log p(x) in nats:\n")
    print(changes.to_string() if len(changes) else "none")
    figures = {"bias": draw_bias(results), "differences": draw_differences(results)}
    comparison.write(options, table, figures, histories, {name: found[QUOTED] for name, found in results.items()})
    (options.out / "rank_changes.json").write_text(json.dumps({"table": changes.to_dict("index")}, indent=2))
    return table


def models(splits: pv.data.Splits, options: Options) -> dict[str, Model]:
    """Return the models. The first is the base, and each of the others differs from it in one component."""
    latent, event_shape = options.latent, splits.train.shape[1:]

    def likelihood() -> nn.Module:
        return pv.likelihoods.Bernoulli(mlp(latent, *options.hidden[::-1], event_shape))

    def encoder(width: int) -> nn.Module:
        return mlp(event_shape, *options.hidden, width)

    def vae(prior: Callable[[], nn.Module] | None = None, posterior: Callable[[], nn.Module] | None = None) -> pv.VAE:
        return pv.VAE(
            likelihood=likelihood(),
            posterior=(posterior or (lambda: pv.posteriors.DiagonalNormal(encoder(2 * latent))))(),
            prior=(prior or (lambda: pv.priors.StandardNormal(latent)))(),
        )

    def full() -> nn.Module:
        return pv.posteriors.MultivariateNormal(encoder(latent * (latent + 3) // 2))

    def autoregressive() -> nn.Module:
        width = 2 * latent + options.context
        return pv.posteriors.InverseAutoregressiveFlow(encoder(width), latent, context=options.context, hidden=(320,))

    return {
        "base": Model(vae),
        "VampPrior": Model(lambda: vae(lambda: pv.priors.VampPrior(options.components, data=splits.train))),
        "flow prior": Model(lambda: vae(lambda: pv.priors.NormalizingFlow(latent, pv.flows.coupling(latent)))),
        "full covariance": Model(lambda: vae(posterior=full)),
        "autoregressive posterior": Model(lambda: vae(posterior=autoregressive), from_prior=True),
        "IWAE, k = 5": Model(vae, objective=pv.objectives.IWAE(5)),
        "two layers, VampPrior": Model(lambda: two_layers(splits.train, options)),
    }


def two_layers(train: Tensor, options: Options) -> nn.Module:
    """Return a model of two latent layers, each with half the latent dimensions, and a VampPrior on the upper layer."""
    half, event, normal, joint = options.latent // 2, train.shape[1:], pv.posteriors.DiagonalNormal, pv.networks.Joint
    narrow = joint(mlp(event.numel() + half, *options.hidden, 2 * half), event_dims=(len(event), 1))
    return pv.HierarchicalVAE(
        likelihood=pv.likelihoods.Bernoulli(joint(mlp(2 * half, *options.hidden[::-1], event), event_dims=(1, 1))),
        posteriors=(normal(narrow), normal(mlp(event, *options.hidden, 2 * half))),
        priors=(normal(mlp(half, *options.hidden, 2 * half)), pv.priors.VampPrior(options.components, data=train)),
        inference="top-down",
        skip=True,
    )


def estimate(vae: Any, model: Model, splits: pv.data.Splits, options: Options, folder: Path) -> dict[str, xr.Dataset]:
    """Estimate log p(x) of the test data in all ways. An interrupted estimate resumes from the folder."""
    test = splits.test.to(next(vae.parameters()).device)
    shared: Any = {"seed": options.seed, "binarization": splits.binarization}
    found = {
        draws_label(count): pv.evaluation.evaluate(
            vae.model,
            vae.guide,
            test,
            count,
            compile=options.compile and count > 50,
            checkpoint=folder / str(count),
            **shared,
        )
        for count in options.draws
    }
    found[QUOTED] = pv.evaluation.log_likelihood(vae.model, vae.guide, test, checkpoint=folder / "quoted", **shared)
    if options.num_reference:
        guide = prior_of(vae) if model.from_prior else vae.guide
        found[ANNEALED] = pv.evaluation.ais(
            vae.model,
            guide,
            test[: options.num_reference],
            options.num_chains,
            num_temperatures=options.num_temperatures * (10 if model.from_prior else 1),
            checkpoint=folder / "annealed",
            **shared,
        )
    return found


def prior_of(vae: Any) -> Callable[..., Any]:
    """Return the model without its observations, as a guide that draws from the prior."""
    program: Callable[..., Any] = pyro.poutine.block(vae.model, hide_fn=lambda site: site["is_observed"])
    return program


def draws_label(count: int) -> str:
    """Return the name of the estimate by ``count`` encoder draws."""
    return f"{count:,} draw{'s' * (count > 1)}"


def tabulate(results: Mapping[str, dict[str, xr.Dataset]], options: Options) -> pd.DataFrame:
    """Return the NLL of each model under each estimate, and the error of the published protocol, nats."""
    rows = {}
    for name, found in results.items():
        quoted, published = found[QUOTED], found[draws_label(options.draws[-2])]
        rows[name] = {
            **{key: cell(-found[key].log_likelihood, None) for key in map(draws_label, options.draws)},
            QUOTED: cell(-quoted.log_likelihood, quoted.mcse if float(quoted.reliable.mean()) >= 0.99 else None),
            "reliable": f"{float(quoted.reliable.mean()):.1%}",
            "evaluations": f"{float(quoted.evaluations.mean()):,.0f}",
            "overstated by": cell(quoted.log_likelihood - published.log_likelihood, None),
            "k-hat > 0.7": f"{float((published.pareto_k > 0.7).mean()):.0%}",
        }
        if ANNEALED in found:
            annealed = found[ANNEALED].log_likelihood
            same = quoted.log_likelihood[: len(annealed)]
            rows[name] |= {f"{QUOTED} - {ANNEALED}": cell(same - annealed, found[ANNEALED].mcse)}
    return pd.DataFrame(rows).T


def rank_changes(results: Mapping[str, dict[str, xr.Dataset]]) -> pd.DataFrame:
    """Return the pairs of models whose order changes significantly between encoder draws and log p(x)."""
    changes = {}
    for key in next(iter(results.values())):
        if key in (QUOTED, ANNEALED):
            continue
        for one, other in combinations(results, 2):
            pairs = [results[one][name].log_likelihood - results[other][name].log_likelihood for name in (key, QUOTED)]
            means = [float(pair.mean()) for pair in pairs]
            errors = [float(pair.std(ddof=1)) / pair.sizes["datum"] ** 0.5 for pair in pairs]
            if means[0] * means[1] < 0 and all(abs(m) > 2 * e for m, e in zip(means, errors, strict=True)):
                told = [f"{mean:.2f} ± {error:.2f}" for mean, error in zip(means, errors, strict=True)]
                changes[f"{one} minus {other}, {key}"] = {"encoder draws": told[0], QUOTED: told[1]}
    return pd.DataFrame.from_dict(changes, orient="index", columns=["encoder draws", QUOTED])


def draw_bias(results: Mapping[str, dict[str, xr.Dataset]]) -> Figure:
    """Draw the error of each number of encoder draws in the NLL of each model."""
    with style.axes_for(None, (6.5, 3.4)) as ax:
        for i, (name, found) in enumerate(results.items()):
            keys = [key for key in found if key not in (QUOTED, ANNEALED)]
            excess = [float((found[QUOTED].log_likelihood - found[key].log_likelihood).mean()) for key in keys]
            counts = [int(found[key].attrs["num_samples"]) for key in keys]
            ax.plot(counts, excess, color=style.color(i), marker=style.marker(i), markersize=4, label=name)
        ax.set(xscale="log", yscale="log", xlabel="draws from the encoder", ylabel="NLL overstated by (nats)")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.minorticks_off()
        _legend(ax)
        return figure_of(ax)


def draw_differences(results: Mapping[str, dict[str, xr.Dataset]]) -> Figure:
    """Draw the NLL of each model minus that of the first, under each estimate, with two standard errors."""
    base, *others = results
    keys = [key for key in results[base] if key != ANNEALED]
    with style.axes_for(None, (6.5, 3.4)) as ax:
        for i, name in enumerate(others, 1):
            pairs = [results[base][key].log_likelihood - results[name][key].log_likelihood for key in keys]
            places = np.arange(len(keys)) + 0.08 * (i - (len(others) + 1) / 2)
            errors = [2 * float(pair.std(ddof=1)) / pair.sizes["datum"] ** 0.5 for pair in pairs]
            look: Any = {"color": style.color(i), "marker": style.marker(i), "markersize": 4, "linewidth": 1}
            ax.errorbar(places, [float(pair.mean()) for pair in pairs], errors, capsize=2, label=name, **look)
        ax.axhline(0.0, color="0.6", linewidth=0.8, zorder=0)
        ax.set_xticks(range(len(keys)), keys)
        ax.set(xlabel="estimate", ylabel=f"NLL minus that of the {base} model (nats)")
        _legend(ax)
        return figure_of(ax)


def _legend(ax: Axes) -> None:
    ax.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
