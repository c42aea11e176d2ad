r"""Variational divergence minimization: a model trained by the divergence that a critic sees between two samples.

.. math::
    \min_\theta \max_\omega \; F(\theta, \omega) = \mathrm{E}_{x \sim P}[g_f(V_\omega(x))]
        - \mathrm{E}_{x \sim Q_\theta}[f^*(g_f(V_\omega(x)))]

by one gradient step of both players after another. The model needs no density, only draws that carry gradients.

The model's step follows F itself. The step that is usual for images, to raise :math:`\mathrm{E}_Q[g_f(V)]` instead, is
faster where the critic wins, but minimizes another divergence: under the best critic of KL(P || Q), whose V is the
log-ratio plus 1, it follows the gradient of the reverse, KL(Q || P). An experiment about divergences cannot have that.

Source: *f-GAN: Training Generative Neural Samplers using Variational Divergence Minimization* (Nowozin, Cseke and
Tomioka, 2016), algorithm 1 and section 3.2.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from experiments.blurriness.divergences import Divergence


@dataclass
class Schedule:
    """How both players are trained.

    Attributes:
        steps: Gradient steps of each.
        model_rate: Learning rate of the model, which a cosine takes to 0.
        critic_rate: That of the critic, likewise.
        max_norm: Norm to which gradients are clipped.
    """

    steps: int
    model_rate: float
    critic_rate: float
    max_norm: float = 1.0


def minimize_divergence(
    divergence: Divergence,
    data: Callable[[], Tensor],
    model: Callable[[], Tensor],
    parameters: Iterable[nn.Parameter],
    critic: nn.Module,
    schedule: Schedule,
) -> list[float]:
    """Trains a model and its critic.

    Args:
        divergence: What the critic measures.
        data: Makes a batch of data, shape ``(n, *event)``.
        model: Makes a batch of the model's draws, with gradient.
        parameters: The model's parameters.
        critic: V, ``(n, *event) -> (n,)``.
        schedule: Steps and learning rates.

    Returns:
        The bound F at each step.
    """
    model_step = _Step(parameters, schedule.model_rate, schedule)
    critic_step = _Step(critic.parameters(), schedule.critic_rate, schedule)
    bounds = []
    for _ in tqdm(range(schedule.steps), desc=f"f-GAN, {divergence.name}", disable=None):
        real, made = data(), model()
        bound = divergence.bound(critic(real), critic(made.detach()))
        critic_step(-bound)
        model_step(-divergence.cost(critic(made)).mean())
        bounds.append(bound.item())
    return bounds


class _Step:
    """A step of Adam on a loss, for some parameters and no others, with clipped gradients."""

    def __init__(self, parameters: Iterable[nn.Parameter], rate: float, schedule: Schedule) -> None:
        self.parameters, self.max_norm = list(parameters), schedule.max_norm
        # Without momentum of the usual size, which makes two players circle.
        self.optimizer = torch.optim.Adam(self.parameters, lr=rate, betas=(0.5, 0.999))
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, schedule.steps)

    def __call__(self, loss: Tensor) -> None:
        gradients = torch.autograd.grad(loss, self.parameters)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        nn.utils.clip_grad_norm_(self.parameters, self.max_norm)
        self.optimizer.step()
        self.scheduler.step()
