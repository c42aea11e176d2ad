r"""f-divergences, and their variational lower bounds from samples.

Let f be convex with f(1) = 0 and conjugate :math:`f^*(t) = \sup_u u t - f(u)`. For data P of density p and a model Q of
density q,

.. math::
    D_f(P \,\|\, Q) = \int q(x)\, f\Big(\frac{p(x)}{q(x)}\Big) dx
        = \sup_T \; \mathrm{E}_P[T(x)] - \mathrm{E}_Q[f^*(T(x))], \qquad T(x) = f'\Big(\frac{p(x)}{q(x)}\Big).

An activation :math:`T = g_f(V)` maps a real-valued critic V into the domain of :math:`f^*`:

================  ==============================  ==============================  =================================
divergence        f(u)                            g_f(v)                          f*(t)
================  ==============================  ==============================  =================================
Kullback-Leibler  u log u                         v                               exp(t - 1)
reverse KL        -log u                          -exp(-v)                        -1 - log(-t)
Jensen-Shannon    u log u - (u + 1) log((u+1)/2)  log 2 - log(1 + exp(-v))        -log(2 - exp(t))
================  ==============================  ==============================  =================================

Maximum likelihood minimizes KL(P || Q). The third divergence is twice the Jensen-Shannon divergence, as in the paper.
The best critic is the log-ratio V = log p(x)/q(x), and for KL this log-ratio plus 1.

Source: *f-GAN: Training Generative Neural Samplers using Variational Divergence Minimization* (Nowozin, Cseke and
Tomioka, 2016), tables 1, 2 and 6.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import softplus

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Divergence:
    """An f-divergence.

    Attributes:
        name: Name of the divergence.
        f: f(u), for u > 0.
        derivative: f'(u).
        activation: g_f(v), for real v.
        conjugate: f*(t), for t in the range of g_f.
        cost: f*(g_f(v)) in a simplified form that avoids the overflow and the cancellation of the composition.
    """

    name: str
    f: Function
    derivative: Function
    activation: Function
    conjugate: Function
    cost: Function

    def bound(self, data: Tensor, model: Tensor) -> Tensor:
        """Return the variational lower bound of the divergence, shape ``()``.

        Args:
            data: The critic's values V of draws from the data, shape ``(n,)``.
            model: The critic's values of draws from the model, shape ``(m,)``.
        """
        return self.activation(data).mean() - self.cost(model).mean()


KL = Divergence(
    name="KL",
    f=lambda u: u * u.log(),
    derivative=lambda u: 1 + u.log(),
    activation=lambda v: v,
    conjugate=lambda t: (t - 1).exp(),
    cost=lambda v: (v - 1).exp(),
)
REVERSE_KL = Divergence(
    name="reverse KL",
    f=lambda u: -u.log(),
    derivative=lambda u: -1 / u,
    activation=lambda v: -(-v).exp(),
    conjugate=lambda t: -1 - (-t).log(),
    cost=lambda v: v - 1,
)
JENSEN_SHANNON = Divergence(
    name="Jensen-Shannon",
    f=lambda u: u * u.log() - (u + 1) * ((u + 1) / 2).log(),
    derivative=lambda u: math.log(2) + u.log() - (u + 1).log(),
    activation=lambda v: math.log(2) - softplus(-v),
    conjugate=lambda t: -(2 - t.exp()).log(),
    cost=lambda v: softplus(v) - math.log(2),
)
DIVERGENCES = (KL, REVERSE_KL, JENSEN_SHANNON)
