"""Compiled gradients for any arguments of the programs, by one graph for each kind of call.

Two calls are of the same kind if their arguments have the same structure, if tensors have the same shapes, strides
and dtypes, and if other arguments have the same values. The first call of a kind runs eagerly, which shows the
parameters that it trains. The second call of the kind compiles the graph.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from pyrovae._warnings import find_stack_level
from pyrovae.training.batches import Batch
from pyrovae.training.gradients.calls import Call, CallGradients, modules_that_run
from pyrovae.training.gradients.compiled import CompiledGradients

MAX_GRAPHS = 8
COMPARED_EVERY = 100  # calls, of which one is compared with an eager run
_PLAIN = bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size


class CompiledCallGradients:
    """Gradient of an objective, computed by compiled graphs.

    If a call cannot be compiled, a warning is issued, and the programs run eagerly.

    Args:
        eager: Uncompiled gradient of the same objective. It runs the calls that have no graph.

    Attributes:
        parameters: Parameters that the last call trained, by name.
    """

    is_compiled = True

    def __init__(self, eager: CallGradients) -> None:
        self.eager, self.calls = eager, 0
        self.parameters: Mapping[str, Tensor] = {}
        self.kinds: dict[Any, Kind] = {}
        self.compile_seconds = 0.0
        self.warned: set[str] = set()

    def __call__(self, batch: Call, kl_weight: float = 1.0) -> Any:
        """Return the loss of a call. The ``.grad`` of each parameter receives the gradient."""
        leaves, structure = tree_flatten((batch.args, batch.kwargs))
        tensors = tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))
        constants = [_Varying if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        if odd := next((each for each in constants if each is not _Varying and not isinstance(each, _PLAIN)), None):
            self._warn(f"an argument is a {type(odd).__name__}, but graphs take only tensors, numbers and strings")
            return self._run_eagerly(batch, kl_weight)
        key = (
            structure,
            tuple((type(each), each) for each in constants),
            tuple((each.shape, each.stride(), each.dtype, each.device, each.requires_grad) for each in tensors),
        )
        kind = self.kinds.get(key)
        if kind is not None and not kind.is_current():
            self.kinds.clear()
            kind = None
        if kind is None:
            return self._first(key, Arguments(self.eager, structure, constants), batch, kl_weight)
        if kind.gradients.has_failed:
            return self._run_eagerly(batch, kl_weight)
        self.parameters = kind.parameters
        self.calls += 1
        if self.calls % COMPARED_EVERY == 0:
            kind.gradients.compare()
        before = kind.gradients.compile_seconds
        loss = kind.gradients(tensors or kind.placeholder, kl_weight)
        self.compile_seconds += kind.gradients.compile_seconds - before
        return loss

    def value(self, batch: Call) -> Any:
        """Return the loss of a call, computed eagerly and without a gradient."""
        return self.eager.value(batch)

    def update(self, step: Callable[[], None]) -> None:
        """Make the optimizer's step."""
        step()

    def compare(self) -> None:
        """Do nothing, because :meth:`__call__` compares every hundredth call with an eager run."""

    def sync_buffers(self) -> None:
        """Do nothing, because there is only one process."""

    def _run_eagerly(self, batch: Call, kl_weight: float) -> Any:
        loss = self.eager(batch, kl_weight)
        self.parameters = self.eager.parameters
        return loss

    def _first(self, key: Any, arguments: "Arguments", batch: Call, kl_weight: float) -> Any:
        """Run the first call of a kind eagerly, and prepare the graph for later calls of the same kind."""
        with modules_that_run() as ran:
            loss = self._run_eagerly(batch, kl_weight)
        if isinstance(loss, tuple):
            self._warn("the objective returns several losses")
        elif len(self.kinds) == MAX_GRAPHS:
            self._warn(
                f"there are already {MAX_GRAPHS} graphs, for calls that differ in the shapes of tensors or in the "
                f"values of other arguments. Pass changing numbers as tensors, and batches of only a few shapes."
            )
        else:
            modules = {**{id(module): module for module in self.eager.module.modules()}, **ran}
            self.kinds[key] = Kind(arguments, self.parameters, list(modules.values()))
        return loss

    def _warn(self, reason: str) -> None:
        if reason not in self.warned:
            self.warned.add(reason)
            warnings.warn(f"SVI continues without compilation: {reason}", stacklevel=find_stack_level())


class _Varying:
    """Placeholder that marks the place of a tensor in a list of arguments; see :class:`Arguments`."""


class Arguments:
    """An objective as a function of the tensors in a call's arguments. All other arguments are constants.

    Args:
        eager: Uncompiled gradient of the objective.
        structure: Nesting of the arguments in tuples, lists and dictionaries, as torch's ``tree_flatten`` returns it.
        constants: Flat list of all arguments, with :class:`_Varying` in place of each tensor.
    """

    def __init__(self, eager: CallGradients, structure: Any, constants: list[Any]) -> None:
        self.eager, self.structure, self.constants = eager, structure, constants
        self.products = eager.products

    def __call__(self, batch: Batch, _kl_weight: float | Tensor) -> Any:
        """Return the loss and store its gradient."""
        tensors = iter(batch)
        leaves = [next(tensors) if each is _Varying else each for each in self.constants]
        args, kwargs = tree_unflatten(leaves, self.structure)
        objective, module = self.eager.loss, self.eager.module
        with pyro.validation_enabled(False), self.products():  # the first call was validated; graphs cannot validate
            if not hasattr(objective, "differentiable_loss"):
                return self.eager(Call(args, kwargs))
            loss = objective.differentiable_loss(module.model, module.guide, *args, **kwargs)
            if loss.requires_grad:
                loss.backward()
            return loss.detach()

    def value(self, batch: Batch) -> float:
        """Return the loss without computing a gradient."""
        tensors = iter(batch)
        leaves = [next(tensors) if each is _Varying else each for each in self.constants]
        return float(self.eager.value(Call(*tree_unflatten(leaves, self.structure))))


class Kind:
    """The compiled graph for all calls of one kind. The arguments of these calls differ only in the values of tensors.

    Args:
        arguments: The objective as a function of a call's tensors. It returns the loss and stores the gradient. The
            other arguments of the call are constants of this function, because all calls of this kind share them.
        parameters: Parameters that these calls train, by name.
        modules: Modules that the programs run.
    """

    def __init__(self, arguments: Arguments, parameters: Mapping[str, Tensor], modules: list[nn.Module]) -> None:
        self.parameters, self.modules = parameters, modules
        others = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        self.gradients = CompiledGradients(arguments, parameters, others, modules, weighted=False, caller="SVI")
        device = next(iter(parameters.values())).device if parameters else torch.device("cpu")
        self.placeholder = (torch.zeros(1, device=device),)  # for a call without tensors
        store = pyro.get_param_store()
        self.stored = {name: tensor for tensor in parameters.values() if (name := store.param_name(tensor)) is not None}
        self.modes = self._modes()

    def is_current(self) -> bool:
        """Return whether the graph is still valid.

        It is valid as long as Pyro's store holds the same trained parameters, and their ``requires_grad`` and the
        training modes of the modules are unchanged.
        """
        store = pyro.get_param_store()
        return self.modes == self._modes() and all(
            store._params.get(name) is tensor for name, tensor in self.stored.items()
        )

    def _modes(self) -> tuple[list[bool], list[bool]]:
        trained = [tensor.requires_grad for tensor in self.parameters.values()]
        return [module.training for module in self.modules], trained
