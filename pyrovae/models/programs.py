"""Pyro programs made of components: running and checking a component, and registering its parameters with Pyro.

The parameters belong to the module instead of Pyro's global store. Pyro's ELBOs and SVI look for ``param`` messages, so
each program emits a message for every parameter that it owns, under a name that no other program in memory uses.
Between calls, a program keeps no parameters outside its module. Copies, unpickled modules and exchanged components
therefore train their own parameters.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.runtime import Message, am_i_wrapped, apply_stack
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from pyrovae.arguments import check_whole, explained
from pyrovae.priors import Fixed

Component = Callable[..., dist.TorchDistribution]


class Program(nn.Module):
    """Pyro program that owns its components and their parameters.

    Attributes:
        names: Names of the components.
        peers: Other programs, such as the guide of a model. A component of this program may need their components; for
            example, a VampPrior needs the posterior. The programs are in a tuple, because an attribute that is itself a
            module would become a submodule.
        data_size: Number of data to which the loss is scaled; by default the size of the batch.
    """

    names: tuple[str, ...] = ()
    data_size: int | None = None
    peers: tuple["Program", ...] = ()

    def put(self, name: str, component: Any) -> None:
        """Set or exchange a component, which is a module or any other callable."""
        if "prior" in name and isinstance(component, torch.distributions.Distribution):
            made: Any = component
            component = Fixed(made)
        # A Pyro distribution is callable, but calling it makes a draw.
        if isinstance(component, torch.distributions.Distribution) or not callable(component):
            raise TypeError(
                f"the {name} must be a callable that returns a distribution, got {type(component).__name__}"
            )
        if isinstance(getattr(component, "__self__", None), nn.Module):
            raise TypeError(
                f"the {name} is the method {component.__qualname__} of a module. The parameters of this module would "
                f"not be trained. Pass the module itself, with this method as its forward method."
            )
        if hasattr(self, name):
            delattr(self, name)  # a module does not allow a plain callable to replace a submodule
        setattr(self, name, component)
        self.names = tuple(dict.fromkeys((*self.names, name)))

    def get(self, name: str) -> Component:
        """Return the component with the given name.

        A module that needs other components has a method ``bind_components``. For example, a VampPrior needs the
        posterior. Each call of ``get`` first calls ``bind_components`` of every such module with all components.
        """
        components: dict[str, Any] = self.components()
        for component in components.values():
            parts: Any = component.modules() if isinstance(component, nn.Module) else ()
            for part in parts:
                if hasattr(part, "bind_components"):
                    part.bind_components(**components)
        return components[name]

    def data_plate(self, x: Tensor) -> Any:
        """Return the plate over the first dimension of the data."""
        if self.data_size is not None and len(x) > self.data_size:
            raise ValueError(
                f"data_size={self.data_size}, but a batch has {len(x)} data. Set data_size to the size of the data set."
            )
        if self.data_size is None:
            return pyro.plate("data", len(x), dim=-1)
        return pyro.plate("data", self.data_size, subsample=torch.arange(len(x), device=x.device), dim=-1)

    def components(self) -> dict[str, Component]:
        """Return the components of this program and of its ``peers``, as a dictionary by name."""
        return {name: getattr(program, name) for program in (self, *self.peers) for name in program.names}


def run_component(
    role: str,
    component: Component,
    *context: Tensor,
    batch_shape: torch.Size,
    event_shape: torch.Size | None = None,
) -> Any:
    """Call a component, and return its distribution after checking the type, the parameters and the shapes.

    Raises:
        FloatingPointError: If the distribution has invalid parameters and a weight of the component is NaN or infinite.
        TypeError: If the component does not return a distribution, or does not take as many inputs as ``context`` has.
        ValueError: If the component fails with these inputs, or returns a distribution with invalid parameters or with
            another batch or event shape than expected.
    """
    try:
        with explained(role, *context):
            p = component(*context)
    except TypeError as error:
        if "positional argument" not in str(error):
            raise
        if isinstance(component, type):
            name = component.__name__
            raise TypeError(
                f"the {role} is the class {name} itself ({error}). Pass an instance, {name}(...)."
            ) from error
        shapes = [tuple(each.shape) if isinstance(each, Tensor) else type(each).__name__ for each in context]
        raise TypeError(
            f"the {role} does not take the {len(shapes)} inputs with which it is called, of shapes {shapes} ({error}). "
            f"Pass as many tensors as the component takes. For several inputs, use pyrovae.networks.Joint as network."
        ) from error
    except ValueError as error:
        refused = re.match(r"Expected parameter (\w+) \(.*? of shape (\(.*?\))\) of distribution (\w+)", str(error))
        if refused is None:
            raise
        raise _explain_invalid(role, component, context, *refused.groups()) from error
    if not isinstance(p, torch.distributions.Distribution):
        raise TypeError(
            f"the {role} returned a {type(p).__name__}, not a distribution. "
            f"Pass a callable that returns a distribution; for a fixed distribution d: lambda *context: d."
        )
    if p.batch_shape != batch_shape:
        raise ValueError(
            f"the {role} returned a distribution of batch shape {tuple(p.batch_shape)} and event shape "
            f"{tuple(p.event_shape)}. The required batch shape is {tuple(batch_shape)}, as in the input. "
            f"Declare event dimensions with .to_event(n), and keep every leading dimension of the input."
        )
    if event_shape is not None and p.event_shape != event_shape:
        raise ValueError(
            f"the {role} returned a distribution of event shape {tuple(p.event_shape)}, but the data have event shape "
            f"{tuple(event_shape)}. Reshape the data or the network's output.{_outputs(component)}"
        )
    return p


def _outputs(component: Component) -> str:
    """Return a sentence that says how many outputs a component needs for an entry of a datum, or "" for one output."""
    number = getattr(component, "num_parameters", 1)
    return f" {type(component).__name__} needs {number} outputs for each entry of a datum." if number > 1 else ""


def _explain_invalid(
    role: str, component: Component, context: tuple[Tensor, ...], parameter: str, shape: str, family: str
) -> Exception:
    """Return the error for a distribution with invalid parameters, with a remedy for the cause."""
    weights = component.parameters() if isinstance(component, nn.Module) else ()
    if not all(bool(weight.isfinite().all()) for weight in weights):
        return FloatingPointError(
            f"the model has diverged: {parameter} of a {family} is NaN or infinite. Check the parameters of the module "
            f"and the history of the training, and return to earlier weights, such as those of a checkpoint."
        )
    seen = context[0] if context else torch.zeros(1)
    largest = float(seen.abs().max())
    if largest < 100:
        remedy = (
            "Lower the learning rate, clip gradients (clip_norm=), or bound the scales, such as by min_scale= of a "
            "likelihood"
        )
    elif bool(((seen >= 0) & (seen == seen.round())).all()):
        remedy = "For counts, wrap the network: pyrovae.networks.log1p(network). Otherwise rescale the data to about 1"
    else:
        remedy = "Rescale the data: subtract their mean and divide by their standard deviation"
    return ValueError(
        f"the {role} returned a {family} with invalid {parameter} (zero, NaN or infinite) of shape {shape}. "
        f"The largest absolute value of the input is {largest:.4g}. {remedy}."
    )


def draw_latent(role: str, site: str, p: Any) -> Tensor:
    """Return the value that the guide has drawn for a latent site, or a draw from the prior if the guide has not run.

    Raises:
        ValueError: If the value has another event shape than the prior, because Pyro may broadcast such a value
            silently.
    """
    value: Tensor = pyro.sample(site, p)
    event_shape = value.shape[value.ndim - len(p.event_shape) :]
    if event_shape != p.event_shape:
        raise ValueError(
            f"site {site!r} comes from the posterior with event shape {tuple(event_shape)}, but the {role} has event "
            f"shape {tuple(p.event_shape)}. Give both the same number of latent dimensions; the network of a "
            f"DiagonalNormal has two outputs for each latent dimension."
        )
    return value


def check_number_of_data(n: int) -> None:
    """Check the number of data that ``generate`` draws.

    Raises:
        TypeError: If the number is not an integer.
        ValueError: If the number is negative.
    """
    check_whole(n=n)
    if n < 0:
        raise ValueError(f"generate: n={n}, the number of data, must be at least 0")


def draw(p: dist.TorchDistribution, mean: bool) -> Tensor:
    """Return a draw from a distribution, or its mean if ``mean`` is true."""
    value: Tensor = p.mean if mean else p.sample()
    return value


def emit_parameters(program: nn.Module) -> None:
    """Send a ``param`` message to Pyro's handlers for each trainable parameter, without using the parameter store.

    The value of the message is not the parameter but a second tensor with the same memory. SVI calls the method
    ``unconstrained()`` of this tensor to get the parameter. The parameter itself cannot have this method, because an
    additional attribute would break pickling.
    """
    if not am_i_wrapped():
        return
    for name, parameter in program.named_parameters():
        if parameter.requires_grad and not isinstance(parameter, UninitializedParameter):
            alias: Any = parameter.detach()
            alias.unconstrained = partial(_identity, parameter)
            message = Message(
                type="param",
                name=f"{name}@{id(program):x}",
                fn=_identity,
                is_observed=False,
                args=(alias,),
                kwargs={},
                value=alias,
                infer={},
                scale=1.0,
                mask=None,
                cond_indep_stack=(),
                done=False,
                stop=False,
                continuation=None,
            )
            apply_stack(message)
            if message["type"] != "param" or message["value"] is not alias:
                raise ValueError(
                    f"a handler (lift, substitute) replaces the parameter {name!r}, but the module would still use its "
                    f"own parameter. Use a component whose weights are pyro.nn.PyroSample instead."
                )


def _identity(parameter: Tensor) -> Tensor:
    return parameter
