"""Maps of the latent space of a VAE, and changes of images by moving their codes.

Two VAEs of digits are trained, one with two latent dimensions and one with more. The figures show the decoded plane,
interpolations between digits, and traversals of each dimension. Codes are then moved along the direction of an
attribute, or by the difference between two classes. The decoded images are measured: thickness and slant from their
pixels, and the class by a classifier of pixels. Both models are also written as interactive pages, explorer_*.html.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
import tyro
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from sklearn.svm import SVC
from torch import Tensor

import pyrovae as pv
from experiments import _comparison as comparison
from experiments._arithmetic import (
    Classifier,
    Digits,
    Space,
    exchange_class,
    interpolate,
    move_attribute,
    pairs,
    slopes,
)
from experiments._latent_figures import draw, tsne
from experiments._strokes import ATTRIBUTES, measure


@dataclass
class Options(comparison.Options):
    """Options of the experiment."""

    data: Literal["mnist5k", "digits", "mnist"] = "mnist5k"
    """Data set of digits; ``mnist5k`` and ``digits`` need no download."""
    latent: int = 10
    """Number of latent dimensions of the second model. The first model has two."""
    kl_warmup: int = 20
    """Epochs over which the weight of the latent sites grows to 1."""
    num_samples: int = 500
    """Draws per test datum in the evaluation."""
    pairs: int = 200
    """Number of pairs of test digits of different classes to interpolate between."""
    cells: int = 21
    """Number of images along each axis of the grid over the latent plane."""
    out: Path = Path("results/latent_space")
    """Folder for tables, figures and pages."""


def main(options: Options) -> dict[str, pd.DataFrame]:
    """Train the models and move their codes. Print and write the tables, the figures and the pages."""
    splits = comparison.load(options)
    train, test = digits(options, splits)
    classify = classifier(train)
    spaces, histories, results = {}, {}, {}
    sizes = {f"{latent} dimensions": latent for latent in (2, options.latent)}
    for name, latent in comparison.chosen(sizes, options).items():
        vae = comparison.build(replace(options, latent=latent), splits.train.shape[1:])
        histories[name] = comparison.train(vae, splits, options)
        results[name] = comparison.evaluate(vae, splits, options)
        spaces[name] = Space(vae, train, test)

    moves = {
        (name, attribute): move_attribute(space, attribute, classify, options.seed)
        for name, space in spaces.items()
        for attribute in ATTRIBUTES
    }
    tables = {
        "models": comparison.summarize(results, histories),
        "attributes": pd.DataFrame({key: attribute_row(move) for key, move in moves.items()}).T,
        "classes": pd.DataFrame({name: class_row(space, classify, options) for name, space in spaces.items()}).T,
        "paths": path_table(spaces, options),
        "neighbours": pd.DataFrame({name: neighbour_row(space) for name, space in spaces.items()}).T,
        **{f"traversals, {name}": traversal_table(space, options) for name, space in spaces.items()},
    }
    comparison.report(splits, tables["models"])
    for name, caption in CAPTIONS.items():
        print(f"\n{caption}\n\n{tables[name].to_string()}")
    for name in spaces:
        print(f"\ndimensions of the model of {name}, by their KL, and their correlation with the attributes\n")
        print(tables[f"traversals, {name}"].to_string())
    traversals = {name: tables[f"traversals, {name}"] for name in spaces}
    figures = draw(spaces, moves, traversals, cells=options.cells, seed=options.seed)
    comparison.write(options, tables["models"], figures, histories, results)
    for name, rows in tables.items():
        rows.to_csv(options.out / f"{name.replace(', ', '_').replace(' ', '_')}.csv")
    for name, space in spaces.items():
        pv.plots.explorer(space.vae, options.out / f"explorer_{name.split()[0]}.html", title=f"{splits.name}, {name}")
    return tables


CAPTIONS = {
    "attributes": "codes moved along the direction of an attribute, by 1 and 2 standard deviations either way; slope: "
    "change of\nthe images per requested unit, ± its standard error over the digits; random: mean |slope| of random "
    "moves of the same length",
    "classes": "classes exchanged by the difference of their mean codes; kept: correlation of the attributes\nof the "
    "images before and after",
    "paths": "interpolations between digits of different classes; at the midpoint, relative to the mean of "
    "the end\npoints: norm of the code, and variance of p(x | z), summed over pixels; way of the images: sum over "
    "ten steps of the\nnorms of the differences",
    "neighbours": "fraction of test digits whose five nearest neighbours vote for their class, in codes and in maps",
}


def digits(options: Options, splits: pv.data.Splits) -> tuple[Digits, Digits]:
    """Return the training and the test digits, both binarized and grey."""
    grey = comparison.load(replace(options, binarization="none"))
    assert splits.labels is not None
    torch.manual_seed(options.seed)
    x = splits.train if splits.transform is None else splits.transform(splits.train)
    return Digits(x, grey.train, splits.labels[0]), Digits(splits.test, grey.test, splits.labels[2])


def classifier(train: Digits, most: int = 5000) -> Classifier:
    """Return a support vector machine on the pixels of the grey training digits."""
    machine = SVC(C=5.0).fit(train.grey[:most].flatten(1), train.labels[:most])
    return lambda images: torch.as_tensor(machine.predict(images.flatten(1)))


def attribute_row(move: Mapping[str, Any]) -> dict[str, str]:
    """Return the table row of an attribute: its measured change, and the changes of the other measures."""
    asked, shown = move["asked"], move["shown"]
    own, other, random = (slopes(asked, move[key]) for key in ("shown", "other", "random"))
    correlation = np.corrcoef(np.repeat(asked, shown.shape[1]), shown.ravel())[0, 1]
    return {
        "R^2 of readout": f"{move['readout']:.2f}",
        "slope": _with_error(own),
        "correlation": f"{correlation:.2f}",
        "mean |slope|": f"{np.abs(own).mean():.2f}",
        "random": f"{np.abs(random).mean():.2f}",
        "slope of the other": _with_error(other),
        "class kept": f"{move['kept']:.0%}",
    }


def class_row(space: Space, classify: Classifier, options: Options) -> dict[str, str]:
    """Return the table row of exchanged classes: the fraction of digits that change class, and the kept attributes."""
    codes, classes = exchange_class(space, options.seed)
    before, after = space.decode(space.codes), space.decode(codes)
    exchanged = (classify(after) == classes).double().numpy()
    of_before, of_after = measure(before), measure(after)
    return {
        "classifier on test digits": f"{_share(classify(space.test.grey) == space.test.labels):.0%}",
        "on reconstructions": f"{_share(classify(before) == space.test.labels):.0%}",
        "exchanged": _with_error(exchanged),
        **{f"{name} kept": f"{np.corrcoef(of_before[name], of_after[name])[0, 1]:.2f}" for name in ATTRIBUTES},
    }


def path_table(spaces: Mapping[str, Space], options: Options) -> pd.DataFrame:
    """Return a table of straight and spherical interpolations between digits."""
    rows = {}
    for name, space in spaces.items():
        start, end = pairs(space, options.pairs, options.seed)
        for kind in ("straight", "spherical"):
            path = interpolate(start, end, 11, spherical=kind == "spherical")
            images = space.decode(path)
            norms, variances = path.norm(dim=2), (images * (1 - images)).sum((2, 3))  # steps, pairs
            rows[name, kind] = {
                "norm halfway": _halfway(norms),
                "variance halfway": _halfway(variances),
                "way": _with_error(images.diff(dim=0).flatten(2).norm(dim=2).sum(0).numpy()),
            }
    return pd.DataFrame(rows).T


def neighbour_row(space: Space) -> dict[str, str]:
    """Return the nearest-neighbour accuracy of the codes, their first two principal components, and their t-SNE map."""
    pca = PCA(2).fit(space.codes)
    maps = {"codes": space.codes, "PCA": pca.transform(space.codes), "t-SNE": tsne(space)}
    row = {}
    for name, points in maps.items():
        neighbours = NearestNeighbors(n_neighbors=5).fit(points).kneighbors(return_distance=False)  # but not itself
        votes = space.test.labels[neighbours].mode(1).values
        row[name] = _with_error((votes == space.test.labels).double().numpy())
    return {**row, "variance in PCA": f"{pca.explained_variance_ratio_.sum():.0%}"}


def traversal_table(space: Space, options: Options) -> pd.DataFrame:
    """Return the KL of each latent dimension in descending order, and its correlation with the attributes."""
    divergences = pv.evaluation.kl_per_dimension(space.vae.model, space.vae.guide, space.test.x, seed=options.seed)
    kl = divergences.z.mean("datum").values
    correlations = {
        name: np.corrcoef(space.codes.T, space.test.attributes[name])[-1, :-1].round(2) for name in ATTRIBUTES
    }
    index = pd.Index([f"z_{j + 1}" for j in range(len(kl))])
    return pd.DataFrame({"KL": kl.round(2), **correlations}, index=index).sort_values("KL", ascending=False)


def _halfway(values: Tensor) -> str:
    """Return the value at the midpoint of paths, shape ``(steps, n)``, relative to the mean of the end points."""
    return _with_error((values[len(values) // 2] / ((values[0] + values[-1]) / 2)).numpy())


def _share(hits: Tensor) -> float:
    return float(hits.double().mean())


def _with_error(values: np.ndarray) -> str:
    return f"{values.mean():.2f} ± {values.std(ddof=1) / len(values) ** 0.5:.2f}"


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
