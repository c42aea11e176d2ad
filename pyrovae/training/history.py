"""The history of a training run, epoch by epoch."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

_SHOWN = 10


@dataclass(repr=False)
class History:
    """The history of a training run, with one row for each epoch.

    Bounds are in nats per datum; higher values are better.

    Attributes:
        objective: Name of the objective, such as ``"Trace_ELBO"``, or of the module that was trained by its own loss.
        train: Bound that was optimized, averaged over the epoch's steps. While the KL weight is not 1, the terms of the
            latent sites in this bound are multiplied by the weight. The bound is divided by the scale of the observed
            sites. If sites of the data plate have different scales, ``train`` and ``valid`` hold the weighted
            objective, which is not a bound on log p(x), and a warning is issued.
        valid: Bound on the validation data at the end of the epoch, with a KL weight of 1 and the same noise in every
            epoch; empty without validation data.
        kl_weight: Weight of the latent sites at the epoch's last step.
        learning_rate: Learning rate at the epoch's last step.
        seconds: Wall time from the start of training to the end of the epoch, including compilation. The time between a
            checkpoint and the run that continues from it does not count.
        skipped: Number of steps that were skipped because their loss or gradient was not finite.
        compile_seconds: Seconds that compilation took; 0 for a run that was not compiled.
        best_epoch: Index of the epoch whose weights the module has at the end: the best epoch on the validation data
            or, without validation data, the last epoch. Epochs of a KL warm-up do not count. ``None`` if the weights
            come from an unfinished epoch.
        interrupted: True if Ctrl-C or a signal ended the run.

    Example:
        >>> import pyrovae as pv
        >>> history = pv.History("Trace_ELBO", train=[-44.0, -30.5], valid=[-36.0, -29.0], best_epoch=1)
        >>> history
        <History of Trace_ELBO: 2 epochs, train -30.50, valid -29.00, best epoch 1>
        >>> max(history.valid)
        -29.0
        >>> list(history.to_dataframe()["train"])
        [-44.0, -30.5]
        >>> history.plot().get_ylabel()
        'bound (nats per datum)'
    """

    objective: str
    train: list[float] = field(default_factory=list)
    valid: list[float] = field(default_factory=list)
    kl_weight: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    compile_seconds: float = 0.0
    best_epoch: int | None = None
    interrupted: bool = False

    def append(self, **row: float) -> None:
        """Append an epoch's values to the columns of the same names."""
        for name, value in row.items():
            getattr(self, name).append(value)

    def bounds(self) -> dict[str, list[float]]:
        """Return a dictionary of the columns ``train`` and ``valid``. An empty column is left out."""
        return {name: column for name in ("train", "valid") if (column := getattr(self, name))}

    def to_dataframe(self) -> "DataFrame":
        """Return the non-empty columns as a table with one row for each epoch."""
        import pandas as pd  # the import takes a second

        columns = ("train", "valid", "kl_weight", "learning_rate", "seconds", "skipped")
        filled = {name: column for name in columns if (column := getattr(self, name))}
        return pd.DataFrame(filled).rename_axis(index="epoch")

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Plot the learning curves on ``ax`` or on a new figure, and return the axes."""
        from pyrovae.plots import learning_curves  # the import loads matplotlib

        return learning_curves({self.objective: self}, ax=ax)

    def __repr__(self) -> str:
        last = [f"{name} {column[-1]:.2f}" for name, column in self.bounds().items()]
        best = [] if self.best_epoch is None else [f"best epoch {self.best_epoch}"]
        interrupted = ["interrupted"] if self.interrupted else []
        told = ", ".join([f"{len(self.train)} epochs", *last, *best, *interrupted])
        return f"<History of {self.objective}: {told}>"

    def _repr_html_(self) -> str:
        """Return a summary and a table of the last epochs as HTML, for notebooks."""
        table = self.to_dataframe().tail(_SHOWN).to_html(float_format=lambda value: f"{value:.4g}")
        return f"<p>{self.objective}: {len(self.train)} epochs, bounds in nats per datum</p>{table}"
