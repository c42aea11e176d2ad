"""What training minimizes: minus a Pyro objective's bound, or the loss that a module has of its own."""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import pyro
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyrovae._compilation.precision import Precision, products
from pyrovae._waist.sites import LatentScale, check_program

Batch = tuple[Tensor, ...]


class Criterion(Protocol):
    """What the loop asks of a loss.

    Attributes:
        name: Name in a history.
        programs: What is run; modules, or methods of modules.
        precision: Of the matrix products.
    """

    name: str
    programs: tuple[Any, ...]
    precision: Precision | None

    def check(self, batch: Batch) -> None:
        """Runs once on a batch, and refuses what cannot be trained."""

    def __call__(self, batch: Batch, kl_weight: float | Tensor, /) -> Tensor | float:
        """Returns the loss and leaves its gradient in ``.grad`` of the parameters, which are to have none yet."""

    def around(self, kl_weight: float | Tensor, /) -> AbstractContextManager[None]:
        """What a loss and its backward pass are computed within."""

    def differentiable(self, batch: Batch) -> Tensor:
        """Returns the loss, to be differentiated."""

    def value(self, batch: Batch) -> float:
        """Returns the loss alone."""

    def share(self, batch: Batch) -> float:
        """What turns a batch's loss into a sum over its data."""

    def within(self, handler: Messenger) -> "Criterion":
        """The same loss with a handler next to its programs, if it has any."""


class Bound:
    """Minus the bound of an objective for a module's model and guide.

    Args:
        module: Has ``model`` and ``guide``.
        objective: A Pyro ELBO.
        precision: Of the matrix products.

    Attributes:
        full_size: How many data the loss is scaled to, if not to those of its batch.
        plate: Name of the data plate, once data have been checked.
    """

    def __init__(self, module: Any, objective: Any, precision: Precision | None) -> None:
        self.model, self.guide, self.objective, self.precision = module.model, module.guide, objective, precision
        self.programs = (self.model, self.guide)
        self.name = type(objective).__name__
        self.full_size: int | None = None
        self.plate = ""
        self.has_run = False

    def check(self, batch: Batch) -> None:
        """Checks model and guide against each other and the data, and finds out what the loss is scaled to."""
        plate = check_program(self.model, self.guide, batch)
        self.plate = plate.name
        if plate.full_size != len(batch[0]):
            self.full_size = plate.full_size
        if not self.has_run:  # what objectives find out by a run, such as the plates' depth, must not move the noise
            with pyro.validation_enabled(False):
                try:
                    self.value(batch)
                except NotImplementedError:  # of one that has a gradient alone
                    self.differentiable(batch)
            self.has_run = True

    def __call__(self, batch: Batch, kl_weight: float | Tensor) -> Tensor | float:
        """Returns the loss, with the latent sites weighted, and leaves its gradient."""
        with self.around(kl_weight):
            if not hasattr(self.objective, "differentiable_loss"):
                return _first(self.objective.loss_and_grads(self.model, self.guide, *batch))
            loss = self.differentiable(batch)
            if loss.requires_grad:
                loss.backward()
            return loss.detach()

    @contextmanager
    def around(self, kl_weight: float | Tensor) -> Iterator[None]:
        """Weighs the latent sites."""
        untouched = not isinstance(kl_weight, Tensor) and kl_weight == 1
        with nullcontext() if untouched else LatentScale(kl_weight), products(self.precision):
            yield

    def differentiable(self, batch: Batch) -> Tensor:
        """Returns the loss, to be differentiated."""
        loss: Tensor = self.objective.differentiable_loss(self.model, self.guide, *batch)
        return loss

    def value(self, batch: Batch) -> float:
        """Returns the loss alone."""
        with products(self.precision):
            return float(_first(self.objective.loss(self.model, self.guide, *batch)))

    def share(self, batch: Batch) -> float:
        """The loss is a sum, over as many data as the plate stands for."""
        return 1.0 if self.full_size is None else len(batch[0]) / self.full_size

    def within(self, handler: Messenger) -> "Bound":
        """The same loss with a handler next to model and guide."""
        other = copy.copy(self)
        other.model, other.guide = handler(self.model), handler(self.guide)
        return other


class OwnLoss:
    """The ``loss`` of a module, a mean over the data.

    Args:
        module: Has ``loss``.
        precision: Of the matrix products.
    """

    def __init__(self, module: Any, precision: Precision | None) -> None:
        self.module, self.precision = module, precision
        self.programs = (module,)
        self.name = type(module).__name__

    def check(self, batch: Batch) -> None:
        """Runs the loss with validation on.

        Raises:
            TypeError: If it is no scalar.
        """
        with pyro.validation_enabled():
            loss = self.module.loss(*batch)
        if not isinstance(loss, Tensor) or loss.ndim:
            found = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise TypeError(f"the loss of {self.name} must be a tensor of shape (), a mean over the data, got {found}")

    def __call__(self, batch: Batch, _kl_weight: float | Tensor) -> Tensor:
        """Returns the loss and leaves its gradient; there is no latent site to weight."""
        with self.around(1.0):
            loss = self.differentiable(batch)
            if loss.requires_grad:
                loss.backward()
        return loss.detach()

    def around(self, _kl_weight: float | Tensor) -> AbstractContextManager[None]:
        """Sets the precision."""
        return products(self.precision)

    def differentiable(self, batch: Batch) -> Tensor:
        """Returns the loss, to be differentiated."""
        loss: Tensor = self.module.loss(*batch)
        return loss

    def value(self, batch: Batch) -> float:
        """Returns the loss alone."""
        with products(self.precision):
            return float(self.module.loss(*batch))

    def share(self, batch: Batch) -> float:
        """The loss is a mean."""
        return float(len(batch[0]))

    def within(self, _: Messenger) -> "OwnLoss":
        """The same; there is no program."""
        return self


def _first(loss: Any) -> Any:
    """A loss; of several (reweighted wake-sleep) the model's."""
    return loss[0] if isinstance(loss, tuple) else loss
