r"""The beta-VAE: any objective with its latent sites weighed.

.. math:: E_q[\log p(x \mid z)] - \beta\, \mathrm{KL}\big(q(z \mid x) \,\|\, p(z)\big).
"""

import math
from collections.abc import Callable
from typing import Any

from pyro.infer import ELBO, Trace_ELBO

from pyrovae._waist.scales import LatentScale


class BetaELBO(ELBO):
    r"""Any objective with the log-probabilities of latent sites multiplied by :math:`\beta`, in model and guide.

    Of the ELBO, that weighs the KL term; of an importance-weighted bound, it tempers the weights,
    :math:`\log w = \log p(x \mid z) + \beta \log p(z) - \beta \log q(z \mid x)`. With :math:`\beta > 1` it is a lower
    bound of the ELBO. For a weight that grows during training there is ``pyrovae.fit(..., kl_warmup=)``; both together
    multiply.

    Args:
        beta: The weight, positive.
        objective: A Pyro ELBO; by default ``Trace_ELBO()``.

    Raises:
        ValueError: If ``beta`` is not positive and finite.
        TypeError: If the objective is no ELBO.

    Source:
        *beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework* (Higgins et al., 2017).

    Example:
        >>> import torch, pyrovae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Normal(pv.networks.mlp(2, 4)),
        ...     pv.posteriors.DiagonalNormal(pv.networks.mlp(4, 2 * 2)),
        ... )
        >>> history = pv.fit(vae, torch.randn(50, 4), objective=pv.objectives.BetaELBO(4.0), epochs=1)
    """

    def __init__(self, beta: float, objective: ELBO | None = None) -> None:
        if not 0 < beta < math.inf:
            raise ValueError(f"beta weighs the latent sites by a positive, finite number, got beta={beta}")
        if not (objective is None or isinstance(objective, ELBO)):
            raise TypeError(f"the objective must be a Pyro ELBO such as Trace_ELBO() or IWAE(5), got {objective!r}")
        super().__init__()
        self.beta = beta
        self.objective: Any = Trace_ELBO() if objective is None else objective

    def loss(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Returns the objective's loss, nats summed over the data."""
        with LatentScale(self.beta):
            return self.objective.loss(model, guide, *args, **kwargs)

    def loss_and_grads(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Returns the objective's loss, having added its gradient to the parameters'."""
        with LatentScale(self.beta):
            return self.objective.loss_and_grads(model, guide, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        # Found out by asking for it is whether an objective has a differentiable loss: there is one if it has one.
        if name != "differentiable_loss":
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return LatentScale(self.beta)(self.objective.differentiable_loss)

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        with LatentScale(self.beta):
            return self.objective._get_trace(model, guide, args, kwargs)
