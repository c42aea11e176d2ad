r"""The beta-VAE: an ELBO, or another objective, with the log-probabilities of latent sites multiplied by beta.

.. math:: E_q[\log p(x \mid z)] - \beta\, \mathrm{KL}\big(q(z \mid x) \,\|\, p(z)\big).
"""

import math
from collections.abc import Callable
from typing import Any

from pyro.infer import ELBO, Trace_ELBO

from pyrovae._waist.scales import LatentScale


class BetaELBO(ELBO):
    r"""Objective in which the log-probabilities of latent sites, in model and guide, are multiplied by :math:`\beta`.

    In the ELBO, the factor weights the KL term. In an importance-weighted bound, it tempers the weights,
    :math:`\log w = \log p(x \mid z) + \beta \log p(z) - \beta \log q(z \mid x)`. With :math:`\beta > 1`, the weighted
    ELBO is a lower bound on the ELBO. For a KL weight that grows during training, use ``pyrovae.fit(..., kl_warmup=)``.
    If ``kl_warmup`` and ``BetaELBO`` are used together, their weights are multiplied by each other.

    Args:
        beta: Factor of the latent sites' log-probabilities, positive.
        objective: Pyro ELBO whose latent sites are weighted; by default ``Trace_ELBO()``.

    Raises:
        ValueError: If ``beta`` is not positive and finite.
        TypeError: If ``objective`` is not a Pyro ELBO.

    Source:
        *beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework* (Higgins et al., 2017).

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyrovae as pv
        >>> def model(x):  # x does not depend on z
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
        >>> def guide(x):  # KL(q || p) = 1 / 2
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(1.0, 1.0))
        >>> elbo, x = pyro.infer.TraceMeanField_ELBO(), torch.zeros(1)
        >>> [round(pv.objectives.BetaELBO(beta, elbo).loss(model, guide, x), 3) for beta in (1.0, 4.0)]
        [1.419, 2.919]
        >>> round(-float(dist.Normal(0.0, 1.0).log_prob(x)) + 4 / 2, 3)
        2.919
    """

    def __init__(self, beta: float, objective: ELBO | None = None) -> None:
        if not 0 < beta < math.inf:
            raise ValueError(
                f"beta, the factor of the latent sites' log-probabilities, must be positive and finite, got beta={beta}"
            )
        if not (objective is None or isinstance(objective, ELBO)):
            raise TypeError(f"the objective must be a Pyro ELBO such as Trace_ELBO() or IWAE(5), got {objective!r}")
        super().__init__()
        self.beta = beta
        self.objective: Any = Trace_ELBO() if objective is None else objective

    def loss(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return the loss of the weighted objective in nats, summed over the data."""
        with LatentScale(self.beta):
            return self.objective.loss(model, guide, *args, **kwargs)

    def loss_and_grads(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return the loss of the weighted objective, and add its gradient to the ``grad`` of each parameter."""
        with LatentScale(self.beta):
            return self.objective.loss_and_grads(model, guide, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        # The attribute must exist only if the inner objective has it, because callers test for it.
        if name != "differentiable_loss":
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return LatentScale(self.beta)(self.objective.differentiable_loss)

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        with LatentScale(self.beta):
            return self.objective._get_trace(model, guide, args, kwargs)
