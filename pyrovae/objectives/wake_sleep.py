r"""Reweighted wake-sleep with weights normalized for each datum; it trains a guide without reparameterized draws.

The draws :math:`z_k \sim q(z \mid x)` are held fixed. With normalized weights :math:`\tilde w_k = w_k / \sum_j w_j`,
the losses are

.. math::
    \text{wake-}\theta: -\log \frac{1}{K} \sum_k w_k, \qquad
    \text{wake-}\phi: -\sum_k \tilde w_k \log q(z_k \mid x), \qquad
    \text{sleep-}\phi: -\log q(z \mid x), \;\; (x, z) \sim p.

The gradient of the wake-phi loss estimates the gradient of KL(p(z | x) || q(z | x)). This estimate does not need
reparameterization, so latents may be discrete.
"""

import math
from collections.abc import Callable
from typing import Any

import pyro.infer
from pyro.util import warn_if_nan
from torch import Tensor

from pyrovae.objectives.base import Weighing, log_mean_exp
from pyrovae.objectives.gradient_parts import Leaves


class ReweightedWakeSleep(Weighing, pyro.infer.ReweightedWakeSleep):
    r"""Pyro's reweighted wake-sleep with weights that are normalized for each datum.

    :class:`pyro.infer.ReweightedWakeSleep` adds up the log-weights of the batch before it normalizes them over
    particles. In a batch of 100 data, a single particle then has almost all the weight, and only its draws determine
    the gradient. Here, the weights are normalized for each datum. With the scale :math:`s_n` of the data plate
    (subsampling), the losses of model and guide are

    .. math::
        \mathcal{L}_\theta = -\sum_n s_n \log \frac{1}{K} \sum_k w_n^{(k)}, \qquad
        \mathcal{L}_\phi = -\iota \sum_n s_n \sum_k \tilde w_n^{(k)} \log q(z_n^{(k)} \mid x_n)
            + (1 - \iota)\, \mathcal{L}_\text{sleep}.

    The sleep phase is the same as in Pyro. It needs a guide that takes its data as ``observations=``. ``loss`` and
    ``loss_and_grads`` return both losses, as Pyro's methods do. ``differentiable_loss`` returns the value of
    :math:`\mathcal{L}_\theta` with the gradient of the sum of both losses.

    Args:
        num_particles: Number of draws per datum, K, at least 2.
        insomnia: Weight :math:`\iota` of the wake loss in the guide's loss, from 0 to 1. The sleep loss has the weight
            :math:`1 - \iota`.
        model_has_params: True, the default, if the model has parameters. If false and ``insomnia`` is 0, the wake phase
            is skipped.
        num_sleep_particles: Number of data that the sleep phase simulates for each datum of the batch; by default
            ``num_particles``.
        vectorize_particles: If true, all draws are made in one run.
        max_plate_nesting: Nesting depth of the program's plates; by default a run of the program determines it.
        strict_enumeration_warning: Passed to :class:`pyro.infer.ReweightedWakeSleep`.
        plate: Name of the data plate; by default the outermost plate that all latent sites share.

    Raises:
        ValueError: If there are fewer than 2 particles or ``insomnia`` is not in [0, 1]. When called, if the program
            has a site outside its data plate or enumerates sites.

    Source:
        *Reweighted Wake-Sleep* (Bornschein and Bengio, 2015); *Revisiting Reweighted Wake-Sleep for Models with
        Stochastic Control Flow* (Le et al., 2019).

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyrovae as pv
        >>> def model(x):  # p(x) = N(0, 2)
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):  # the exact posterior, for which the loss of the model equals minus log p(x)
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> x = torch.tensor([0.0, 1.0])
        >>> round(-float(dist.Normal(0.0, 2**0.5).log_prob(x).sum()), 3)
        2.781
        >>> round(float(pv.objectives.ReweightedWakeSleep(num_particles=5).loss(model, guide, x)[0]), 3)
        2.781
    """

    needs_paths = False

    def __init__(
        self,
        num_particles: int = 2,
        insomnia: float = 1.0,
        model_has_params: bool = True,
        num_sleep_particles: int | None = None,
        vectorize_particles: bool = True,
        max_plate_nesting: float = math.inf,
        strict_enumeration_warning: bool = True,
        *,
        plate: str | None = None,
    ) -> None:
        if num_particles < 2:
            raise ValueError(
                f"num_particles must be at least 2, because weights are normalized over particles, got "
                f"num_particles={num_particles}. For a single particle, train with Trace_ELBO."
            )
        if not 0 <= insomnia <= 1:
            raise ValueError(f"insomnia, the weight of the wake phase, must be in [0, 1], got insomnia={insomnia}")
        options = {
            "num_sleep_particles": num_sleep_particles,
            "vectorize_particles": vectorize_particles,
            "max_plate_nesting": max_plate_nesting,
            "strict_enumeration_warning": strict_enumeration_warning,
        }
        super().__init__(num_particles, insomnia, model_has_params, **options)
        self.num_draws, self.plate = num_particles, plate
        self.asleep = pyro.infer.ReweightedWakeSleep(num_particles, 0.0, False, **options)

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Return a tensor of shape ``()``, whose value is the loss of the model, summed over the data, nats.

        Its gradient is the gradient of the sum of both losses: the loss of the model and the loss of the guide.
        """
        model_loss, guide_loss = self._loss(model, guide, args, kwargs)
        return model_loss + (guide_loss - guide_loss.detach())

    def _loss(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Tensor, Tensor]:
        is_awake = self.model_has_params or self.insomnia > 0
        if is_awake:
            awake = self._wake(model, guide, args, kwargs)
            if self.insomnia == 1:
                return awake
        asleep = self.asleep._loss(model, guide, args, dict(kwargs))  # a copy, because it adds the observations
        if not is_awake:
            return asleep
        return awake[0], self.insomnia * awake[1] + (1 - self.insomnia) * asleep[1]

    def _wake(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Tensor, Tensor]:
        with Leaves():  # no paths, not even from one latent site to the next
            weights = self._weights(model, guide, args, kwargs)
        densities = self._densities(weights)
        log_weights = densities.likelihood + densities.prior - densities.guide.detach()
        model_loss = -(weights.scale * log_mean_exp(log_weights)).sum()
        guide_loss = -(weights.scale * log_weights.detach().softmax(0) * densities.guide).sum()
        warn_if_nan(model_loss, "wake theta loss")
        warn_if_nan(guide_loss, "wake phi loss")
        return model_loss, guide_loss
