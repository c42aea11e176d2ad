r"""A variational autoencoder: three conditional distributions as a Pyro ``model`` and ``guide``.

.. math:: p(x, z) = p(z)\, p(x \mid z), \qquad q(z \mid x) \approx p(z \mid x).
"""

from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyrovae.arguments import as_tensors, check_whole
from pyrovae.models.programs import Component, Program, draw, draw_latent, emit_parameters, run_component


class VAE(nn.Module):
    """A variational autoencoder, made of any three callables that return distributions.

    ``model(x)`` and ``guide(x)`` are ordinary Pyro programs for ``x``, shape ``(N, *event)``: one plate ``"data"`` over
    its first dimension, the latent site ``"z"``, the observed site ``"x"``. They are modules too, so that all of these
    train every parameter: :class:`pyro.infer.SVI`, ``Trace_ELBO()(vae.model, vae.guide)`` under a torch optimizer, and
    :func:`pyrovae.fit`. A component can be exchanged at any time: ``vae.prior = my_prior``.

    Data may be several tensors, ``model(x, *given)``: labels, or which entries were observed. These are then given: the
    likelihood is called as ``likelihood(z, *given)`` and the posterior as ``posterior(x, *given)``.

    The parameters belong to this module and have no names in Pyro's parameter store. So of Pyro's tools those that look
    parameters up there by name do not apply: ``JitTrace_ELBO``, per-parameter options and saved states of
    :mod:`pyro.optim` (torch's optimizers and ``state_dict`` do both), ``poutine.lift``.

    Args:
        prior: ``prior()`` returns p(z), event shape ``(latent,)``; a distribution will do.
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
        self.model.peers, self.guide.peers = (self.guide,), (self.model,)

    @property
    def prior(self) -> Component:
        """The prior, ``() -> p(z)``."""
        return self.model.get("prior")

    @property
    def likelihood(self) -> Component:
        """The likelihood, ``z -> p(x | z)``."""
        return self.model.get("likelihood")

    @property
    def posterior(self) -> Component:
        """The approximate posterior, ``x -> q(z | x)``."""
        return self.guide.get("posterior")

    def __setattr__(self, name: str, value: Any) -> None:
        # A module's own __setattr__ would register an exchanged component here and leave the program with the old one.
        if name in ("prior", "likelihood"):
            self.model.put(name, value)
        elif name == "posterior":
            self.guide.put(name, value)
        else:
            super().__setattr__(name, value)

    @torch.no_grad()
    def generate(self, n: int, *given: Tensor, mean: bool = False) -> Tensor:
        """Draws data by ancestral sampling: ``z ~ p(z)``, then ``x ~ p(x | z)``.

        Args:
            n: Number of draws.
            *given: What the likelihood is told beside z, such as labels, each of shape ``(n, *event)``.
            mean: Whether to return E[x | z] instead of a draw of x, as figures of digits usually do.

        Returns:
            Tensor, shape ``(n, *event)``.

        Raises:
            TypeError: If ``n`` is no integer.
            ValueError: If ``n`` is negative.
        """
        check_whole(n=n)
        if n < 0:
            raise ValueError(f"generate draws n >= 0 data, got n={n}")
        return draw(self.likelihood(self.prior().sample((n,)), *given), mean)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *given: Tensor, mean: bool = False) -> Tensor:
        """Draws data like ``x`` from the posterior predictive: ``z ~ q(z | x)``, then ``x' ~ p(x' | z)``.

        Args:
            x: Data, shape ``(N, *event)``.
            *given: What likelihood and posterior are told beside, such as labels, each of shape ``(N, *event)``.
            mean: Whether to return E[x' | z] instead of a draw of x'.

        Returns:
            Tensor, shape ``(N, *event)``.

        Raises:
            TypeError: If the data are not floating-point tensors.
            ValueError: If they are empty, not finite, or of a shape or dtype that the components do not take.
        """
        data = as_tensors("x", (x, *given))
        z = run_component("posterior", self.posterior, *data, batch_shape=x.shape[:1]).sample()
        return draw(run_component("likelihood", self.likelihood, z, *given, batch_shape=x.shape[:1]), mean)


class Model(Program):
    """The Pyro model of a VAE, ``p(z) p(x | z)``."""

    def __init__(self, prior: Component, likelihood: Component) -> None:
        super().__init__()
        self.put("prior", prior)
        self.put("likelihood", likelihood)

    def forward(self, x: Tensor, *given: Tensor) -> None:
        """Runs the model on data ``x``, shape ``(N, *event)``."""
        emit_parameters(self)
        with self.data_plate(x):
            prior = run_component("prior", self.get("prior"), batch_shape=torch.Size())
            z = draw_latent("prior", "z", prior)
            likelihood = self.get("likelihood")
            pyro.sample(
                "x",
                run_component("likelihood", likelihood, z, *given, batch_shape=z.shape[:-1], event_shape=x.shape[1:]),
                obs=x,
            )


class Guide(Program):
    """The Pyro guide of a VAE, ``q(z | x)``."""

    def __init__(self, posterior: Component) -> None:
        super().__init__()
        self.put("posterior", posterior)

    def forward(self, x: Tensor, *given: Tensor) -> None:
        """Runs the guide on data ``x``, shape ``(N, *event)``."""
        emit_parameters(self)
        with self.data_plate(x):
            posterior = self.get("posterior")
            pyro.sample("z", run_component("posterior", posterior, x, *given, batch_shape=x.shape[:1]))
