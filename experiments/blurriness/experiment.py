"""Train with every method, measure the samples, and report."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pandas as pd

from experiments import _comparison as comparison
from experiments.blurriness import (
    contrasts,
    known_densities,
    lower_bound,
    maximum_likelihood,
    report,
    restricted_family,
)
from experiments.blurriness.features import train_classifier
from experiments.blurriness.setting import Options, Setting, Trained, images

SPECTRA = ("VAE", "f-GAN, KL", "autoregressive", "VampPrior", "feature consistency", report.REAL)


def explanations(setting: Setting) -> dict[str, dict[str, Callable[[], Trained]]]:
    """Return the training methods, grouped by the explanation that they test."""

    @cache
    def base() -> Trained:
        vae = setting.vae()
        return Trained(vae, setting.train(vae))

    return {
        "": {"VAE": base},
        "criterion": maximum_likelihood.ways(setting, base) | contrasts.ways(setting),
        "family": restricted_family.ways(setting),
        "bound": lower_bound.ways(setting),
    }


def main(options: Options) -> pd.DataFrame:
    """Train and measure. Print and write the tables and the figures."""
    setting = Setting(options)
    test, names = setting.grey.test, explanations(setting)
    ways = {name: way for group in names.values() for name, way in group.items()}
    groups = {name: explanation for explanation, group in names.items() for name in group}
    classifier, accuracy = train_classifier(setting.grey, options, options.classifier_epochs, seed=options.seed)
    made = {report.REAL: report.real_images(setting, options.seed)}
    rows = {report.REAL: {"explanation": "", **report.measure(made[report.REAL], test, classifier)}}
    histories, results = {}, {}
    for name, way in comparison.chosen(ways, options).items():
        trained = way()
        histories[name], made[name] = trained.history, images(trained, test, options.seed)
        rows[name] = {"explanation": groups[name], **report.measure(made[name], test, classifier)}
        rows[name]["seconds"] = max(trained.history.seconds, default=np.nan)
        if trained.density:
            results[name] = report.score(trained, setting)
            rows[name] |= report.likelihood(results[name])
    measured = pd.DataFrame(rows).T
    measured[measured.columns[1:]] = measured[measured.columns[1:]].astype(float)
    table, toy = report.summarize(measured), known_densities.compare(options.toy_steps, options.seed)
    print("\nfit of a normal density to a mixture of two, nats\n")
    print(toy.round(3).to_string())
    print(f"\n{setting.grey.name}, grey values, {len(test)} images per row, ± standard error over images")
    print(f"classifier of the features: {accuracy:.1%} of the validation data correct; {options.num_samples} draws\n")
    print(table.to_string())
    figures = {
        "divergences": known_densities.draw(toy),
        "summary": report.draw_summary(measured),
        "spectra": report.draw_spectra(made, test, list(SPECTRA)),
        **{kind: report.draw_samples(made, test, kind) for kind in report.KINDS},
    }
    comparison.write(options, measured, figures, histories, results)
    toy.to_csv(options.out / "divergences.csv")
    measured.to_csv(options.out / "measures.csv")
    return table
