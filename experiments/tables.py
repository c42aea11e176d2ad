"""Write the tables of the documentation from the committed JSON, so that no number is copied by hand.

A page marks the start of a table by ``<!-- table: training -->`` and its end by ``<!-- end of table -->``.
``python -m experiments.tables`` writes the text between the two marks. A test compares the pages with the JSON.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from string import ascii_lowercase

import pandas as pd

from experiments._reproduced import as_markdown, foreign, further_training, rankings, seeds
from experiments.benchmarks.rounds import spread
from experiments.reproduce.papers import AGAIN, PAPER_SCHEDULE, PAPERS, PARTS
from experiments.reproduce.rows import slug, tabulate

ROOT = Path(__file__).parent.parent
MARKED = re.compile(r"(<!-- table: (.+?) -->\n).*?(<!-- end of table -->)", flags=re.DOTALL)
FIRST_ROWS = {
    "iwae": {"1 layer, VAE, k = 1": "Burda et al., VAE", "1 layer, IWAE, k = 5": "Burda et al., IWAE, k = 5"},
    "vampprior": {
        "VAE, standard": "Tomczak and Welling, standard prior",
        "VAE, VampPrior": "Tomczak and Welling, VampPrior",
    },
}


def main(root: Path = ROOT) -> None:
    """Rewrite the tables of all pages."""
    for page in pages(root):
        page.write_text(rewritten(page.read_text(), root / "docs"))


def pages(root: Path) -> list[Path]:
    """Return the pages that may contain tables."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def rewritten(text: str, docs: Path) -> str:
    """Return the text of a page, with its tables rewritten from the JSON files in the folder ``docs``.

    Raises:
        KeyError: If the page names an unknown table.
    """
    return MARKED.sub(lambda match: f"{match[1]}{markdown(TABLES[match[2]](docs))}{match[3]}", text)


def markdown(table: pd.DataFrame | str) -> str:
    """Return a table in Markdown. Markdown text is returned unchanged."""
    return table if isinstance(table, str) else as_markdown(table)


def reproduction(paper: str, docs: Path, *, part: str = ".") -> pd.DataFrame:
    """Return the table of a paper. The cells of rows that have not been run are empty."""
    targets = {name: row.target for name, row in PAPERS[paper].items()}
    return tabulate(paper, targets, docs / "reproduction" / part)


def other_schedules(docs: Path, parts: Mapping[str, str]) -> pd.DataFrame:
    """Return the rows of the IWAE paper's table that were also run with other schedules or optimizers.

    The name of a row states the schedule. The row that has not been run with the paper's schedule yet is empty.
    """
    tables = [
        reproduction("iwae", docs, part=part).rename(index=lambda row, way=way: f"{row}: {way}")
        for part, way in parts.items()
    ]
    table = pd.concat(tables)
    awaited = f"{AGAIN}: {parts.get(PAPER_SCHEDULE)}"
    return table[(table["5,000 encoder draws"] != "") | (table.index == awaited)]


def optimizers(docs: Path) -> pd.DataFrame:
    """Return the results of one row of the IWAE paper's table after a few epochs, by optimizer and batch size."""
    kept = [
        json.loads((docs / "reproduction" / "optimizers" / name / "iwae" / "1_layer-iwae-k_5.json").read_text())
        for name in ("adam", "muon", "muon_500")
    ]
    table = {
        f"{it['optimizer'].capitalize()}, batches of {it['batch_size']}": {
            "learning rate": f"{it['learning_rate']:g}",
            "epochs": str(it["epochs"]),
            "IWAE_5, train": f"{it['train_bound']:.2f}",
            "IWAE_5, test": f"{it['iwae']['5']:.2f}",
            "minutes": f"{it['train_seconds'] / 60:.1f}",
        }
        for it in kept
    }
    return pd.DataFrame(table).T


