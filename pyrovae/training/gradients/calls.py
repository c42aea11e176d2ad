"""The gradient of an objective, as in Pyro's SVI: model and guide may be called with any arguments.

The trained parameters need not be known before the first call. They are recorded while model and guide run.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from torch import Tensor, nn

from pyrovae.training.losses import Products


class Call(NamedTuple):
    """The arguments of one call of model and guide."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class CallGradients:
    """The loss and gradient of an objective for any arguments of the programs, computed as in Pyro's SVI.

    Args:
        module: Module with ``model`` and ``guide``. Its parameters and those that the programs register are trained.
        loss: A Pyro ELBO, or a function of model, guide and their arguments that returns the loss, shape ``()``.
        products: Function that returns a context manager for the precision of matrix products.

    Attributes:
        parameters: Parameters found in the last run of model and guide, by name.
        seen: Parameters found in all runs so far, by name.
    """

    is_compiled = False
    compile_seconds = 0.0

    def __init__(self, module: Any, loss: Any, products: Products) -> None:
        self.module, self.loss, self.products = module, loss, products
        self.parameters: Mapping[str, Tensor] = {}
        self.seen: dict[str, Tensor] = {}

    def __call__(self, batch: Call, _kl_weight: float = 1.0) -> Any:
        """Return the loss of a call, or several losses for reweighted wake-sleep.

        The gradient is added to the ``grad`` of each parameter.
        """
        with poutine.trace(param_only=True) as capture, self.products():
            loss = self._loss_and_grads(batch)
        self._find(capture.trace)
        return loss

    def value(self, batch: Call) -> Any:
        """Return the loss of a call without computing a gradient."""
        function = getattr(self.loss, "loss", self.loss)
        with torch.no_grad(), self.products():
            return function(self.module.model, self.module.guide, *batch.args, **batch.kwargs)

    def update(self, step: Callable[[], None]) -> None:
        """Make the optimizer's step."""
        step()

    def compare(self) -> None:
        """Do nothing, because only a compiled gradient is compared with an eager run."""

    def sync_buffers(self) -> None:
        """Do nothing, because there is only one process."""

    def discover(self, batch: Call) -> None:
        """Run model and guide to find their parameters, without computing a gradient."""
        with poutine.trace(param_only=True) as capture, torch.no_grad(), pyro.validation_enabled(False):
            self.module.guide(*batch.args, **batch.kwargs)
            self.module.model(*batch.args, **batch.kwargs)
        self._find(capture.trace)

    def _loss_and_grads(self, batch: Call) -> Any:
        programs = self.module.model, self.module.guide
        if isinstance(self.loss, ELBO):
            objective: Any = self.loss
            return objective.loss_and_grads(*programs, *batch.args, **batch.kwargs)
        loss = self.loss(*programs, *batch.args, **batch.kwargs)
        if isinstance(loss, Tensor) and loss.requires_grad:
            loss.backward(retain_graph=True)
        return loss

    def _find(self, trace: Any) -> None:
        """Set ``parameters`` to the parameters of a run, found from its trace of guide and model.

        They are the parameters in the trace, and the module's other parameters if they have a gradient. A parameter
        that does not belong to the module has the name of its site in the trace.
        """
        names = {id(tensor): name for name, tensor in self.module.named_parameters()}
        found: dict[str, Tensor] = {}
        known = set()
        for name, site in trace.nodes.items():
            tensor = site["value"].unconstrained()
            if id(tensor) not in known:  # a program may register a tensor under two names, as AutoIAFNormal does
                found[names.pop(id(tensor), name)] = tensor
            known.add(id(tensor))
        own = dict(self.module.named_parameters())  # a program need not register all of them
        found |= {name: own[name] for name in names.values() if own[name].grad is not None}
        self.parameters = found
        self.seen = {**self.seen, **found}


@contextmanager
def modules_that_run() -> Iterator[dict[int, nn.Module]]:
    """Context manager that records modules whose forward method runs, in a dictionary with their ``id`` as keys."""
    ran: dict[int, nn.Module] = {}

    def note(module: nn.Module, _: Any) -> None:
        ran[id(module)] = module

    handle = nn.modules.module.register_module_forward_pre_hook(note)
    try:
        yield ran
    finally:
        handle.remove()
