r"""A guide fitted to the posterior of each datum.

An amortized guide is a poor proposal for importance sampling if its encoder or its family cannot match a posterior. For
each datum, :class:`Refined` fits a normal density with full covariance to the posterior, in unconstrained coordinates,
by stochastic linear regression (:mod:`pyrovae._refinement.regression`). If pilot draws show that the posterior is far
from normal, the density is fitted again, to draws and gradients of short Hamiltonian chains
(:mod:`pyrovae._refinement.chains`). Two further normal densities are then fitted, one to each half of the posterior
(:mod:`pyrovae._refinement.split`). If short chains from the guide find modes that these densities miss, the modes get
densities of their own (:mod:`pyrovae._refinement.modes`). The proposal is a mixture of the guide with wider copies of
all these densities (:mod:`pyrovae._refinement.mixture`). The mixture is fixed before the draws of the estimate are
made. Therefore the estimate of p(x) is unbiased, and its logarithm is a lower bound on log p(x) in expectation.

Source: *Fixed-Form Variational Posterior Approximation through Stochastic Linear Regression* (Salimans and Knowles,
2013), for the first fit; *Preconditioning Hamiltonian Monte Carlo by Minimizing Fisher Divergence* (Seyboldt, Carlson
and Carpenter, 2026), for the fit to the chains; *Safe and Effective Importance Sampling* (Owen and Zhou, 2000), for
mixtures with a safe component.
"""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyrovae._refinement.mixture import MEMBERS, Member, Mixture
from pyrovae._refinement.normal import Normal
from pyrovae._refinement.refine import Refinement, refine
from pyrovae._waist.sites import Program
from pyrovae.evaluation.batches import Batch
from pyrovae.evaluation.problem import Problem
from pyrovae.evaluation.route import Drawn
from pyrovae.evaluation.unconstrained.flat import target_of
from pyrovae.evaluation.unconstrained.space import Space
from pyrovae.evaluation.unconstrained.target import Target