def runs(docs: Path) -> pd.DataFrame:
    """Return the settings and the machine of each row that has been run."""
    kept = {}
    for part, way in PARTS.items():
        for paper, rows in PAPERS.items():
            for path in (docs / "reproduction" / part / paper / f"{slug(name)}.json" for name in rows):
                if path.exists():
                    record = json.loads(path.read_text())
                    machine, versions = record["machine"], record["machine"]["versions"]
                    kept[f"{record['row']}: {way}" if way else record["row"]] = {
                        "seed": record["seed"],
                        "device": machine.get("gpu", f"{machine['cores']} cores, {machine['cpu']}"),
                        "torch, Pyro": f"{versions['torch']}, {versions['pyro-ppl']}",
                        "command": f"`{record['command']}`",
                    }
    return pd.DataFrame.from_dict(kept, orient="index", columns=["seed", "device", "torch, Pyro", "command"])


def first_rows(docs: Path) -> pd.DataFrame:
    """Return the first rows of the papers' tables."""
    tables = [reproduction(paper, docs).loc[list(names)].rename(index=names) for paper, names in FIRST_ROWS.items()]
    return pd.concat(tables)[
        ["published", "5,000 encoder draws", "k-hat > 0.7", "log p(x)", "reliable", "epochs", "hours"]
    ]


def speed(docs: Path) -> pd.DataFrame:
    """Return the times of a training step and of the evaluation of an image, of all contenders."""
    step, image = (results(f"benchmarks/{name}", docs) for name in ("training", "evaluation"))
    columns = {"ms per training step": step["ms per step"], "ms per evaluated image": image["ms per image"]}
    contenders = ["Pyro", "PyTorch, compiled", "NumPyro", "pythae", "pyrovae", "pyrovae, compiled"]
    return pd.DataFrame(columns).fillna("").loc[contenders]


def results(name: str, docs: Path, *, columns: Mapping[str, str] | Iterable[str] = ()) -> pd.DataFrame:
    """Return the table of an experiment or a benchmark.

    Args:
        name: Name of the JSON file in the folder, without the suffix.
        docs: Folder of the documentation.
        columns: Columns to show [default: all], or a mapping from columns to the names to show.
    """
    table = pd.DataFrame.from_dict(json.loads((docs / f"{name}.json").read_text())["table"], orient="index")
    names = dict(columns) if isinstance(columns, Mapping) else {column: column for column in columns or table.columns}
    return table[list(names)].rename(columns=names)


def growth(docs: Path, **units: str) -> pd.DataFrame:
    """Return the milliseconds per step against a growing quantity, which is named by its unit."""
    tables = {unit: results(f"benchmarks/growth_{quantity}", docs) for unit, quantity in units.items()}
    return pd.concat([table.rename(index=lambda value, unit=unit: f"{value} {unit}") for unit, table in tables.items()])


def training_models(docs: Path) -> pd.DataFrame:
    """Return the times of a training step of several models, in milliseconds, and ratios to other contenders."""
    rows = {}
    for name, title in TRAINED.items():
        record = json.loads((docs / "benchmarks" / f"training_{name}.json").read_text())
        seconds = pd.DataFrame(record["races"]["all"]["seconds"])
        steps = record["options"]["num_data"] // record["options"]["batch_size"]
        medians = 1000 * seconds.median() / steps
        ms = {f"{contender}, ms": f"{medians[contender]:,.0f}" for contender in TIMED if contender in medians}
        rows[title] = ms | {
            f"{contender} / {other}": spread(*(seconds[contender] / seconds[other]).quantile([0.5, 0.25, 0.75]))
            for contender, other in RATIOS
        }
    return pd.DataFrame.from_dict(rows, orient="index").fillna("")


