"""Losses that training minimizes: minus a Pyro objective's bound, or the loss that a module has of its own."""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import pyro
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyrovae._waist.scales import LatentScale
from pyrovae._warnings import find_stack_level
from pyrovae.isolation import isolated
from pyrovae.training.batches import Batch
from pyrovae.training.checks import Facts, check_sizes, inspect_program

Products = Callable[[], AbstractContextManager[None]]
"""Makes a context that sets the precision of matrix products."""


class LossAndGradient(Protocol):
    """A loss of a batch with its gradient, as a compiled graph holds it.

    Attributes:
        products: Makes the context that sets the precision of matrix products.
    """

    products: Products

    def __call__(self, batch: Batch, kl_weight: float | Tensor, /) -> Any:
        """Return the loss and leave its gradient in ``.grad`` of the parameters, which have none before."""

    def value(self, batch: Batch) -> float:
        """Return the loss without a gradient."""


class Loss(LossAndGradient, Protocol):
    """A loss of a batch, as training asks for it.

    Attributes:
        name: Name in a history.
        programs: Modules, or methods of modules, that the loss runs.
    """

    name: str
    programs: tuple[Any, ...]

    def check(self, batch: Batch, total: int) -> bool:
        """Run once on a batch of ``total`` data and refuse what cannot be trained; return whether it is finite."""

    def context(self, kl_weight: float | Tensor, /) -> AbstractContextManager[None]:
        """Return the context in which a loss and its backward pass are computed."""

    def differentiable(self, batch: Batch) -> Tensor:
        """Return the loss, shape ``()``, to be differentiated."""

    def data_count(self, batch: Batch) -> float:
        """Return the number of data that the loss of a batch is scaled to."""

    def is_sum(self, batch: Batch) -> bool:
        """Return whether the losses of two batches add up to the loss of both, instead of averaging."""

    def wrapped(self, handler: Messenger) -> "Loss":
        """Return the same loss with a handler next to its programs, if it has any."""


class Bound:
    """Minus the bound of an objective for a module's model and guide.

    Args:
        module: Has ``model`` and ``guide``.
        objective: A Pyro ELBO.
        products: Makes the context that sets the precision of matrix products.

    Attributes:
        plate: Name of the data plate, once data have been checked.
        counts: Number of data that a loss is scaled to, by the size of the batch.
        num_train: Number of training data, which are checked first.
    """

    def __init__(self, module: Any, objective: Any, products: Products = nullcontext) -> None:
        self.model, self.guide, self.objective, self.products = module.model, module.guide, objective, products
        self.programs = (self.model, self.guide)
        self.name = type(objective).__name__
        self.plate = ""
        self.counts: dict[int, float] = {}
        self.is_half = any(tensor.dtype in (torch.float16, torch.bfloat16) for tensor in module.parameters())
        self.has_run = self.has_warned = False
        self.num_train = 0

    def check(self, batch: Batch, total: int) -> bool:
        """Check model and guide against each other and the data; return whether all log-probabilities are finite.

        Raises:
            ValueError: If the programs or the size of the batch do not fit.

        Warns:
            UserWarning: If sites of the data plate are scaled differently.
        """
        facts = self._inspect(batch)
        if facts.scales and not self.has_warned:
            self.has_warned = True
            warnings.warn(
                f"the sites of the data plate {facts.plate!r} have different scales, {facts.scales}, so the history "
                f"holds the weighted objective relative to the scale of the observed sites, which is no bound on "
                f"log p(x); for a bound, evaluate the model after training (pyrovae.evaluation.evaluate leaves scales "
                f"out)",
                stacklevel=find_stack_level(),
            )
        self.num_train = self.num_train or total
        check_sizes(facts, self.guide, len(batch[0]), total, self.num_train)
        if not self.has_run:  # what objectives find out by a run, such as the plates' depth, must not move the noise
            with pyro.validation_enabled(False):
                try:
                    self.value(batch)
                except NotImplementedError:  # of an objective that has a gradient alone
                    self.differentiable(batch)
            self.has_run = True
        return facts.is_finite

    def __call__(self, batch: Batch, kl_weight: float | Tensor) -> Tensor | float:
        """Return the loss, with the latent sites weighted, and leave its gradient."""
        with self.context(kl_weight):
            if not hasattr(self.objective, "differentiable_loss"):
                return _first(self.objective.loss_and_grads(self.model, self.guide, *batch))
            loss = self.differentiable(batch)
            if loss.requires_grad:
                loss.backward()
            return loss.detach()

    @contextmanager
    def context(self, kl_weight: float | Tensor) -> Iterator[None]:
        """Weigh the latent sites and set the precision."""
        untouched = not isinstance(kl_weight, Tensor) and kl_weight == 1
        with nullcontext() if untouched else LatentScale(kl_weight), self._scores(), self.products():
            yield

    def differentiable(self, batch: Batch) -> Tensor:
        """Return the loss, shape ``()``, to be differentiated."""
        loss: Tensor = self.objective.differentiable_loss(self.model, self.guide, *batch)
        return loss

    def value(self, batch: Batch) -> float:
        """Return the loss without a gradient."""
        with self._scores(), self.products():
            return float(_first(self.objective.loss(self.model, self.guide, *batch)))

    def data_count(self, batch: Batch) -> float:
        """Return the number of data that the loss is scaled to; a batch of a new size is run once to find out."""
        if len(batch[0]) not in self.counts:
            with isolated(*self.programs, seed=0):
                self._inspect(batch)
        return self.counts[len(batch[0])]

    def is_sum(self, batch: Batch) -> bool:
        """Return whether the loss is scaled to the data of its batch, so that losses add up."""
        return self.data_count(batch) == len(batch[0])

    def wrapped(self, handler: Messenger) -> "Bound":
        """Return the same loss with a handler next to model and guide."""
        other = copy.copy(self)
        other.model, other.guide = handler(self.model), handler(self.guide)
        return other

    def _inspect(self, batch: Batch) -> Facts:
        facts = inspect_program(self.model, self.guide, batch)
        self.plate, self.counts[len(batch[0])] = facts.plate, facts.data_count
        return facts

    def _scores(self) -> AbstractContextManager[Any]:
        is_of_pyro = type(self.objective) in (Trace_ELBO, TraceMeanField_ELBO)
        return SingleScores() if self.is_half and is_of_pyro else nullcontext()


