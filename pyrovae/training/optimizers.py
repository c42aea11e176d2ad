"""Optimizers of torch and of Pyro behind one protocol, with methods that clear gradients and update parameters."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import pyro
import torch
from pyro.optim import PyroOptim
from pyro.optim.optim import _load_state_dict
from torch import Tensor

MakeOptimizer = Callable[[Iterable[Tensor]], torch.optim.Optimizer]


class Optimizer(Protocol):
    """Interface of an optimizer for a training step.

    Attributes:
        name: Name of the optimizer's class.
    """

    @property
    def name(self) -> str:
        """Return the name of the optimizer's class."""

    def zero_grad(self) -> None:
        """Set the gradients of all parameters to None."""

    def step(self, parameters: Mapping[str, Tensor]) -> None:
        """Update parameters along their gradients."""

    def state_dict(self, parameters: Mapping[str, Tensor], /) -> dict[str, Any]:
        """Return the state as tensors and plain values."""

    def load_state_dict(self, state: dict[str, Any], parameters: Mapping[str, Tensor]) -> None:
        """Restore a state that :meth:`state_dict` returned."""


class TorchOptimizer:
    """An optimizer of torch. The first step that receives a new parameter adds this parameter to the optimizer.

    Args:
        make: Function that takes parameters and returns the optimizer. It is called once, when parameters are known.
        parameters: Parameters that are known before the first step, if any.
        clip_norm: Largest norm of the gradient over all parameters.

    Attributes:
        optimizer: The optimizer of torch, available once there are parameters.
    """

    optimizer: torch.optim.Optimizer

    def __init__(
        self, make: MakeOptimizer, parameters: Mapping[str, Tensor] | None = None, clip_norm: float | None = None
    ) -> None:
        self.make, self.clip_norm = make, clip_norm
        self.names: dict[int, str] = {}
        self.last: Mapping[str, Tensor] | None = None
        if parameters is not None:
            self._add(parameters)

    @property
    def name(self) -> str:
        """Return the name of the optimizer's class."""
        return type(self.optimizer).__name__

    def zero_grad(self) -> None:
        """Set the gradients of all parameters to None."""
        if self.names:
            self.optimizer.zero_grad()

    def step(self, parameters: Mapping[str, Tensor]) -> None:
        """Update parameters along their gradients; parameters without a gradient are left unchanged."""
        if parameters is not self.last:
            self._add(parameters)
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(list(parameters.values()), self.clip_norm)
        self.optimizer.step()

    def state_dict(self, _parameters: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the optimizer's state dict, and the names of the parameters in the order of this state dict."""
        if not self.names:
            return {}
        return {"names": list(self.names.values()), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any], parameters: Mapping[str, Tensor]) -> None:
        """Restore a state that :meth:`state_dict` returned.

        Parameters that the optimizer does not hold yet are added first, in the order of the state, because torch's
        state dict refers to parameters by position.
        """
        if not state:
            return
        new = {name: parameters[name] for name in state["names"] if id(parameters[name]) not in self.names}
        for name, tensor in new.items():
            self._add({name: tensor} if self.names else new)
        self.optimizer.load_state_dict(state["optimizer"])

    def _add(self, parameters: Mapping[str, Tensor]) -> None:
        new = {name: tensor for name, tensor in parameters.items() if id(tensor) not in self.names}
        if new and not self.names:
            self.optimizer = self.make(new.values())
        elif new:
            self.optimizer.add_param_group({"params": list(new.values())})
        self.names |= {id(tensor): name for name, tensor in new.items()}
        self.last = parameters


class PyroOptimizer:
    """An optimizer of Pyro, which consists of one optimizer of torch for each parameter.

    Args:
        optimizer: Optimizer such as ``pyro.optim.Adam({"lr": 1e-3})``, a clipped optimizer, or a scheduler.
    """

    def __init__(self, optimizer: PyroOptim) -> None:
        self.optimizer = optimizer
        self.with_gradient: set[Tensor] = set()

    @property
    def name(self) -> str:
        """Return the name of the optimizer's class."""
        return type(self.optimizer).__name__

    def zero_grad(self) -> None:
        """Set the gradients of all parameters to None."""
        for parameter in self.with_gradient:
            parameter.grad = None

    def step(self, parameters: Mapping[str, Tensor]) -> None:
        """Update parameters along their gradients.

        After a step, Pyro's SVI sets gradients to zero, not to None. The momentum of the optimizer therefore moves a
        parameter that once had a gradient, even if the current loss does not depend on it. To get the same updates,
        this method gives such a parameter a gradient of zeros.
        """
        for parameter in parameters.values():
            if parameter.grad is not None:
                self.with_gradient.add(parameter)
            elif parameter in self.with_gradient:
                parameter.grad = torch.zeros_like(parameter)
        with _named(parameters):
            self.optimizer(parameters.values())

    def state_dict(self, parameters: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the states of the optimizers, each by the name of the parameter that it updates."""
        with _named(parameters):
            return dict(self.optimizer.get_state())

    def load_state_dict(self, state: dict[str, Any], parameters: Mapping[str, Tensor]) -> None:
        """Restore states that :meth:`state_dict` returned.

        A parameter that the optimizer has not updated yet gets its state at its first update.
        """
        with _named(parameters):
            store = pyro.get_param_store()
            known = {
                str(store.param_name(tensor)): optimizer for tensor, optimizer in self.optimizer.optim_objs.items()
            }
        for name in known.keys() & state.keys():
            _load_state_dict(known[name], state[name])
        self.optimizer.set_state({name: each for name, each in state.items() if name not in known})


@contextmanager
def _named(parameters: Mapping[str, Tensor]) -> Iterator[None]:
    """Context manager: give Pyro a name for each parameter that is not in Pyro's parameter store.

    Pyro needs these names because it looks up the options and states of its optimizers by parameter name.
    """
    names = pyro.get_param_store()._param_to_name
    added = {tensor: name for name, tensor in parameters.items() if tensor not in names}
    names.update(added)
    try:
        yield
    finally:
        for tensor in added:
            names.pop(tensor, None)


def as_optimizer(optim: Any) -> Optimizer:
    """Wrap an optimizer of Pyro, or a function that returns an optimizer of torch, as an :class:`Optimizer`.

    Raises:
        TypeError: If ``optim`` is neither an optimizer of Pyro nor a function.
    """
    if isinstance(optim, PyroOptim):
        return PyroOptimizer(optim)
    if isinstance(optim, torch.optim.Optimizer) or not callable(optim):
        raise TypeError(
            f"optim must be an optimizer of pyro.optim, or a function that takes parameters and returns an optimizer "
            f"of torch, got {type(optim).__name__}. Pass pyro.optim.Adam({{'lr': 1e-3}}) or "
            f"functools.partial(torch.optim.Adam, lr=1e-3)."
        )
    return TorchOptimizer(optim)