def iwae_50_again(docs: Path) -> pd.DataFrame:
    """Return the times of a compiled step of IWAE_50 relative to a hand-written step, in four races of one day."""
    rows = {}
    for race, suffix in enumerate(("", "_again_1", "_again_2", "_again_3"), start=1):
        record = json.loads((docs / "benchmarks" / f"training_iwae_50{suffix}.json").read_text())
        seconds = pd.DataFrame(record["races"]["all"]["seconds"])
        ratios = seconds["pyrovae, compiled"] / seconds["PyTorch"]
        rows[f"race {race}, of {seconds.shape[1]} contenders"] = {
            "pyrovae, compiled / PyTorch": record["table"]["pyrovae, compiled"]["/ PyTorch"],
            "rounds at 0.75 or below": f"{(ratios <= 0.75).sum()} of {len(ratios)}",
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def protocol_rankings(docs: Path) -> pd.DataFrame | str:
    """Return the pairs of models whose order the published protocol changes, or a sentence if there are none."""
    table = results("results/published_protocol_rankings", docs)
    same_order = (
        "Encoder draws and `log_likelihood` rank these models in the same order, except for pairs with a difference "
        "within two standard errors.\n"
    )
    return table if len(table) else same_order


def gaps(docs: Path) -> pd.DataFrame:
    """Return the bounds and gaps of both data sets, with the gaps in the model's own family."""
    parts = {}
    for data, name in {"MNIST": "gaps_mnist", "Fashion": "gaps_fashion"}.items():
        table = results(f"results/{name}", docs)
        for model, family in {"mean field": "normal", "flow": "flow"}.items():
            own = {f"{gap}, {family}": f"{gap} gap" for gap in ("approximation", "amortization")}
            columns = {name: name for name in ("log p(x), AIS", "best flow", "best normal", "ELBO")} | own
            part = table.loc[[f"{model}, train", f"{model}, test"], list(columns)].rename(columns=columns)
            parts[f"{data}, {model}"] = part.rename(index=lambda row, data=data: f"{data}, {row}")
    return pd.concat(list(parts.values()))


def program_outcomes(docs: Path) -> pd.DataFrame:
    """Return the outcome of each tool on each program: right, or the letter of the error."""
    cells = json.loads((docs / "results" / "programs.json").read_text())
    letters = _letters(cells)
    table = {
        program: {tool: letters[cell["refusal"]] if "refusal" in cell else "✓" for tool, cell in tools.items()}
        for program, tools in cells.items()
    }
    return pd.DataFrame.from_dict(table, orient="index")


def program_refusals(docs: Path) -> pd.DataFrame:
    """Return the errors by letter: the number of cells, and the message of the first of them."""
    programs = json.loads((docs / "results" / "programs.json").read_text())
    cells = [cell for tools in programs.values() for cell in tools.values() if "refusal" in cell]
    table = {}
    for refusal, letter in _letters(programs).items():
        messages = [cell["message"] for cell in cells if cell["refusal"] == refusal]
        table[letter] = {"cells": str(len(messages)), "message": messages[0].replace("|", "\\|")}
    return pd.DataFrame.from_dict(table, orient="index")


def _letters(programs: Mapping[str, Mapping[str, Mapping[str, str]]]) -> dict[str, str]:
    names = dict.fromkeys(
        cell["refusal"] for tools in programs.values() for cell in tools.values() if "refusal" in cell
    )
    return dict(zip(names, ascii_lowercase, strict=False))


STEP = ("ms per step", "/ Pyro", "/ PyTorch", "/ NumPyro")
TRAINED = {
    "perceptron": "perceptron, 400 hidden units",
    "convolutional": "convolutional, 28 x 28",
    "colour": "convolutional, 32 x 32 x 3",
    "vampprior": "VampPrior, 500 pseudo-inputs",
    "mixture": "mixture prior, 200 components",
    "flow_prior": "flow prior",
    "inverse_autoregressive": "inverse autoregressive posterior",
    "two_layers": "two latent layers",
    "counts": "negative binomial, 2,000 columns",
    "markov": "deep Markov model",
}
TIMED = "Pyro", "PyTorch, compiled", "NumPyro", "pyrovae", "pyrovae, compiled"
RATIOS = (
    ("pyrovae", "Pyro"),
    ("pyrovae, compiled", "Pyro"),
    ("pyrovae, compiled", "pyrovae"),
    ("pyrovae, compiled", "PyTorch, compiled"),
)
STEP_COMPILED = ("ms per step", "/ Pyro", "/ PyTorch, compiled", "/ NumPyro")
IMAGE = ("ms per image", "/ pythae", "/ sum of parts", "set-up, s", "peak memory, MiB")
CODES = {name: name for name in ("digits", "masked digits", "letters")} | {
    "probe": "linear probe",
    "matched": "decoded random codes: precision / recall",
}
BITS = {
    "bits/dim": "bits per dimension",
    "difference": "difference",
    "IWAE_1000": "1,000 encoder draws, nats",
    "log p(x)": "log p(x), nats",
    "reliable": "reliable",
}
GROWING = "step, ms", "evaluate, s", "log_likelihood, s", "memory, MiB"
GRID = {
    "ELBO": "ELBO",
    "IWAE_5000": "5,000 encoder draws",
    "log p(x)": "log p(x)",
    "reliable": "reliable",
    "difference": "difference",
    "error over data": "error over data",
}
COMPONENTS = {"5,000 draws": "NLL, 5,000 encoder draws", "log p(x)": "NLL by log_likelihood", "reliable": "reliable"}

TABLES: dict[str, Callable[[Path], pd.DataFrame | str]] = {
    **{paper: partial(reproduction, paper) for paper in PAPERS},
    "iwae, optimizers": optimizers,
    "iwae, other schedules": partial(
        other_schedules,
        parts={
            "adam": "Adam, warm-up",
            "without_warmup": "Adam, no warm-up",
            PAPER_SCHEDULE: PARTS[PAPER_SCHEDULE],
        },
    ),
    "iwae, seeds": seeds,
    "foreign": foreign,
    "further training": further_training,
    "rankings": rankings,
    "runs": runs,
    "first rows": first_rows,
    "speed": speed,
    "elbo_vs_iwae": partial(results, "results/elbo_vs_iwae"),
    "published_protocol": partial(results, "results/published_protocol"),
    "published_protocol, rankings": protocol_rankings,
    "components": partial(results, "results/published_protocol", columns=COMPONENTS),
    "known posteriors": partial(results, "benchmarks/known_posteriors"),
    "cascade": partial(results, "benchmarks/cascade"),
    "first minute": partial(results, "benchmarks/first_minute"),
    "scaling": partial(results, "benchmarks/scaling", columns=GROWING),
    "streaming": partial(results, "benchmarks/streaming"),
    "likelihoods": partial(results, "results/likelihoods", columns=BITS),
    "autoencoders": partial(results, "results/autoencoders", columns=CODES),
    "sweep": partial(results, "results/sweep", columns=GRID),
    "colour": partial(results, "results/colour"),
    "gaps": gaps,
    "programs": program_outcomes,
    "programs, refusals": program_refusals,
    "training": partial(results, "benchmarks/training", columns=STEP),
    "training, models": training_models,
    "training, IWAE_50": partial(results, "benchmarks/training_iwae_50", columns=STEP),
    "training, IWAE_50, again": iwae_50_again,
    "training, CUDA": partial(results, "benchmarks/training_cuda", columns=STEP_COMPILED),
    "growth": partial(growth, draws="k", dimensions="latent"),
    "growth, data": partial(growth, data="num_data"),
    "ideas": partial(results, "benchmarks/ideas"),
    "ideas, IWAE_50": partial(results, "benchmarks/ideas_iwae_50"),
    "profiles": partial(results, "benchmarks/profiles"),
    "evaluation": partial(results, "benchmarks/evaluation", columns=IMAGE),
    "accuracy": partial(results, "benchmarks/accuracy"),
    "evaluation, memory": partial(
        results, "benchmarks/evaluation_memory", columns=("memory before, MiB", "peak memory, MiB")
    ),
}


if __name__ == "__main__":
    main()
