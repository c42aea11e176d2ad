"""Losses that training minimizes: minus the bound of a Pyro objective, or a loss that a module defines."""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import pyro
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, Trace_MMD, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyrovae._waist.scales import LatentScale
from pyrovae._warnings import find_stack_level
from pyrovae.isolation import isolated
from pyrovae.training.batches import Batch
from pyrovae.training.checks import Facts, check_sizes, inspect_program

OF_DRAWS = (Trace_ELBO, TraceGraph_ELBO, RenyiELBO, Trace_MMD)
"""Objectives of Pyro that draw a site from the prior even if the site asks to be enumerated."""

Products = Callable[[], AbstractContextManager[None]]
"""Function that returns a context manager for the precision of matrix products."""


class LossAndGradient(Protocol):
    """Protocol of a function that computes the loss of a batch and its gradient, and can be compiled.

    Attributes:
        products: Function that returns a context manager for the precision of matrix products.
    """

    products: Products

    def __call__(self, batch: Batch, kl_weight: float | Tensor, /) -> Any:
        """Return the loss, and store its gradient in ``.grad`` of the parameters.

        Before the call, ``.grad`` of all parameters must be None.
        """

    def value(self, batch: Batch) -> float:
        """Return the loss without a gradient."""


class Loss(LossAndGradient, Protocol):
    """Interface of an object that computes the losses of batches in the training loop.

    Attributes:
        name: Name of the loss in a history.
        programs: Modules, or methods of modules, that the loss runs.
    """

    name: str
    programs: tuple[Any, ...]

    def check(self, batch: Batch, total: int) -> bool:
        """Run the loss once, and return whether it is finite. Raise an error if the loss cannot be trained.

        Args:
            batch: A batch of the data.
            total: Number of all data from which the batch is taken.
        """

    def context(self, kl_weight: float | Tensor, /) -> AbstractContextManager[None]:
        """Return the context manager in which the loss and its backward pass are computed."""

    def differentiable(self, batch: Batch) -> Tensor:
        """Return the differentiable loss, shape ``()``."""

    def data_count(self, batch: Batch) -> float:
        """Return n if the loss of a batch is scaled to a sum over n data, and 1 if the loss is a mean over the data."""

    def is_sum(self, batch: Batch) -> bool:
        """Return true if the loss of two joined batches is the sum of their losses, and false if it is a mean."""

    def wrapped(self, handler: Messenger) -> "Loss":
        """Return the same loss with a handler around its Pyro programs, or the loss itself if it has no programs."""


