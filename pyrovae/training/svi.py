"""``SVI`` with the interface of ``pyro.infer.SVI``; compilation and reduced precision are optional."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from pyro.infer import ELBO
from pyro.infer.util import torch_item
from pyro.optim import PyroOptim
from torch import Tensor

from pyrovae.isolation import isolated, program_device
from pyrovae.training.gradients import Gradients
from pyrovae.training.gradients.calls import Call, CallGradients
from pyrovae.training.optimizers import MakeOptimizer, as_optimizer
from pyrovae.training.programs import Pair, Program, name_of
from pyrovae.training.steps import Step

if TYPE_CHECKING:
    from pyrovae._compilation.precision import Precision


class SVI:
    """Stochastic variational inference for any program, with the interface of ``pyro.infer.SVI``.

    Without compilation, a step makes the same computation as Pyro's SVI, and the losses agree for the same seed. The
    trained parameters are those of ``pyro.param``, of ``pyro.module``, and of the modules to which model and guide
    belong.

    Args:
        model: Pyro program of p(x, z).
        guide: Pyro program of q(z | x).
        optim: An optimizer of ``pyro.optim``, including optimizers with options for each parameter, clipped optimizers
            and schedulers; or a function that takes parameters and returns an optimizer of torch, such as
            ``functools.partial(torch.optim.Adam, lr=1e-3)``.
        loss: A Pyro ELBO, or a function of model, guide and their arguments that returns the loss, shape ``()``.
        compile: If true, the gradient is compiled, and losses differ by rounding. Two calls are of the same kind if
            their arguments have the same structure, if tensors have the same shapes, strides and dtypes, and if other
            arguments have the same values. The first call of a kind runs eagerly. The second call compiles a graph,
            which takes 5 to 40 seconds. The graph reads tensors in closures at each call. All numbers and branches that
            come from Python code are fixed in the graph. Programs that cannot be compiled run eagerly after a warning
            that names the cause.
        precision: Precision of the products in linear and convolutional layers: ``"bfloat16"``, or ``"tf32"`` on CUDA.

    Raises:
        TypeError: If ``optim`` or ``loss`` has another type.
        ValueError: If the device does not support the precision.

    Example:
        >>> import pyro, torch, pyrovae as pv
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(0.0, scale), obs=x)
        >>> def guide(x): ...
        >>> svi = pv.SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), pyro.infer.Trace_ELBO())
        >>> x = 3 * torch.randn(1000, generator=torch.Generator().manual_seed(0))
        >>> losses = [svi.step(x) for _ in range(200)]
        >>> bool((pyro.param("scale") - x.square().mean().sqrt()).abs() < 0.01)
        True
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        optim: PyroOptim | MakeOptimizer,
        loss: ELBO | Callable[..., Any],
        *,
        compile: bool = False,  # noqa: A002  # torch uses this name
        precision: Precision | None = None,
    ) -> None:
        if not (isinstance(loss, ELBO) or callable(loss)) or isinstance(loss, type):
            raise TypeError(f"loss must be a Pyro ELBO such as Trace_ELBO(), or a function, got {loss!r}")
        self.model, self.guide, self.optim, self.loss = model, guide, optim, loss
        self._module = Pair(model, guide)
        self._optimizer = as_optimizer(optim)
        self._eager = CallGradients(self._module, loss, self._products(precision))
        self._step = Step(self._gradients(compile), self._optimizer, None, (name_of(self._module), "the loss"))
        self._pending: dict[str, Any] | None = None

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Make a step along the gradient of the loss.

        Args:
            *args: Arguments of model and guide.
            **kwargs: Keyword arguments of model and guide.

        Returns:
            The loss as a float, or a tuple of floats if the objective has several losses.

        Raises:
            ValueError: If no parameter gets a gradient.
        """
        call = Call(args, kwargs)
        self._restore(call)
        (loss,) = self._step([call])
        return _as_float(loss)

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Return the loss without making a step.

        Args:
            *args: Arguments of model and guide.
            **kwargs: Keyword arguments of model and guide.

        Returns:
            The loss as a float, or a tuple of floats if the objective has several losses.
        """
        call = Call(args, kwargs)
        self._restore(call)
        return _as_float(self._eager.value(call))

    def state_dict(self) -> dict[str, Any]:
        """Return the parameters, buffers and the state of the optimizer, as tensors and plain values.

        Returns:
            The state, which can be written by ``torch.save`` and read by ``torch.load(weights_only=True)``. Parameters
            have their unconstrained values.
        """
        if self._pending is not None:
            return self._pending
        return {
            "tensors": {name: tensor.detach().clone() for name, tensor in self._tensors().items()},
            "optimizer": self._optimizer.state_dict(self._eager.seen),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that :meth:`state_dict` returned.

        Programs and optimizer must have the same structure as in the saved run. The state may come from another
        process. Parameters that the programs make with ``pyro.param`` get their values at the next call of :meth:`step`
        or :meth:`evaluate_loss`.

        Args:
            state: State that :meth:`state_dict` returned.
        """
        self._pending = state
        known = self._tensors()
        for name in known.keys() & state["tensors"].keys():
            _copy(known[name], state["tensors"][name])

    def _restore(self, call: Call) -> None:
        """Finish :meth:`load_state_dict` in the next call of the programs.

        The programs must run once to create the parameters of ``pyro.param``, and a run needs the arguments of a call.
        """
        if self._pending is None:
            return
        with isolated(self.model, self.guide, seed=0):
            self._eager.discover(call)
        known = self._tensors()
        for name, value in self._pending["tensors"].items():
            if name not in known:
                raise ValueError(
                    f"the state holds {name!r}, but model and guide have no parameter or buffer of this name. Use the "
                    f"model and guide with which the state was saved."
                )
            _copy(known[name], value)
        self._optimizer.load_state_dict(self._pending["optimizer"], self._eager.seen)
        self._pending = None

    def _tensors(self) -> dict[str, Tensor]:
        return {**self._eager.seen, **dict(self._module.named_parameters()), **dict(self._module.named_buffers())}

    def _products(self, precision: Precision | None) -> Any:
        if precision is None:
            return nullcontext
        from pyrovae.training.gradients.compiled import products_in

        default = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return products_in(precision, program_device(self.model, self.guide, default=default))

    def _gradients(self, is_compiled: bool) -> Gradients:
        if not is_compiled:
            return self._eager
        from pyrovae.training.gradients.compiled_calls import CompiledCallGradients

        return CompiledCallGradients(self._eager)


@torch.no_grad()
def _copy(tensor: Tensor, value: Tensor) -> None:
    if tensor.shape != value.shape:
        raise ValueError(
            f"the state holds a tensor of shape {tuple(value.shape)} for a parameter of shape {tuple(tensor.shape)}. "
            f"Build the programs as they were built when the state was saved."
        )
    tensor.copy_(value)


def _as_float(loss: Any) -> Any:
    return type(loss)(map(torch_item, loss)) if isinstance(loss, tuple) else torch_item(loss)
