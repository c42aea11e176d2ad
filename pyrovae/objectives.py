r"""Training objectives beyond Pyro's own, as :class:`pyro.infer.ELBO` classes over the one log-weight function.

An objective is *minimized*: each is minus a bound in nats, summed over the data with their plate's scale outside.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from pyro.infer import ELBO
from pyro.infer.enum import get_importance_trace
from torch import Tensor

from pyrovae.isolation import isolated
from pyrovae.weights import Weights, importance_weights


class IWAE(ELBO):
    r"""The importance-weighted bound, per datum.

    .. math::
        \mathcal{L}_K = \sum_n s_n \log \frac{1}{K} \sum_{k=1}^K w_n^{(k)}, \qquad
        w_n^{(k)} = \frac{p(x_n, z_n^{(k)})}{q(z_n^{(k)} \mid x_n)}, \quad z_n^{(k)} \sim q(z \mid x_n).

    ``ELBO <= L_K <= log p(x)`` in expectation, and :math:`\mathcal{L}_1` is the ELBO. The scale :math:`s_n` of the data
    plate (subsampling) and one common to all sites stand outside the logarithm; a scale of single sites (annealing)
    tempers the weights inside. The gradient is that of the bound under reparameterized draws.

    Unlike :class:`pyro.infer.RenyiELBO` with ``alpha=0``, which takes one logarithm over the whole batch, it keeps the
    data apart, and it has a ``differentiable_loss``: it serves as ``SVI(model, guide, optim, loss=IWAE(5))`` and as
    ``IWAE(5)(model, guide)(x)``.

    Args:
        num_particles: Draws per datum, K.
        max_plate_nesting: Depth of the program's plates, found by a run of the program where not given.
        vectorize_particles: Whether all draws are made in one run. Turn it off for programs that cannot take a
            dimension to the left of their plates.
        plate: Name of the data plate; by default the outermost plate that all latent sites share.
        retain_graph: Passed to ``backward``, as in Pyro's objectives.

    Raises:
        ValueError: If ``num_particles`` is less than 1; when called, if a latent site is not reparameterized, or the
            program has a site outside its data plate.

    Source:
        *Importance Weighted Autoencoders* (Burda, Grosse and Salakhutdinov, 2016).

    Example:
        >>> import torch, pyrovae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Normal(pv.networks.mlp(2, 4)),
        ...     pv.posteriors.DiagonalNormal(pv.networks.mlp(4, 2 * 2)),
        ... )
        >>> loss = pv.objectives.IWAE(num_particles=5)(vae.model, vae.guide)
        >>> loss(torch.zeros(10, 4)).backward()
    """

    def __init__(
        self,
        num_particles: int = 5,
        *,
        max_plate_nesting: float = math.inf,
        vectorize_particles: bool = True,
        plate: str | None = None,
        retain_graph: bool | None = None,
    ) -> None:
        if num_particles < 1:
            raise ValueError(f"IWAE needs at least one particle, got num_particles={num_particles}")
        super().__init__(
            num_particles,
            max_plate_nesting=max_plate_nesting,
            vectorize_particles=vectorize_particles,
            retain_graph=retain_graph,
        )
        self.plate = plate

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Returns minus the bound, nats summed over the data, shape ``()``, to be differentiated."""
        weights = self._weights(model, guide, args, kwargs)
        bound = weights.log_weights.logsumexp(0) - math.log(self.num_particles)
        return -(weights.scale * bound).sum()

    def loss(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        """Returns minus the bound, nats summed over the data."""
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def loss_and_grads(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        """Returns minus the bound, nats summed over the data, having added its gradient to the parameters'."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return loss.item()

    def _weights(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Weights:
        particles = int(self.num_particles > 1)  # Pyro counts their dimension in max_plate_nesting
        nesting = None
        if self.vectorize_particles:
            if self.max_plate_nesting == math.inf:
                with isolated(model, guide, seed=0):  # cached, so it must not move the generator either
                    probe = importance_weights(model, guide, args, kwargs=kwargs, plate=self.plate, tempered=True)
                self.max_plate_nesting = probe.nesting + particles
            nesting = int(self.max_plate_nesting) - particles
        weights = importance_weights(
            model, guide, args, self.num_particles, kwargs=kwargs, nesting=nesting, plate=self.plate, tempered=True
        )
        if weights.outside:
            raise ValueError(
                f"site {weights.outside[0]!r} lies outside the data plate {weights.plate.name!r}, and IWAE is a bound "
                f"per datum; move the site into the plate, or train with Trace_ELBO"
            )
        if weights.unreparameterized:
            raise ValueError(
                f"latent site {weights.unreparameterized[0]!r} has no reparameterized draws, so the gradient of IWAE "
                f"would be biased; train with Trace_ELBO or, for a discrete site, TraceEnum_ELBO"
            )
        return weights

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        return get_importance_trace("flat", self.max_plate_nesting, model, guide, args, kwargs)
