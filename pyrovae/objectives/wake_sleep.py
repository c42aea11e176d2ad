r"""Reweighted wake-sleep, per datum: a guide fitted to the posterior without a path through its draws.

With draws :math:`z_k \sim q(z \mid x)` held fixed and :math:`\tilde w_k = w_k / \sum_j w_j`,

.. math::
    \text{wake-}\theta: -\log \frac{1}{K} \sum_k w_k, \qquad
    \text{wake-}\phi: -\sum_k \tilde w_k \log q(z_k \mid x), \qquad
    \text{sleep-}\phi: -\log q(z \mid x), \;\; (x, z) \sim p.

Wake-:math:`\phi` estimates the gradient of KL(p(z | x) || q(z | x)), which needs no reparameterization: discrete
latents will do.
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

    :class:`pyro.infer.ReweightedWakeSleep` adds up the log-weights of the batch before it normalizes them, so that one
    particle of the whole batch takes all the weight: for 100 data that is the gradient of a single draw. Here

    .. math::
        \mathcal{L}_\theta = -\sum_n s_n \log \frac{1}{K} \sum_k w_n^{(k)}, \qquad
        \mathcal{L}_\phi = -\iota \sum_n s_n \sum_k \tilde w_n^{(k)} \log q(z_n^{(k)} \mid x_n)
            + (1 - \iota)\, \mathcal{L}_\text{sleep}.

    The sleep phase is Pyro's own, and needs a guide that takes its data as ``observations=``. ``loss`` and
    ``loss_and_grads`` return both losses, as Pyro's do; ``differentiable_loss`` has the value of the first and the
    gradient of both.

    Args:
        num_particles: Draws per datum, K, at least 2.
        insomnia: Share of wake-phi in the guide's loss, from 0 to 1; the rest is sleep-phi.
        model_has_params: Whether the model is trained; if not, and ``insomnia`` is 0, it is not run in the wake phase.
        num_sleep_particles: Dreams per datum; by default ``num_particles``.
        vectorize_particles: Whether all draws are made in one run.
        max_plate_nesting: Depth of the program's plates, found by a run of the program where not given.
        strict_enumeration_warning: Passed to Pyro.
        plate: Name of the data plate; by default the outermost plate that all latent sites share.

    Raises:
        ValueError: If there are less than 2 particles or ``insomnia`` is no share; when called, if the program has a
            site outside its data plate or enumerates sites.

    Source:
        *Reweighted Wake-Sleep* (Bornschein and Bengio, 2015); *Revisiting Reweighted Wake-Sleep for Models with
        Stochastic Control Flow* (Le et al., 2019).

    Example:
        >>> import torch, pyrovae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Normal(pv.networks.mlp(2, 4)),
        ...     pv.posteriors.DiagonalNormal(pv.networks.mlp(4, 2 * 2)),
        ... )
        >>> history = pv.fit(vae, torch.randn(50, 4), objective=pv.objectives.ReweightedWakeSleep(5), epochs=1)
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
                f"weights are normalized over at least two particles, got num_particles={num_particles}; for one, "
                f"train with Trace_ELBO"
            )
        if not 0 <= insomnia <= 1:
            raise ValueError(f"insomnia is the share of the wake phase, from 0 to 1, got insomnia={insomnia}")
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
        """Returns wake-theta's loss, nats summed over the data, shape ``()``, with the gradient of both losses."""
        model_loss, guide_loss = self._loss(model, guide, args, kwargs)
        return model_loss + (guide_loss - guide_loss.detach())

    def _loss(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Tensor, Tensor]:
        is_awake = self.model_has_params or self.insomnia > 0
        if is_awake:
            awake = self._wake(model, guide, args, kwargs)
            if self.insomnia == 1:
                return awake
        asleep = self.asleep._loss(model, guide, args, dict(kwargs))  # it adds the observations to the arguments
        if not is_awake:
            return asleep
        return awake[0], self.insomnia * awake[1] + (1 - self.insomnia) * asleep[1]

    def _wake(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Tensor, Tensor]:
        with Leaves():  # without paths, also from one latent site to the next
            weights = self._weights(model, guide, args, kwargs)
        densities = self._densities(weights)
        log_weights = densities.likelihood + densities.prior - densities.guide.detach()
        model_loss = -(weights.scale * log_mean_exp(log_weights)).sum()
        guide_loss = -(weights.scale * log_weights.detach().softmax(0) * densities.guide).sum()
        warn_if_nan(model_loss, "wake theta loss")
        warn_if_nan(guide_loss, "wake phi loss")
        return model_loss, guide_loss
