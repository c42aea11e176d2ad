r"""Semi-amortized inference: gradient steps on the ELBO refine the parameters of q(z | x) for each datum."""

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import transform_to

from pyrovae.components import Described
from pyrovae.distributions import NormalizingFlow


class SemiAmortized(Described):
    r"""Posterior whose parameters :math:`\lambda` are the encoder's output, refined by gradient steps for each datum.

    .. math::
        \lambda_0 = f(x), \qquad
        \lambda_{t+1} = \lambda_t + \mathrm{Adam}\big(\nabla_\lambda \mathrm{ELBO}(x; \lambda_t)\big).

    The class is meant for evaluation. If you set ``vae.posterior = SemiAmortized(vae.posterior)`` after training,
    evaluation gets a better proposal. The model does not change: a VampPrior, if the model has one, keeps using the
    posterior before refinement. In training, the gradient with respect to the refined parameters is used as the
    gradient with respect to :math:`\lambda_0`.

    Args:
        posterior: ``x -> q(z | x)``, where q is one of Pyro's ``Normal``, ``Laplace``, ``StudentT``,
            ``MultivariateNormal`` or ``LowRankMultivariateNormal``. If q is a flow, its base is refined.
        steps: Number of gradient steps.
        learning_rate: Learning rate of Adam for the unconstrained parameters, such as means and log-scales.
        num_particles: Draws per datum and step.

    Raises:
        ValueError: If ``steps`` or ``num_particles`` is less than 1; when called, if the posterior does not belong to a
            :class:`pyrovae.VAE`, because the gradient steps need its prior and likelihood.
        TypeError: When called, if ``posterior`` returns a distribution of another family.

    Source:
        *Semi-Amortized Variational Autoencoders* (Kim et al., 2018); *On the Challenges of Learning with Inference
        Networks on Sparse, High-dimensional Data* (Krishnan, Liang and Hoffman, 2018).

    Example:
        >>> import torch, pyrovae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Normal(pv.networks.mlp(2, 4), scale=0.1),
        ...     pv.posteriors.DiagonalNormal(pv.networks.mlp(4, 2 * 2)),
        ... )
        >>> x = torch.randn(10, 4)
        >>> before = pv.evaluation.evaluate(vae.model, vae.guide, x, 100, seed=0)
        >>> vae.posterior = pv.posteriors.SemiAmortized(vae.posterior)
        >>> after = pv.evaluation.evaluate(vae.model, vae.guide, x, 100, seed=0)
        >>> bool(after.elbo.mean() > before.elbo.mean())
        True
    """

    def __init__(
        self, posterior: Callable[..., Any], steps: int = 20, *, learning_rate: float = 0.05, num_particles: int = 5
    ) -> None:
        super().__init__()
        if steps < 1 or num_particles < 1:
            raise ValueError(
                f"posteriors.SemiAmortized: steps={steps} and num_particles={num_particles} must be at least 1"
            )
        self.amortized = posterior
        self.steps, self.learning_rate, self.num_particles = steps, learning_rate, num_particles
        # A tuple, because a module would register prior and likelihood and their parameters as its own.
        self._model: tuple[Callable[..., Any], ...] = ()

    @property
    def posterior(self) -> Callable[..., Any]:
        """The posterior before refinement."""
        amortized: Callable[..., Any] = self.amortized
        return amortized

    def bind_components(self, prior: Any = None, likelihood: Any = None, **_: Any) -> None:
        """Store the prior and the likelihood of the VAE."""
        self._model = () if prior is None or likelihood is None else (prior, likelihood)

    def forward(self, x: Tensor, *given: Tensor) -> dist.TorchDistribution:
        """Return the refined q(z | x) for ``x``, shape ``(*batch, *event)``."""
        if not self._model:
            raise ValueError(
                "posteriors.SemiAmortized: the prior and the likelihood are not known. Use SemiAmortized as the "
                "posterior of a pyrovae.VAE. SemiAmortized cannot refine several latent layers."
            )
        q = self.amortized(x, *given)
        start = _local_parameters(q)
        refined = self._refine(q, [part.detach() for part in start], x, given)
        # The values are refined, and the gradient is that of the encoder's parameters.
        return _rebuild(q, [new + old - old.detach() for new, old in zip(refined, start, strict=True)])

    def _refine(self, q: Any, start: list[Tensor], x: Tensor, given: tuple[Tensor, ...]) -> list[Tensor]:
        prior, likelihood = self._model
        parameters = [part.clone().requires_grad_() for part in start]
        optimizer = torch.optim.Adam(parameters, lr=self.learning_rate)
        with torch.enable_grad():
            for _ in range(self.steps):
                local = _rebuild(q, parameters)
                z = local.rsample((self.num_particles,))
                elbo = likelihood(z, *given).log_prob(x) + prior().log_prob(z) - local.log_prob(z)
                gradients = torch.autograd.grad(-elbo.mean(0).sum(), parameters)
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.grad = gradient
                optimizer.step()
        return [parameter.detach() for parameter in parameters]


_FAMILIES: dict[type, tuple[str, ...]] = {
    dist.Normal: ("loc", "scale"),
    dist.Laplace: ("loc", "scale"),
    dist.StudentT: ("loc", "scale"),
    dist.MultivariateNormal: ("loc", "scale_tril"),
    dist.LowRankMultivariateNormal: ("loc", "cov_factor", "cov_diag"),
}


def _local_parameters(q: Any) -> list[Tensor]:
    """Return the parameters of a posterior, transformed to unconstrained values."""
    if isinstance(q, torch.distributions.Independent | NormalizingFlow):
        return _local_parameters(q.base_dist)
    if _family(q) is None:
        known = ", ".join(family.__name__ for family in _FAMILIES)
        raise TypeError(
            f"posteriors.SemiAmortized refines only these families: {known}; got a {type(q).__name__}. Use another "
            f"posterior."
        )
    return [transform_to(q.arg_constraints[name]).inv(getattr(q, name)) for name in _FAMILIES[_family(q)]]


def _family(q: Any) -> Any:
    return next((family for family in _FAMILIES if isinstance(q, family)), None)


def _rebuild(q: Any, parameters: list[Tensor]) -> Any:
    """Return a copy of ``q`` with new parameters, given as unconstrained values (see :func:`_local_parameters`)."""
    if isinstance(q, torch.distributions.Independent):
        return _rebuild(q.base_dist, parameters).to_event(q.reinterpreted_batch_ndims)
    if isinstance(q, NormalizingFlow):
        return NormalizingFlow(_rebuild(q.base_dist, parameters), q.transform)
    names = _FAMILIES[_family(q)]
    constraints = [q.arg_constraints[name] for name in names]
    values = {
        name: transform_to(constraint)(part)
        for name, constraint, part in zip(names, constraints, parameters, strict=True)
    }
    return type(q)(**({"df": q.df} if isinstance(q, dist.StudentT) else {}), **values)
