r"""Coordinates in which the conditional priors of latent sites have location 0 and scale 1.

Suppose that a latent v determines the scale of the prior of another latent z, as in
:math:`z \mid v \sim N(0, e^{2 v})`. If the data are consistent with many values of v, the posterior has the shape of a
funnel: the standard deviation of z is small where v is small. A normal density covers the wide end of the funnel or
its narrow end, and chains that start at the wide end do not reach the narrow end.

Let :math:`\epsilon = (z - l) / s`, where l and s are the location and the scale of the prior of z, given the latents
that are sampled before z. If the data determine z badly, the posterior of :math:`(v, \epsilon)` is close to the prior,
and has no funnel. If the data determine z well, the posterior of (v, z) is the simpler one. The literature calls the
two kinds of coordinates non-centered and centered. An estimator of log p(x) can choose the kind that suits a datum.

Source:
    *A General Framework for the Parametrization of Hierarchical Models* (Papaspiliopoulos, Roberts and Sköld, 2007).
"""

import torch
from torch import Tensor

from pyrovae._refinement.refine import Refinement
from pyrovae.evaluation.unconstrained.target import Target


class Standardized(Target):
    r"""A target in coordinates :math:`\epsilon`, which replace the coordinates u of the sites ``space.scaled``.

    Args:
        base: Target in the coordinates u.
        fitted: Densities that were fitted to the posteriors in the coordinates u. If given, their mixture with the
            guide takes the place of the guide.
    """

    def __init__(self, base: Target, fitted: Refinement | None = None) -> None:
        super().__init__(base.space, base.batch, amortized=base.amortized, is_checked=True, compiles=False)
        self.base, self.fitted, self.size = base, fitted, base.size
        self._mixture = None if fitted is None else fitted.mixture(base, score_guide=True)

    def subset(self, indices: Tensor) -> "Standardized":
        """Return the target of some data of the batch, given by indices of shape ``(n,)``."""
        fitted = None if self.fitted is None else self.fitted.select(indices)
        return Standardized(self.base.subset(indices), fitted)

    def draw(self, num_draws: int) -> tuple[Tensor, Tensor]:
        r"""Draw from the guide; return :math:`\epsilon` and its log-density, shape ``(num_draws, N)``, nats."""
        with torch.no_grad():
            if self._mixture is None:
                u, log_q = self.base.draw(num_draws)
            else:
                u = _shuffled(self._mixture.sample(num_draws).u)
                log_q = self._mixture.log_density(u, self.base.log_guide(u))
            standard, log_det = self.standardize(u)
            return standard, log_q + log_det

    def log_joint(self, u: Tensor) -> Tensor:
        r"""Return :math:`\log p(x, \epsilon)`, shape ``(num_draws, N)``, nats."""
        placed, log_det = self.place(u)
        return self.base.log_joint(placed) + log_det

    def log_guide(self, u: Tensor) -> Tensor:
        r"""Return :math:`\log q(\epsilon \mid x)`, shape ``(num_draws, N)``, nats."""
        placed, log_det = self.place(u)
        return self._mixed(placed, self.base.log_guide(placed)) + log_det

    def log_densities(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return the results of :meth:`log_joint` and :meth:`log_guide`."""
        placed, log_det = self.place(u)
        log_joint, log_guide = self.base.log_densities(placed)
        return log_joint + log_det, self._mixed(placed, log_guide) + log_det

    def value_and_gradient(self, u: Tensor, beta: float = 1.0) -> tuple[Tensor, Tensor]:
        r"""Return :math:`\log p(x, \epsilon)`, shape ``(num_draws, N)``, nats, and its gradient; ``beta`` must be 1."""
        assert beta == 1
        with torch.enable_grad():
            at = u.detach().requires_grad_()
            placed, log_det = self.place(at)
            value, slope = self.base.value_and_gradient(placed)
            # The scale may have no gradient, as in ``torch.where(v > 0, 1.0, 0.1)``.
            terms = [(placed, slope), (log_det, torch.ones_like(log_det))]
            outputs, slopes = zip(*[term for term in terms if term[0].requires_grad], strict=True)
            (gradient,) = torch.autograd.grad(outputs, at, slopes)
        return value + log_det.detach(), gradient

    def place(self, standard: Tensor) -> tuple[Tensor, Tensor]:
        r"""Map :math:`\epsilon` to u, both of shape ``(num_draws, N, D)``.

        Returns:
            u, and the log-determinant of the map, shape ``(num_draws, N)``.
        """
        u, log_det = standard, standard.new_zeros(standard.shape[:2])
        for _ in self.space.scaled:  # each run of the model sets one more site to its final value
            location, scale = self.base.priors(u)
            u, log_det = location + scale * standard, scale.log().sum(-1)
        return u, log_det

    def standardize(self, u: Tensor) -> tuple[Tensor, Tensor]:
        r"""Map u to :math:`\epsilon`, the inverse of :meth:`place`, and return the log-determinant of :meth:`place`."""
        location, scale = self.base.priors(u)
        return (u - location) / scale, scale.log().sum(-1)

    def _mixed(self, u: Tensor, log_guide: Tensor) -> Tensor:
        return log_guide if self._mixture is None else self._mixture.log_density(u, log_guide)


def _shuffled(u: Tensor) -> Tensor:
    """Permute the draws of each datum at random.

    A mixture returns draws in the order of its components. Its caller may use only a part of the draws of a datum.
    """
    order = torch.rand(u.shape[:2], device=u.device).argsort(0)
    return u.gather(0, order[..., None].expand_as(u))
