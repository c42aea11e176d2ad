"""What lies where in the latent space of a VAE, and can images be changed by moving their codes?

Two VAEs of digits, one with two latent dimensions and one with more, are walked through: over the plane, from digit to
digit, and along each dimension. Then codes are moved on purpose, by the direction of an attribute or the difference
of two classes, and the decoded images are measured: thickness and slant from their pixels, the class by a classifier of
pixels. Both models are also written as pages to drag through, explorer_*.html.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro.distributions as dist
import torch
import tyro
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.neighbors import NearestNeighbors
from sklearn.svm import SVC
from torch import Tensor

import pyrovae as pv
from experiments import _comparison as comparison
from experiments._arithmetic import (
    Classifier,
    Digits,
    Space,
    attribute_direction,
    class_means,
    exchange_class,
    interpolate,
    move_attribute,
    slopes,
)
from experiments._strokes import ATTRIBUTES, measure


@dataclass
class Options(comparison.Options):
    """Options of the experiment."""

    data: Literal["mnist5k", "digits", "mnist"] = "mnist5k"
    """Data set of digits; the first two need no download."""
    latent: int = 10
    """Number of latent dimensions of the second model; the first has two."""
    kl_warmup: int = 20
    """Epochs over which the weight of the latent sites grows to 1."""
    num_samples: int = 500
    """Draws per test datum of the evaluation."""
    pairs: int = 200
    """Pairs of test digits of different classes to go between."""
    cells: int = 21
    """Images in each direction of the manifold's grid."""
    out: Path = Path("results/latent_space")
    """Folder for tables, figures and pages."""


def main(options: Options) -> dict[str, pd.DataFrame]:
    """Trains the models and moves their codes; prints and writes the tables, the figures and the pages."""
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
    figures = draw(spaces, moves, options)
    comparison.write(options, tables["models"], figures, histories, results)
    for name, rows in tables.items():
        rows.to_csv(options.out / f"{name.replace(', ', '_').replace(' ', '_')}.csv")
    for name, space in spaces.items():
        pv.plots.explorer(space.vae, options.out / f"explorer_{name.split()[0]}.html", title=f"{splits.name}, {name}")
    return tables


CAPTIONS = {
    "attributes": "codes moved along an attribute's direction, by 1 and 2 standard deviations either way; slope: the "
    "change of\nthe images for each unit asked for, ± its standard error over the digits; random: mean |slope| of "
    "moves as long",
    "classes": "one class exchanged for another by the difference of their mean codes; kept: correlation of the "
    "attributes\nof the images before and after",
    "paths": "from digit to digit of another class; halfway, as a share of the mean of the ends: norm of the code, and "
    "variance\nof p(x | z), summed over pixels; way of the images, the sum over ten steps of the norms of differences",
    "neighbours": "share of the test digits whose five nearest neighbours vote for their class, in codes and in maps",
}


def digits(options: Options, splits: pv.data.Splits) -> tuple[Digits, Digits]:
    """Training and test digits, binarized and grey."""
    grey = comparison.load(replace(options, binarization="none"))
    assert splits.labels is not None
    torch.manual_seed(options.seed)
    x = splits.train if splits.transform is None else splits.transform(splits.train)
    return Digits(x, grey.train, splits.labels[0]), Digits(splits.test, grey.test, splits.labels[2])


def classifier(train: Digits, most: int = 5000) -> Classifier:
    """A support vector machine on the pixels of the grey training digits."""
    machine = SVC(C=5.0).fit(train.grey[:most].flatten(1), train.labels[:most])
    return lambda images: torch.as_tensor(machine.predict(images.flatten(1)))


def attribute_row(move: Mapping[str, Any]) -> dict[str, str]:
    """How far an attribute follows, and what else changes."""
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
    """How many digits become one of another class, and whether they keep their style."""
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
    """Straight and spherical ways between digits."""
    rows = {}
    for name, space in spaces.items():
        start, end = pairs(space, options)
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


def pairs(space: Space, options: Options) -> tuple[Tensor, Tensor]:
    """Codes of pairs of test digits of different classes."""
    drawn = np.random.RandomState(options.seed).randint(len(space.codes), size=(2, 20 * options.pairs))
    first, second = drawn[:, (space.test.labels[drawn[0]] != space.test.labels[drawn[1]]).numpy()][:, : options.pairs]
    return space.codes[first], space.codes[second]


def neighbour_row(space: Space) -> dict[str, str]:
    """How well classes are told apart in the codes, their first two principal components, and their t-SNE map."""
    pca = PCA(2).fit(space.codes)
    maps = {"codes": space.codes, "PCA": pca.transform(space.codes), "t-SNE": tsne(space)}
    row = {}
    for name, points in maps.items():
        neighbours = NearestNeighbors(n_neighbors=5).fit(points).kneighbors(return_distance=False)  # but not itself
        votes = space.test.labels[neighbours].mode(1).values
        row[name] = _with_error((votes == space.test.labels).double().numpy())
    return {**row, "variance in PCA": f"{pca.explained_variance_ratio_.sum():.0%}"}


def tsne(space: Space) -> np.ndarray:
    """The t-SNE map of the codes of the test data."""
    points: np.ndarray = TSNE(2, perplexity=min(30, len(space.codes) / 4), random_state=0).fit_transform(space.codes)
    return points


