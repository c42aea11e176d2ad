r"""A variational autoencoder: three conditional distributions as a Pyro ``model`` and ``guide``.

.. math:: p(x, z) = p(z)\, p(x \mid z), \qquad q(z \mid x) \approx p(z \mid x).

The parameters belong to the module, not to Pyro's global store. Pyro's ELBOs and SVI look for ``param`` messages, so
each program emits one for every parameter that it owns, under a name that no other living program has. Nothing is kept
between calls: copies, unpickled modules and exchanged components train their own parameters.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.runtime import Message, am_i_wrapped, apply_stack
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

Component = Callable[..., dist.TorchDistribution]


class VAE(nn.Module):
    """A variational autoencoder, made of any three callables that return distributions.

    ``model(x)`` and ``guide(x)`` are ordinary Pyro programs for ``x``, shape ``(N, *event)``: one plate ``"data"`` over
    its first dimension, the latent site ``"z"``, the observed site ``"x"``. They are modules too, so that all of these
    train every parameter: :class:`pyro.infer.SVI`, ``Trace_ELBO()(vae.model, vae.guide)`` under a torch optimizer, and
    :func:`pyrovae.fit`. A component can be exchanged at any time: ``vae.prior = my_prior``.

    The parameters belong to this module and have no names in Pyro's parameter store. So of Pyro's tools those that look
    parameters up there by name do not apply: ``JitTrace_ELBO``, per-parameter options and saved states of
    :mod:`pyro.optim` (torch's optimizers and ``state_dict`` do both), ``poutine.lift``.

    Args:
        prior: ``prior()`` returns p(z), event shape ``(latent,)``.
        likelihood: ``likelihood(z)`` returns p(x | z) with batch shape ``z.shape[:-1]`` and the event shape of ``x``.
        posterior: ``posterior(x)`` returns q(z | x) with batch shape ``(N,)`` and event shape ``(latent,)``.

    Raises:
        TypeError: If a component is not callable or, when run, does not return a distribution.
        ValueError: When run, if a component's shapes are not those above.

    Source:
        *Auto-Encoding Variational Bayes* (Kingma and Welling, 2014).

    Example:
        >>> import torch, pyrovae as pv
        >>> vae = pv.VAE(
        ...     prior=pv.priors.StandardNormal(5),
        ...     likelihood=pv.likelihoods.Bernoulli(pv.networks.mlp(5, 32, (8, 8))),
        ...     posterior=pv.posteriors.DiagonalNormal(pv.networks.mlp((8, 8), 32, 2 * 5)),
        ... )
        >>> vae.generate(3).shape
        torch.Size([3, 8, 8])
    """

    def __init__(self, prior: Component, likelihood: Component, posterior: Component) -> None:
        super().__init__()
        self.model = Model(prior, likelihood)
        self.guide = Guide(posterior)

    @property
    def prior(self) -> Component:
        """The prior, ``() -> p(z)``."""
        return self.model.prior

    @property
    def likelihood(self) -> Component:
        """The likelihood, ``z -> p(x | z)``."""
        return self.model.likelihood

    @property
    def posterior(self) -> Component:
        """The approximate posterior, ``x -> q(z | x)``."""
        return self.guide.posterior

    def __setattr__(self, name: str, value: Any) -> None:
        # A module's own __setattr__ would register an exchanged component here and leave the program with the old one.
        if name in ("prior", "likelihood"):
            self.model.put(name, value)
        elif name == "posterior":
            self.guide.put(name, value)
        else:
            super().__setattr__(name, value)

    @torch.no_grad()
    def generate(self, n: int, *, mean: bool = False) -> Tensor:
        """Draws data by ancestral sampling: ``z ~ p(z)``, then ``x ~ p(x | z)``.

        Args:
            n: Number of draws.
            mean: Whether to return E[x | z] instead of a draw of x, as figures of digits usually do.

        Returns:
            Tensor, shape ``(n, *event)``.

        Raises:
            ValueError: If ``n`` is negative.
        """
        if n < 0:
            raise ValueError(f"generate draws n >= 0 data, got n={n}")
        return _draw(self.likelihood(self.prior().sample((n,))), mean)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *, mean: bool = False) -> Tensor:
        """Draws data like ``x`` from the posterior predictive: ``z ~ q(z | x)``, then ``x' ~ p(x' | z)``.

        Args:
            x: Data, shape ``(N, *event)``.
            mean: Whether to return E[x' | z] instead of a draw of x'.

        Returns:
            Tensor, shape ``(N, *event)``.
        """
        return _draw(self.likelihood(self.posterior(x).sample()), mean)


class _Program(nn.Module):
    """A Pyro program that owns its components."""

    def put(self, name: str, component: Component) -> None:
        """Sets or exchanges a component, be it a module or any other callable."""
        if not callable(component):
            raise TypeError(
                f"the {name} must be a callable that returns a distribution, got {type(component).__name__}"
            )
        if isinstance(getattr(component, "__self__", None), nn.Module):
            raise TypeError(
                f"the {name} is the method {component.__qualname__} of a module, whose parameters would never train; "
                f"make it the module's forward and pass the module"
            )
        if hasattr(self, name):
            delattr(self, name)  # a module does not let a plain callable take the place of a submodule
        setattr(self, name, component)


class Model(_Program):
    """The Pyro model of a VAE, ``p(z) p(x | z)``."""

    prior: Component
    likelihood: Component

    def __init__(self, prior: Component, likelihood: Component) -> None:
        super().__init__()
        self.put("prior", prior)
        self.put("likelihood", likelihood)

    def forward(self, x: Tensor) -> None:
        """Runs the model on data ``x``, shape ``(N, *event)``."""
        _emit_parameters(self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", _run("prior", self.prior, batch_shape=torch.Size()))
            p = _run("likelihood", self.likelihood, z, batch_shape=z.shape[:-1], event_shape=x.shape[1:])
            pyro.sample("x", p, obs=x)


class Guide(_Program):
    """The Pyro guide of a VAE, ``q(z | x)``."""

    posterior: Component

    def __init__(self, posterior: Component) -> None:
        super().__init__()
        self.put("posterior", posterior)

    def forward(self, x: Tensor) -> None:
        """Runs the guide on data ``x``, shape ``(N, *event)``."""
        _emit_parameters(self)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", _run("posterior", self.posterior, x, batch_shape=x.shape[:1]))


def _run(
    role: str,
    component: Component,
    *context: Tensor,
    batch_shape: torch.Size,
    event_shape: torch.Size | None = None,
) -> Any:
    """Returns a component's distribution, or says how it breaks the contract."""
    try:
        p = component(*context)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # what torch raises for shapes and dtypes that do not fit
        given = " and ".join(f"a tensor of shape {tuple(tensor.shape)}, {tensor.dtype}" for tensor in context)
        raise ValueError(
            f"the {role} cannot take {given or 'no context'} ({str(error).splitlines()[0]}); give it data of the shape "
            f"and dtype that its network takes, or a network that takes these"
        ) from error
    if not isinstance(p, torch.distributions.Distribution):
        raise TypeError(
            f"the {role} returned a {type(p).__name__}, not a distribution; "
            f"a component is a callable that returns one (for a fixed distribution d: lambda *context: d)"
        )
    if p.batch_shape != batch_shape:
        raise ValueError(
            f"the {role} returned a distribution of batch shape {tuple(p.batch_shape)} and event shape "
            f"{tuple(p.event_shape)}, expected batch shape {tuple(batch_shape)}, that of its context; "
            f"declare event dimensions with .to_event(n), and keep every leading dimension of the input"
        )
    if event_shape is not None and p.event_shape != event_shape:
        raise ValueError(
            f"the {role} returned a distribution of event shape {tuple(p.event_shape)}, but a datum of x has "
            f"shape {tuple(event_shape)}; reshape x or the network's output"
        )
    return p


def _draw(p: dist.TorchDistribution, mean: bool) -> Tensor:
    draw: Tensor = p.mean if mean else p.sample()
    return draw


def _emit_parameters(program: nn.Module) -> None:
    """Sends Pyro's handlers a ``param`` message for each trainable parameter, leaving the parameter store alone.

    SVI asks the value of such a message for its ``unconstrained()`` tensor, and that must be the parameter itself. The
    value is an alias made for this call, so that no attribute is left on the parameter to break pickling.
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
                    f"a handler (lift, substitute) takes over the parameter {name!r}, but the module would go on using "
                    f"its own; make a component whose weights are pyro.nn.PyroSample instead"
                )


def _identity(parameter: Tensor) -> Tensor:
    return parameter