class SingleScores(Messenger):
    """Adds up log-probabilities of half precision in float32, in which the sum of a batch neither rounds nor overflows.

    Pyro multiplies log-probabilities by the scale of their site, and a scale of shape ``(1,)`` sets the type.
    """

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["value"].dtype in (torch.float16, torch.bfloat16):
            msg["scale"] = msg["scale"] * torch.ones(1, device=msg["value"].device)


class OwnLoss:
    """The ``loss`` of a module, a mean over the data.

    Args:
        module: Has ``loss``.
        products: Makes the context that sets the precision of matrix products.
    """

    def __init__(self, module: Any, products: Products = nullcontext) -> None:
        self.module, self.products = module, products
        self.programs = (module,)
        self.name = type(module).__name__

    def check(self, batch: Batch, _total: int) -> bool:
        """Run the loss with validation on.

        Raises:
            TypeError: If it is no scalar.
        """
        with pyro.validation_enabled():
            loss = self.module.loss(*batch)
        if not isinstance(loss, Tensor) or loss.ndim:
            found = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise TypeError(f"the loss of {self.name} must be a tensor of shape (), a mean over the data, got {found}")
        return bool(loss.isfinite())

    def __call__(self, batch: Batch, _kl_weight: float | Tensor) -> Tensor:
        """Return the loss and leave its gradient; there is no latent site to weight."""
        with self.context(1.0):
            loss = self.differentiable(batch)
            if loss.requires_grad:
                loss.backward()
        return loss.detach()

    def context(self, _kl_weight: float | Tensor) -> AbstractContextManager[None]:
        """Set the precision."""
        return self.products()

    def differentiable(self, batch: Batch) -> Tensor:
        """Return the loss, shape ``()``, to be differentiated."""
        loss: Tensor = self.module.loss(*batch)
        return loss

    def value(self, batch: Batch) -> float:
        """Return the loss without a gradient."""
        with self.products():
            return float(self.module.loss(*batch))

    def data_count(self, _batch: Batch) -> float:
        """Return 1, because the loss is a mean."""
        return 1.0

    def is_sum(self, _batch: Batch) -> bool:
        """Return False, because the loss is a mean."""
        return False

    def wrapped(self, _: Messenger) -> "OwnLoss":
        """Return the same loss, which runs no Pyro program."""
        return self


def _first(loss: Any) -> Any:
    """Return a loss; of several (reweighted wake-sleep) the model's."""
    return loss[0] if isinstance(loss, tuple) else loss