def traversal_table(space: Space, options: Options) -> pd.DataFrame:
    """KL of each latent dimension, the largest first, and its correlation with the attributes."""
    divergences = pv.evaluation.kl_per_dimension(space.vae.model, space.vae.guide, space.test.x, seed=options.seed)
    kl = divergences.z.mean("datum").values
    correlations = {
        name: np.corrcoef(space.codes.T, space.test.attributes[name])[-1, :-1].round(2) for name in ATTRIBUTES
    }
    index = pd.Index([f"z_{j + 1}" for j in range(len(kl))])
    return pd.DataFrame({"KL": kl.round(2), **correlations}, index=index).sort_values("KL", ascending=False)


def draw(
    spaces: Mapping[str, Space], moves: Mapping[tuple[str, str], Mapping[str, Any]], options: Options
) -> dict[str, Figure]:
    """Draws the walks, the moves and the codes."""
    figures = {"response": draw_response(moves)}
    panels = {}
    for name, space in spaces.items():
        short, labels = name.replace(" ", "_"), space.test.labels
        if space.codes.shape[1] == 2:
            z = dist.Normal(0.0, 1.0).icdf((torch.arange(options.cells) + 0.5) / options.cells)
            grid = torch.stack(torch.meshgrid(z, z.flip(0), indexing="xy"), dim=-1)
            figures["manifold"] = pv.plots.manifold(space.decode(grid), x=z, y=z.flip(0))
            panels[f"{name}: codes"] = (space.codes, labels)
        else:
            panels[f"{name}: PCA"] = (torch.as_tensor(PCA(2).fit_transform(space.codes)), labels)
            panels[f"{name}: t-SNE"] = (torch.as_tensor(tsne(space)), labels)
        figures[f"interpolation_{short}"] = draw_interpolation(space, options)
        figures[f"traversals_{short}"] = draw_traversals(space, options)
        figures[f"attributes_{short}"] = draw_attributes(space)
        figures[f"classes_{short}"] = draw_classes(space)
    return {**figures, "codes": pv.plots.codes(panels)}


def draw_interpolation(space: Space, options: Options) -> Figure:
    """Three pairs of digits, straight and spherical."""
    start, end = (codes[:3] for codes in pairs(space, options))
    rows = {}
    for kind in ("straight", "spherical"):
        images = space.decode(interpolate(start, end, 11, spherical=kind == "spherical"))
        rows |= {f"pair {i + 1}, {kind}": images[:, i] for i in range(len(start))}
    return pv.plots.strips(dict(sorted(rows.items(), key=lambda row: row[0].split(",")[0])))


def draw_traversals(space: Space, options: Options, most: int = 10) -> Figure:
    """One test digit, each of its latent dimensions taken from -3 to 3, the most informative first."""
    table = traversal_table(space, options)[:most]
    values = torch.linspace(-3, 3, 11)
    rows = {}
    for label, kl in table["KL"].items():
        j = int(str(label).removeprefix("z_")) - 1
        z = space.codes[0].repeat(len(values), 1)
        z[:, j] = values
        rows[f"$z_{{{j + 1}}}$, {kl:.2f} nats"] = space.decode(z)
    return pv.plots.strips(rows, marks={0: "$-3$", 5: "0", 10: "3"})


def draw_attributes(space: Space) -> Figure:
    """Three test digits moved along the attributes' directions."""
    steps, rows = torch.linspace(-2, 2, 9), {}
    for attribute in ATTRIBUTES:
        shift = steps[:, None] * attribute_direction(space, attribute) * space.test.attributes[attribute].std()
        rows |= {f"{attribute}, digit {i + 1}": space.decode(space.codes[i] + shift) for i in range(3)}
    return pv.plots.strips(rows, marks={0: "$-2$ sd", 4: "reconstruction", 8: "$+2$ sd"})


def draw_classes(space: Space) -> Figure:
    """One test digit of each class, turned into every class; where they meet it is reconstructed."""
    means, rows = class_means(space), {}
    for own in means:
        code = space.codes[(space.test.labels == own).int().argmax()]
        rows[f"a {own}"] = space.decode(torch.stack([code + mean - means[own] for mean in means.values()]))
    return pv.plots.strips(rows, marks={i: f"as {label}" for i, label in enumerate(means)})


def draw_response(moves: Mapping[tuple[str, str], Mapping[str, Any]]) -> Figure:
    """What was asked for, and what the images show: mean and standard deviation over the digits."""
    figure, axes = plt.subplots(1, len(ATTRIBUTES), figsize=(7.5, 3.6), sharey=True, layout="constrained")
    names = list(dict.fromkeys(name for name, _ in moves))
    for ax, attribute in zip(axes, ATTRIBUTES, strict=True):
        ax.axline((0, 0), slope=1, color="0.7", linestyle=":", linewidth=1, label="as asked for")
        for i, name in enumerate(names):
            move = moves[name, attribute]
            order = np.argsort([*move["asked"], 0])
            asked, shown = (np.array([*values, 0])[order] for values in (move["asked"], move["shown"].mean(1)))
            spread = np.array([*move["shown"].std(1), 0])[order]
            ax.errorbar(asked, shown, spread, color=f"C{i}", marker="o", markersize=4, capsize=3, label=name)
        ax.set_title(attribute, fontsize=10)
        ax.set_xlabel("change asked for (standard deviations)")
    axes[0].set_ylabel("change of the images")
    axes[0].legend(frameon=False)
    return figure


def _halfway(values: Tensor) -> str:
    """What stands in the middle of some ways, shape ``(steps, n)``, as a share of the mean of the ends."""
    return _with_error((values[len(values) // 2] / ((values[0] + values[-1]) / 2)).numpy())


def _share(hits: Tensor) -> float:
    return float(hits.double().mean())


def _with_error(values: np.ndarray) -> str:
    return f"{values.mean():.2f} ± {values.std(ddof=1) / len(values) ** 0.5:.2f}"


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
