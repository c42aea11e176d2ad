r"""A VAE with a posterior over the weights of the likelihood's network.

.. math:: p(W)\, \prod_n p(z_n)\, p(x_n \mid z_n, W), \qquad q(W)\, \prod_n q(z_n \mid x_n).

For a mini-batch, the data plate declares the size of the whole data set. Pyro therefore scales the terms of the
mini-batch up to the whole data set, but does not scale the KL term of the weights.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.nn import PyroModule, PyroSample
from pyro.nn.module import to_pyro_module_
from torch import Tensor, nn

from pyrovae.models.programs import Component, emit_parameters
from pyrovae.models.vae import VAE, Guide, Model
from pyrovae.priors import Fixed

__all__ = ["BayesianVAE", "random_weights"]


def random_weights(network: nn.Module, prior: Callable[[Tensor], dist.TorchDistribution] | None = None) -> nn.Module:
    """Turn all parameters of a network into random variables (``pyro.nn.PyroSample``), in place.

    Args:
        network: Any network. Its parameters are replaced.
        prior: Function that takes a parameter and returns the prior of the weight that replaces the parameter. The
            event shape of this prior must be the shape of the parameter. By default, each entry has an independent
            standard normal prior.

    Returns:
        The given network.

    Source:
        *Weight Uncertainty in Neural Networks* (Blundell et al., 2015).

    Example:
        >>> import torch, pyrovae as pv
        >>> network, z = pv.bayesian.random_weights(pv.networks.mlp(2, 4)), torch.ones(3, 2)
        >>> network(z).shape, torch.equal(network(z), network(z))  # each run draws new weights
        (torch.Size([3, 4]), False)
    """
    to_pyro_module_(network)
    for module in list(network.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            holder = f"{name}_prior"  # a submodule, which moves the prior with the module's device and dtype
            setattr(module, holder, Fixed((prior or _standard_normal)(parameter.detach())))
            setattr(module, name, PyroSample(partial(_prior_of, holder=holder)))
    return network


class BayesianVAE(VAE):
    """VAE with random weights in the network of its likelihood, and a mean-field normal posterior of these weights.

    The weights are global latent sites, outside the data plate. Train the VAE with ``Trace_ELBO``, and evaluate it with
    :func:`pyrovae.evaluation.evaluate_globals`, which averages over draws of the weights.

    Args:
        prior: ``prior()`` returns p(z).
        likelihood: ``likelihood(z)`` returns p(x | z). All weights of its network must be random (``PyroSample``), as
            in a network from :func:`random_weights`.
        posterior: ``posterior(x)`` returns q(z | x).
        data_size: Number of training data, to which the loss of a mini-batch is scaled.

    Raises:
        ValueError: If ``data_size`` is not positive, or the likelihood has no random weights.

    Source:
        *Weight Uncertainty in Neural Networks* (Blundell et al., 2015); *Auto-Encoding Variational Bayes* (Kingma and
        Welling, 2014), appendix F, for random decoder weights.

    Example:
        >>> import pyro, torch, pyrovae as pv
        >>> vae = pv.BayesianVAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Normal(pv.bayesian.random_weights(pv.networks.mlp(2, 4))),
        ...     pv.posteriors.DiagonalNormal(pv.networks.mlp(4, 2 * 2)),
        ...     data_size=100,
        ... )
        >>> x = torch.randn(100, 4)
        >>> history = pv.fit(vae, x, batch_size=10, epochs=1)
        >>> pyro.poutine.trace(vae.model).get_trace(x).stochastic_nodes
        ['0.weight', '0.bias', 'data', 'z']
    """

    def __init__(self, prior: Component, likelihood: Component, posterior: Component, *, data_size: int) -> None:
        super().__init__(prior, likelihood, posterior)
        if data_size < 1:
            raise ValueError(f"BayesianVAE: data_size={data_size}, the number of training data, must be at least 1")
        self.model = BayesianModel(prior, likelihood)
        self.guide = BayesianGuide(posterior, self.model)
        self.model.peers, self.guide.peers = (self.guide,), (self.model,)
        self.model.data_size = self.guide.data_size = data_size

    @property
    def data_size(self) -> int | None:
        """The number of training data."""
        return self.model.data_size

    def generate(self, n: int, *given: Tensor, mean: bool = False) -> Tensor:
        """Draw data as :meth:`VAE.generate` does. All data share one draw of the weights from their posterior."""
        with self._posterior_weights():
            return super().generate(n, *given, mean=mean)

    def reconstruct(self, x: Tensor, *given: Tensor, mean: bool = False) -> Tensor:
        """Draw data as :meth:`VAE.reconstruct` does. All data share one draw of the weights from their posterior."""
        with self._posterior_weights():
            return super().reconstruct(x, *given, mean=mean)

    @contextmanager
    def _posterior_weights(self) -> Iterator[None]:
        guide: Any = self.guide
        draws = poutine.trace(guide.draw_weights).get_trace()
        with torch.no_grad(), poutine.replay(trace=draws), _drawn_weights(self.model):
            yield


class BayesianModel(Model):
    """The Pyro model of a Bayesian VAE. It draws the weights, and then runs the model of a VAE."""

    def forward(self, x: Tensor, *given: Tensor) -> None:
        """Run the model on data ``x``, shape ``(N, *event)``."""
        with _drawn_weights(self):
            super().forward(x, *given)


class BayesianGuide(Guide):
    """The Pyro guide of a Bayesian VAE. It draws the weights from normals, and then runs the guide of a VAE."""

    def __init__(self, posterior: Component, model: BayesianModel) -> None:
        super().__init__(posterior)
        for name, module in model.named_modules():
            if isinstance(module, PyroModule) and any(True for _ in module.parameters(recurse=False)):
                raise ValueError(
                    f"{name} has both random and fixed weights. Pyro would register the fixed weights in its global "
                    f"parameter store, although they belong to the module. Make all weights of the network random: "
                    f"pyrovae.bayesian.random_weights(network)."
                )
        with poutine.block(), poutine.trace() as tape, _drawn_weights(model):
            pass
        nodes = tape.trace.nodes.items()
        weights: dict[str, Any] = {name: site["value"] for name, site in nodes if site["type"] == "sample"}
        if not weights:
            raise ValueError(
                "the likelihood of a BayesianVAE has no random weights. Make its network with "
                "pyrovae.bayesian.random_weights(network), or use pyrovae.VAE."
            )
        self.sites = tuple(weights)
        # Means start near zero, but not at zero, where all hidden units would be equal. Small scales make the first
        # gradients informative.
        self.loc = nn.ParameterList([nn.Parameter(0.1 * weight) for weight in weights.values()])
        self.log_scale = nn.ParameterList([nn.Parameter(torch.full_like(weight, -4.0)) for weight in weights.values()])

    def forward(self, x: Tensor, *given: Tensor) -> None:
        """Run the guide on data ``x``, shape ``(N, *event)``."""
        emit_parameters(self)
        self.draw_weights()
        super().forward(x, *given)

    def draw_weights(self) -> None:
        """Draw the weights."""
        for site, loc, log_scale in zip(self.sites, self.loc, self.log_scale, strict=True):
            pyro.sample(site, dist.Normal(loc, log_scale.exp()).to_event(loc.ndim))


@contextmanager
def _drawn_weights(program: nn.Module) -> Iterator[None]:
    """Context manager that draws all random weights on entry, and keeps these draws until exit.

    Without this context, Pyro would draw the weights inside the data plate.
    """
    networks: list[Any] = [module for module in program.modules() if isinstance(module, PyroModule)]
    with ExitStack() as stack:
        for network in networks:
            stack.enter_context(network._pyro_context)  # keeps the draws until the context is left
        for network in networks:
            for name in network._pyro_samples:
                getattr(network, name)
        yield


def _prior_of(module: nn.Module, holder: str = "") -> Any:
    return getattr(module, holder)()


def _standard_normal(parameter: Tensor) -> dist.TorchDistribution:
    return dist.Normal(torch.zeros_like(parameter), 1.0).to_event(parameter.ndim)
