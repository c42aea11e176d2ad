r"""Variational autoencoders with several latent layers.

.. math:: p(x, z) = p(z_L) \prod_{l < L} p(z_l \mid z_{l+1}) \; p(x \mid z_1),

with the posterior bottom-up, :math:`q(z_1 \mid x) \prod_{l > 1} q(z_l \mid z_{l-1})`, or top-down,
:math:`q(z_L \mid x) \prod_{l < L} q(z_l \mid x, z_{l+1})`.
"""

from collections.abc import Sequence
from typing import Any, Literal

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyrovae.arguments import as_tensors
from pyrovae.components import DescribedModel
from pyrovae.models.programs import (
    Component,
    Program,
    check_number_of_data,
    draw,
    draw_latent,
    emit_parameters,
    run_component,
)

Inference = Literal["bottom-up", "top-down"]


class HierarchicalVAE(DescribedModel):
    """Variational autoencoder with latent sites ``"z1"``, ``"z2"``, ..., where ``"z1"`` is closest to the data.

    Like :class:`pyrovae.VAE`, it has a ``model(x)`` and a ``guide(x)``, which work with ``fit``, every objective and
    every evaluation. Components can be exchanged: ``vae.likelihood = ...``, ``vae.priors = (..., ...)``. The arguments
    of three published models are:

    * The two-layer network of the IWAE paper: ``inference="bottom-up"``.
    * Top-down (ladder) inference: ``inference="top-down"``.
    * The two-level model of the VampPrior paper: ``inference="top-down", skip=True`` and a ``VampPrior`` as the last
      prior.

    A conditional prior is any callable that takes the latent of the layer above and returns a distribution, such as a
    ``pyrovae.posteriors.DiagonalNormal``. A component that takes several inputs needs a :class:`pyrovae.networks.Joint`
    network.

    Args:
        priors: ``(p(z1 | z2), ..., p(zL))``: each prior is called with the latent of the layer above, except
            the last prior, which is called without arguments.
        likelihood: ``p(x | z1)``, called as ``likelihood(z1)``. If ``skip`` is true, it is called with all latents.
        posteriors: ``(q(z1 | ...), ..., q(zL | ...))``. For bottom-up inference, the first posterior is called as
            ``q(x)``, and each other posterior with the latent of the layer below. For top-down inference, the last
            posterior is called as ``q(x)``, and each other posterior as ``q(x, z_above)`` with the latent of the layer
            above.
        inference: ``"bottom-up"`` or ``"top-down"``.
        skip: If true, the likelihood depends on all latents instead of only ``z1``.

    Raises:
        TypeError: If a component is not callable or, when run, does not return a distribution.
        ValueError: If the numbers of priors and posteriors differ or are zero, or ``inference`` is unknown. When run,
            if shapes do not fit.

    Source:
        *Importance Weighted Autoencoders* (Burda, Grosse and Salakhutdinov, 2016); *Ladder Variational Autoencoders*
        (Sønderby et al., 2016); *VAE with a VampPrior* (Tomczak and Welling, 2018).

    Example:
        >>> import pyro, torch, pyrovae as pv
        >>> normal, mlp = pv.posteriors.DiagonalNormal, pv.networks.mlp
        >>> vae = pv.HierarchicalVAE(
        ...     priors=(normal(mlp(3, 16, 2 * 5)), pv.priors.StandardNormal(3)),
        ...     likelihood=pv.likelihoods.Bernoulli(mlp(5, 16, (8, 8))),
        ...     posteriors=(normal(mlp((8, 8), 16, 2 * 5)), normal(mlp(5, 16, 2 * 3))),
        ... )
        >>> vae.generate(7).shape
        torch.Size([7, 8, 8])
        >>> pyro.poutine.trace(vae.guide).get_trace(torch.zeros(7, 8, 8)).stochastic_nodes
        ['data', 'z1', 'z2']
    """

    def __init__(
        self,
        priors: Sequence[Component],
        likelihood: Component,
        posteriors: Sequence[Component],
        *,
        inference: Inference = "bottom-up",
        skip: bool = False,
    ) -> None:
        super().__init__()
        if not priors or len(priors) != len(posteriors):
            raise ValueError(
                f"HierarchicalVAE: got {len(priors)} priors and {len(posteriors)} posteriors. Pass one prior and one "
                f"posterior for every latent layer."
            )
        if inference not in ("bottom-up", "top-down"):
            raise ValueError(f"HierarchicalVAE: inference={inference!r} must be 'bottom-up' or 'top-down'")
        self.model = HierarchicalModel(priors, likelihood, skip=skip)
        self.guide = HierarchicalGuide(posteriors, inference)
        self.model.peers, self.guide.peers = (self.guide,), (self.model,)

    @property
    def priors(self) -> tuple[Component, ...]:
        """The priors, starting with the prior of z1."""
        return tuple(self.model.get(f"prior{layer}") for layer in self.model.layers)

    @property
    def likelihood(self) -> Component:
        """The likelihood: ``z1 -> p(x | z1)``, or a function of all latents if ``skip`` is true."""
        return self.model.get("likelihood")

    @property
    def posteriors(self) -> tuple[Component, ...]:
        """The posteriors, starting with the posterior of z1."""
        return tuple(self.guide.get(f"posterior{layer}") for layer in self.guide.layers)

    @property
    def inference(self) -> Inference:
        """The direction of inference, ``"bottom-up"`` or ``"top-down"``."""
        return self.guide.inference

    @property
    def skip(self) -> bool:
        """If true, the likelihood depends on all latents."""
        return self.model.skip

    def __setattr__(self, name: str, value: Any) -> None:
        # As in VAE, an exchanged component is registered in its program.
        if name == "likelihood":
            self.model.put(name, value)
        elif name in ("priors", "posteriors"):
            program = self.model if name == "priors" else self.guide
            if len(value) != len(program.layers):
                raise ValueError(f"HierarchicalVAE: got {len(value)} {name} for {len(program.layers)} latent layers")
            for layer, component in zip(program.layers, value, strict=True):
                program.put(f"{name[:-1]}{layer}", component)
        else:
            super().__setattr__(name, value)

    @torch.no_grad()
    def generate(self, n: int, *, mean: bool = False) -> Tensor:
        """Draw data by ancestral sampling, from the top layer down.

        Args:
            n: Number of draws.
            mean: If true, E[x | z] is returned instead of a draw of x.

        Returns:
            Tensor, shape ``(n, *event)``.

        Raises:
            TypeError: If ``n`` is not an integer.
            ValueError: If ``n`` is negative.
        """
        check_number_of_data(n)
        *conditionals, top = self.priors
        latents = [top().sample((n,))]
        for conditional in reversed(conditionals):
            latents.insert(0, conditional(latents[0]).sample())
        return draw(self.likelihood(*latents[: None if self.model.skip else 1]), mean)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *, mean: bool = False) -> Tensor:
        """Draw data like ``x`` from the posterior predictive distribution.

        Args:
            x: Data, shape ``(N, *event)``.
            mean: If true, E[x' | z] is returned instead of a draw of x'.

        Returns:
            Tensor, shape ``(N, *event)``.
        """
        as_tensors("x", x)
        latents = poutine.trace(self.guide).get_trace(x)
        likelihood: Any = poutine.trace(poutine.replay(self.model, latents)).get_trace(x).nodes["x"]["fn"]
        return draw(likelihood, mean)