class Bound:
    """The loss of a module with ``model`` and ``guide``: minus the bound of a Pyro objective.

    Args:
        module: Module with ``model`` and ``guide``.
        objective: A Pyro ELBO.
        products: Function that returns a context manager for the precision of matrix products.

    Attributes:
        plate: Name of the data plate, available once data have been checked.
        counts: For each batch size, the number of data to which the loss of such a batch is scaled.
        num_train: Number of training data, taken from the first call of ``check``, because training data are checked
            before validation data.
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
            ValueError: If model and guide do not fit each other or the data, if the objective does not sum out a site
                that only the model enumerates, or if the programs cannot be trained on batches of this size.

        Warns:
            UserWarning: If sites of the data plate have different scales.
        """
        facts = self._inspect(batch)
        self._check_summed_out(facts)
        if facts.scales and not self.has_warned:
            self.has_warned = True
            warnings.warn(
                f"the sites of the data plate {facts.plate!r} have different scales, {facts.scales}, so the history "
                f"is not a bound on log p(x). It holds the weighted objective divided by the scale of the observed "
                f"sites. For a bound, evaluate the model after training; pyrovae.evaluation.evaluate ignores scales.",
                stacklevel=find_stack_level(),
            )
        self.num_train = self.num_train or total
        check_sizes(facts, self.guide, len(batch[0]), total, self.num_train)
        if not self.has_run:  # an objective's first run, which finds the plates' depth, must not change the noise
            with pyro.validation_enabled(False):
                try:
                    self.value(batch)
                except NotImplementedError:  # the objective has only a gradient
                    self.differentiable(batch)
            self.has_run = True
        return facts.is_finite

    def _check_summed_out(self, facts: Facts) -> None:
        """Check that the objective can sum out the enumerated sites of the model that the guide does not have.

        Raises:
            ValueError: If there is such a site, and the objective would draw it instead of summing it out.
        """
        inner = getattr(self.objective, "objective", self.objective)  # BetaELBO holds another objective
        if facts.summed_out is not None and isinstance(inner, OF_DRAWS):
            raise ValueError(
                f"the model enumerates site {facts.summed_out!r}, which the guide does not have, but "
                f"{type(inner).__name__} does not sum the site out, so its loss is not a bound on log p(x). Train with "
                f"objective=pyro.infer.TraceEnum_ELBO(), or sample the site in the guide."
            )

    def __call__(self, batch: Batch, kl_weight: float | Tensor) -> Tensor | float:
        """Return the loss at a KL weight, and store its gradient."""
        with self.context(kl_weight):
            if not hasattr(self.objective, "differentiable_loss"):
                return _first(self.objective.loss_and_grads(self.model, self.guide, *batch))
            loss = self.differentiable(batch)
            if loss.requires_grad:
                loss.backward()
            return loss.detach()

    @contextmanager
    def context(self, kl_weight: float | Tensor) -> Iterator[None]:
        """Context manager: scale latent sites by the KL weight, and set the precision of matrix products."""
        untouched = not isinstance(kl_weight, Tensor) and kl_weight == 1
        with nullcontext() if untouched else LatentScale(kl_weight), self._scores(), self.products():
            yield

    def differentiable(self, batch: Batch) -> Tensor:
        """Return the differentiable loss, shape ``()``."""
        loss: Tensor = self.objective.differentiable_loss(self.model, self.guide, *batch)
        return loss

    def value(self, batch: Batch) -> float:
        """Return the loss without a gradient."""
        with self._scores(), self.products():
            return float(_first(self.objective.loss(self.model, self.guide, *batch)))

    def data_count(self, batch: Batch) -> float:
        """Return the number of data to which the loss is scaled. The programs run once for each new batch size."""
        if len(batch[0]) not in self.counts:
            with isolated(*self.programs, seed=0):
                self._inspect(batch)
        return self.counts[len(batch[0])]

    def is_sum(self, batch: Batch) -> bool:
        """Return true if the loss is a sum over the data of its batch, without a factor that scales it to all data."""
        return self.data_count(batch) == len(batch[0])

    def wrapped(self, handler: Messenger) -> "Bound":
        """Return a copy of this loss, with a Pyro handler around the model and the guide."""
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
    """Handler that sums log-probabilities of half precision in float32, so that their sum does not overflow.

    Pyro multiplies the log-probabilities of a site by its scale. The handler makes the scale a float32 tensor of shape
    ``(1,)``, so the products are float32.
    """

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["value"].dtype in (torch.float16, torch.bfloat16):
            msg["scale"] = msg["scale"] * torch.ones(1, device=msg["value"].device)


class OwnLoss:
    """The loss that a module computes by its method ``loss``, a mean over the data.

    Args:
        module: Module with a method ``loss``.
        products: Function that returns a context manager for the precision of matrix products.
    """

    def __init__(self, module: Any, products: Products = nullcontext) -> None:
        self.module, self.products = module, products
        self.programs = (module,)
        self.name = type(module).__name__

    def check(self, batch: Batch, _total: int) -> bool:
        """Run the loss once with Pyro's validation, and return whether it is finite.

        Raises:
            TypeError: If the loss is not a scalar.
        """
        with pyro.validation_enabled():
            loss = self.module.loss(*batch)
        if not isinstance(loss, Tensor) or loss.ndim:
            found = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise TypeError(f"the loss of {self.name} must be a tensor of shape (), a mean over the data, got {found}")
        return bool(loss.isfinite())

    def __call__(self, batch: Batch, _kl_weight: float | Tensor) -> Tensor:
        """Return the loss and store its gradient. The KL weight is ignored, because the loss has no latent sites."""
        with self.context(1.0):
            loss = self.differentiable(batch)
            if loss.requires_grad:
                loss.backward()
        return loss.detach()

    def context(self, _kl_weight: float | Tensor) -> AbstractContextManager[None]:
        """Context manager: set the precision of matrix products."""
        return self.products()

    def differentiable(self, batch: Batch) -> Tensor:
        """Return the differentiable loss, shape ``()``."""
        loss: Tensor = self.module.loss(*batch)
        return loss

    def value(self, batch: Batch) -> float:
        """Return the loss without a gradient."""
        with self.products():
            return float(self.module.loss(*batch))

    def data_count(self, _batch: Batch) -> float:
        """Return 1, because the loss is a mean over the data."""
        return 1.0

    def is_sum(self, _batch: Batch) -> bool:
        """Return False, because the loss is a mean."""
        return False

    def wrapped(self, _: Messenger) -> "OwnLoss":
        """Return this loss unchanged, because it runs no Pyro program."""
        return self


def _first(loss: Any) -> Any:
    """Return a loss unchanged, or the first of several losses (the loss of the model in reweighted wake-sleep)."""
    return loss[0] if isinstance(loss, tuple) else loss
