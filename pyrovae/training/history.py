"""What a training run did, epoch by epoch."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass
class History:
    """What a training run did, epoch by epoch; bounds in nats per datum, higher is better.

    Attributes:
        objective: Name of the objective, such as ``"Trace_ELBO"``, or of the module that was trained by its own loss.
        train: The bound that was optimized, averaged over the epoch's steps. While the KL weight is below 1 it is the
            weighted one.
        valid: The bound on the validation data at the end of the epoch, with a KL weight of 1 and the same noise every
            time; empty without validation data.
        kl_weight: Weight of the latent sites at the epoch's last step.
        learning_rate: Learning rate during the epoch.
        seconds: Wall time from the start of training to the end of the epoch, compilation included; time between a
            checkpoint and the run that goes on from it is left out.
        skipped: Steps of the epoch that were left out, since their loss or gradient was not finite.
        compile_seconds: How much of it went into compilation; 0 for a run that was not compiled.
        best_epoch: Index of the epoch whose weights the module has at the end: the best on the validation data, without
            them the last; ``None`` if that is amid an epoch that was not finished.
        interrupted: Whether Ctrl-C, or a signal, ended the run.

    Example:
        >>> import pyrovae as pv
        >>> history = pv.History("Trace_ELBO", train=[-44.0, -30.5], valid=[-36.0, -29.0])
        >>> max(history.valid)
        -29.0
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
        """Adds an epoch's values to the columns of their names."""
        for name, value in row.items():
            getattr(self, name).append(value)

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draws the learning curves, on ``ax`` or on a new figure."""
        from pyrovae.plots import learning_curves  # loads matplotlib

        return learning_curves({self.objective: self}, ax=ax)