class Refined:
    """A guide that mixes a given guide with normal densities fitted to the posterior of each datum.

    A refined guide can replace any guide in :func:`pyrovae.evaluation.evaluate`, :func:`pyrovae.evaluation.rqmc`,
    :func:`pyrovae.evaluation.ais`, :func:`pyrovae.evaluation.nuts`, :func:`pyrovae.evaluation.impute`,
    :func:`pyrovae.evaluation.to_inference_data` and :func:`pyrovae.evaluation.posterior_predictive_check`. Pyro's ELBOs
    can evaluate a refined guide but not train it, because no gradient passes through the fit. Each batch of data is
    fitted once. For a datum with 50 latent dimensions, the fit costs about 2,000 evaluations of log p(x, z), and 4,000
    more if the posterior is far from normal.

    The given guide stays in the mixture, by default with a weight of 0.1. Without this guide, normal densities at only
    one of two equal modes would give an estimate that is too low by log 2, and the weights would not show the error. If
    the guide's density at given values is expensive, as for an inverse autoregressive flow, it is computed only at the
    guide's own draws. The estimate of p(x) then stays unbiased, but its standard deviation rises by up to a third for
    posteriors with several modes.

    Args:
        model: Pyro program of p(x, z) with continuous latent sites; discrete sites that the model enumerates are summed
            out.
        guide: Pyro program of q(z | x).
        members: Copies of the fitted normal density in the mixture, each a pair ``Member(weight, reach)`` of
            ``pyrovae._refinement.mixture``. The standard deviations of a copy are multiplied by ``1 + reach / D**0.5``
            in D dimensions. The guide gets the remaining weight.
        score_guide: If true, the guide's density is computed at all draws. The default is true, except for inverse
            autoregressive flows.

    Raises:
        ValueError: When used, if a latent site is discrete or masked, has angles as values (``VonMises``), is a
            ``Delta`` in the guide, or has a support that depends on other latents; or if a weight in ``members`` is not
            positive, a reach is negative, or the weights sum to 1 or more.

    Source:
        *Fixed-Form Variational Posterior Approximation through Stochastic Linear Regression* (Salimans and Knowles,
        2013).

    Example:
        >>> import torch, pyrovae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Normal(pv.networks.mlp(2, 4), scale=0.1),
        ...     pv.posteriors.DiagonalNormal(pv.networks.mlp(4, 2 * 2)),
        ... )
        >>> x, refined = torch.randn(5, 4), pv.guides.Refined(vae.model, vae.guide)
        >>> before = pv.evaluation.evaluate(vae.model, vae.guide, x, 1000, seed=0)
        >>> after = pv.evaluation.evaluate(vae.model, refined, x, 1000, seed=0)
        >>> bool((after.ess > before.ess).all())
        True
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        *,
        members: tuple[Member, ...] = MEMBERS,
        score_guide: bool | None = None,
    ) -> None:
        self.model, self.guide, self.members, self.score_guide = model, guide, members, score_guide
        self._spaces: dict[int, Space] = {}
        self._fitted: tuple[Batch, Target, Refinement] | None = None

    def __repr__(self) -> str:
        """Return text with the type of the given guide."""
        return f"Refined({type(poutine.unwrap(self.guide)).__name__})"

    # --- the protocol of a proposal -----------------------------------------------------------------------------------

    def open(self, problem: Problem) -> None:
        """Create the map from the latents of a problem to real vectors. Call this method before the first batch."""
        self._spaces, self._fitted = {id(problem): Space(problem)}, None

    def width(self, problem: Problem) -> int:
        """Return the batch size of an evaluation, from 8 to 256; many latents or little memory make it smaller."""
        return self._spaces[id(problem)].width

    def draw(self, problem: Problem, batch: Batch, num_draws: int, noise: Tensor | None = None) -> Drawn:
        """Draw the latents of each datum of a batch from its mixture; ``noise`` is passed to :meth:`Mixture.draw`."""
        target, mixture = self.mixture(problem, batch)
        drawn = mixture.draw(num_draws, noise)
        order = torch.randperm(num_draws, device=drawn.u.device)  # the mixture returns draws ordered by component
        values, log_det = target.space.values(drawn.u[order])
        dims = {name: -problem.nesting - 1 - problem.probe.event_dims[name] for name in values}
        log_q, log_joint = drawn.log_q[order] - log_det, drawn.log_joint[order] - log_det
        return Drawn({**batch.subsample, **values}, log_q, dims, log_joint=log_joint)

    def normal(self, problem: Problem, batch: Batch) -> Normal:
        """Return the normal density that is fitted to the posterior of each datum, in unconstrained coordinates."""
        return self.fit(problem, batch)[1].density

    def log_density(self, problem: Problem, batch: Batch, values: dict[str, Tensor]) -> Tensor:
        """Return the log-density of the mixture at given values of the latents, shape ``(num_draws, n)``, nats."""
        target, mixture = self.mixture(problem, batch, score_guide=True)
        u = target.space.flatten(values)
        return mixture.log_density(u, target.log_guide(u)) - target.space.values(u)[1]

    def mixture(self, problem: Problem, batch: Batch, *, score_guide: bool | None = None) -> tuple[Target, Mixture]:
        """Return the posteriors of the data of a batch, and the mixtures from which their latents are drawn.

        The first call for a batch fits the densities of these mixtures; see :meth:`fit`.
        """
        target, fitted = self.fit(problem, batch)
        if score_guide is None:
            score_guide = self._scores_guide(target)
        return target, fitted.mixture(target, self.members, score_guide=score_guide)

    def fit(self, problem: Problem, batch: Batch) -> tuple[Target, Refinement]:
        """Return the posteriors of the data of a batch, and the densities that are fitted to them.

        The densities are fitted by the first call for a batch, and kept until a call for another batch.
        """
        if self._fitted is None or self._fitted[0] is not batch:
            target = target_of(self._spaces[id(problem)], batch)
            options: Any = {"score_guide": self._scores_guide(target), "batch_size": target.affordable}
            self._fitted = batch, target, refine(target, self.members, **options)
        return self._fitted[1], self._fitted[2]

    def _scores_guide(self, target: Target) -> bool:
        if self.score_guide is not None:
            return self.score_guide
        return target.space.scores_guide

    # --- the interface of a Pyro program ------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Sample the latent sites for the data in the arguments, as a Pyro guide does.

        Each latent site is a ``Delta`` at its drawn value. The auxiliary site ``_refined`` holds the log-density of all
        latent sites.
        """
        x, seed = args if len(args) > 1 else args[0], int(torch.randint(2**31, ()))
        problem = Problem(self.model, self, x, kwargs=kwargs or None, seed=seed)
        with problem:
            batch = problem.batch(0, problem.size)
            drawn = self.draw(problem, batch, 1)
            values = {name: drawn.values[name].select(dim, 0) for name, dim in drawn.dims.items()}
        with pyro.plate(problem.plate.name, problem.size, dim=problem.plate.dim):
            joint = _Scored(drawn.log_q[0])
            pyro.sample("_refined", joint, infer={"is_auxiliary": True})
            for name, value in values.items():
                event_dim = problem.probe.event_dims[name]
                pyro.sample(name, dist.Delta(value, event_dim=event_dim))


class _Scored(dist.TorchDistribution):
    """Distribution that has a given log-density at every value; its samples are zeros, as placeholders.

    A refined guide draws all latents together from the mixture, outside Pyro's sites. Each latent site is then a
    ``Delta`` at the drawn value, with log-density 0. The auxiliary site ``_refined`` has this distribution, with the
    log-density of all latents together. The log-densities of the guide's sites therefore sum to log q(z | x).
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  # torch's distributions declare it in the same way
    support = dist.constraints.real

    def __init__(self, log_q: Tensor) -> None:
        self.log_q = log_q
        super().__init__(log_q.shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "_Scored":
        """Return the same distribution with a larger batch shape."""
        return _Scored(self.log_q.expand(batch_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Return zeros."""
        return self.log_q.new_zeros(torch.Size(sample_shape) + self.batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the stored log-density, because ``value`` is only a placeholder."""
        return self.log_q + torch.zeros_like(value)
