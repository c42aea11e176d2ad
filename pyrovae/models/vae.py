r"""A variational autoencoder: three conditional distributions as a Pyro ``model`` and ``guide``.

.. math:: p(x, z) = p(z)\, p(x \mid z), \qquad q(z \mid x) \approx p(z \mid x).
"""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.arguments import as_tensors
from pyrovae.components import DescribedModel
from pyrovae.data.column_names import check_column_names
from pyrovae.data.sources import as_source
from pyrovae.models.programs import (
    Component,
    Program,
    check_number_of_data,
    draw,
    draw_latent,
    emit_parameters,
    run_component,
)


class VAE(DescribedModel):
    """Variational autoencoder made of three callables that return distributions.

    ``model(x)`` and ``guide(x)`` are ordinary Pyro programs for ``x``, shape ``(N, *event)``, with one plate ``"data"``
    over the first dimension, the latent site ``"z"`` and the observed site ``"x"``. They are modules as well. You
    can therefore train all their parameters with :class:`pyro.infer.SVI`, with ``Trace_ELBO()(vae.model, vae.guide)``
    and a torch optimizer, or with :func:`pyrovae.fit`. A component can be exchanged at any time:
    ``vae.prior = my_prior``.

    Data may consist of x and further tensors, such as labels or a mask of observed entries: ``model(x, *given)``. The
    likelihood is then called as ``likelihood(z, *given)``, and the posterior as ``posterior(x, *given)``.

    The parameters belong to this module and have no names in Pyro's parameter store. Some tools of Pyro look up
    parameters by name and cannot be used: ``JitTrace_ELBO``, per-parameter options and saved states of
    :mod:`pyro.optim`, and ``poutine.lift``. Use torch's optimizers and ``state_dict`` instead.

    Args:
        prior: ``prior()`` returns p(z), event shape ``(latent,)``. A distribution works too.
        likelihood: ``likelihood(z)`` returns p(x | z) with batch shape ``z.shape[:-1]`` and the event shape of ``x``.
        posterior: ``posterior(x)`` returns q(z | x) with batch shape ``(N,)`` and event shape ``(latent,)``.

    Raises:
        TypeError: If a component is not callable or, when run, does not return a distribution.
        ValueError: When run, if a component returns a distribution of another shape.

    Source:
        *Auto-Encoding Variational Bayes* (Kingma and Welling, 2014).

    Example:
        >>> import torch, pyrovae as pv
        >>> vae = pv.VAE(
        ...     prior=pv.priors.StandardNormal(5),
        ...     likelihood=pv.likelihoods.Bernoulli(pv.networks.mlp(5, 32, (8, 8))),
        ...     posterior=pv.posteriors.DiagonalNormal(pv.networks.mlp((8, 8), 32, 2 * 5)),
        ... )
        >>> vae
        VAE(
          prior=StandardNormal(latent=5),
          likelihood=Bernoulli(network=Sequential(2,304 parameters)),
          posterior=DiagonalNormal(network=Sequential(2,410 parameters)),
        )
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
        # The __setattr__ of a module would register the component here, and the program would keep the old component.
        if name in ("prior", "likelihood"):
            self.model.put(name, value)
        elif name == "posterior":
            self.guide.put(name, value)
        else:
            super().__setattr__(name, value)

    def encode(self, x: Any, *given: Any) -> dist.TorchDistribution:
        """Return the posterior q(z | x) of data.

        The ``mean`` of the posterior is the usual code of a datum. ``sample()`` draws codes, and ``rsample()`` draws
        codes with a gradient.

        Args:
            x: Data, shape ``(N, *event)``: a tensor, or any other type of data that :func:`pyrovae.fit` accepts. Data
                of other types are read into memory and moved to the device of the parameters.
            *given: Further data for the posterior, such as labels, each of shape ``(N, *event)``.

        Returns:
            Distribution of batch shape ``(N,)`` and event shape ``(latent,)``.

        Raises:
            TypeError: If the data have an unsupported type, or are not floating-point.
            ValueError: If the data are empty, not finite, or of a shape or dtype that the posterior does not accept.

        Example:
            >>> import torch, pyrovae as pv
            >>> def network(x):  # the mean is the first two entries of x, and the logarithm of the scale is 0
            ...     return torch.cat([x[..., :2], torch.zeros(*x.shape[:-1], 2)], -1)
            >>> vae = pv.VAE(
            ...     pv.priors.StandardNormal(2),
            ...     pv.likelihoods.Bernoulli(pv.networks.mlp(2, 4)),
            ...     pv.posteriors.DiagonalNormal(network),
            ... )
            >>> vae.encode(torch.tensor([[1.0, 0.0, 0.0, 1.0]])).mean
            tensor([[1., 0.]])
        """
        data: tuple[Any, ...] = (x, *given)
        if not all(isinstance(part, Tensor) for part in data):
            source = as_source("x", data if given else x, indexed=True)
            check_column_names(source, self.modules())
            device = next((parameter.device for parameter in self.parameters()), None)
            data = tuple(tensor.to(device) for tensor in source.slice(0, len(source)))
        tensors = as_tensors("x", data)
        q: dist.TorchDistribution = run_component(
            "posterior", self.posterior, *tensors, batch_shape=tensors[0].shape[:1]
        )
        return q

    @torch.no_grad()
    def generate(self, n: int, *given: Tensor, mean: bool = False) -> Tensor:
        """Draw data by ancestral sampling: ``z ~ p(z)``, then ``x ~ p(x | z)``.

        Args:
            n: Number of draws.
            *given: Further data for the likelihood, such as labels, each of shape ``(n, *event)``.
            mean: If true, E[x | z] is returned instead of a draw of x; figures of digits usually show means.

        Returns:
            Tensor, shape ``(n, *event)``.

        Raises:
            TypeError: If ``n`` is not an integer.
            ValueError: If ``n`` is negative.
        """
        check_number_of_data(n)
        return draw(self.likelihood(self.prior().sample((n,)), *given), mean)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *given: Tensor, mean: bool = False) -> Tensor:
        """Draw data like ``x`` from the posterior predictive distribution: ``z ~ q(z | x)``, then ``x' ~ p(x' | z)``.

        Args:
            x: Data, shape ``(N, *event)``.
            *given: Further data for likelihood and posterior, such as labels, each of shape ``(N, *event)``.
            mean: If true, E[x' | z] is returned instead of a draw of x'.

        Returns:
            Tensor, shape ``(N, *event)``.

        Raises:
            TypeError: If the data are not floating-point tensors.
            ValueError: If the data are empty, not finite, or of a shape or dtype that the components do not accept.
        """
        z = self.encode(x, *given).sample()
        return draw(run_component("likelihood", self.likelihood, z, *given, batch_shape=x.shape[:1]), mean)


class Model(Program):
    """The Pyro model of a VAE, ``p(z) p(x | z)``."""

    def __init__(self, prior: Component, likelihood: Component) -> None:
        super().__init__()
        self.put("prior", prior)
        self.put("likelihood", likelihood)

    def forward(self, x: Tensor, *given: Tensor) -> None:
        """Run the model on data ``x``, shape ``(N, *event)``."""
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
        """Run the guide on data ``x``, shape ``(N, *event)``."""
        emit_parameters(self)
        with self.data_plate(x):
            posterior = self.get("posterior")
            pyro.sample("z", run_component("posterior", posterior, x, *given, batch_shape=x.shape[:1]))