class _Layered(Program):
    """Program with several latent layers, numbered from the data upwards."""

    layers: range

    def components(self) -> dict[str, Component]:
        """Return a dictionary of all components by name.

        The top layer's posterior also has the name ``posterior``, because a VampPrior needs a component of this name.
        """
        components = super().components()
        return components | {"posterior": components[f"posterior{len(self.layers)}"]}


class HierarchicalModel(_Layered):
    """The Pyro model of a hierarchical VAE."""

    def __init__(self, priors: Sequence[Component], likelihood: Component, *, skip: bool) -> None:
        super().__init__()
        self.layers, self.skip = range(1, len(priors) + 1), skip
        for layer, prior in zip(self.layers, priors, strict=True):
            self.put(f"prior{layer}", prior)
        self.put("likelihood", likelihood)

    def forward(self, x: Tensor) -> None:
        """Run the model on data ``x``, shape ``(N, *event)``."""
        emit_parameters(self)
        with self.data_plate(x):
            latents: list[Tensor] = []
            for layer in reversed(self.layers):
                above = latents[:1]
                batch_shape = above[0].shape[:-1] if above else torch.Size()
                role = f"prior of z{layer}"
                p = run_component(role, self.get(f"prior{layer}"), *above, batch_shape=batch_shape)
                latents.insert(0, draw_latent(role, f"z{layer}", p))
            seen = latents if self.skip else latents[:1]
            batch_shape = torch.broadcast_shapes(*(z.shape[:-1] for z in seen))
            likelihood = self.get("likelihood")
            p = run_component("likelihood", likelihood, *seen, batch_shape=batch_shape, event_shape=x.shape[1:])
            pyro.sample("x", p, obs=x)


class HierarchicalGuide(_Layered):
    """The Pyro guide of a hierarchical VAE."""

    def __init__(self, posteriors: Sequence[Component], inference: Inference) -> None:
        super().__init__()
        self.layers, self.inference = range(1, len(posteriors) + 1), inference
        for layer, posterior in zip(self.layers, posteriors, strict=True):
            self.put(f"posterior{layer}", posterior)

    def forward(self, x: Tensor) -> None:
        """Run the guide on data ``x``, shape ``(N, *event)``."""
        emit_parameters(self)
        with self.data_plate(x):
            batch_shape = x.shape[:1]
            context: tuple[Tensor, ...] = (x,)
            for layer in self.layers if self.inference == "bottom-up" else reversed(self.layers):
                posterior = self.get(f"posterior{layer}")
                q = run_component(f"posterior of z{layer}", posterior, *context, batch_shape=batch_shape)
                z = pyro.sample(f"z{layer}", q)
                context = (z,) if self.inference == "bottom-up" else (x, z)
                batch_shape = torch.broadcast_shapes(x.shape[:1], z.shape[:-1])
