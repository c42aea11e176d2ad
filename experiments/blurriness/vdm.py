r"""Variational divergence minimization: a model is trained against a critic that estimates a divergence from samples.

.. math::
    \min_\theta \max_\omega \; F(\theta, \omega) = \mathrm{E}_{x \sim P}[g_f(V_\omega(x))]
        - \mathrm{E}_{x \sim Q_\theta}[f^*(g_f(V_\omega(x)))]

The model and the critic take gradient steps in turn. The model needs no density, only draws that carry gradients.

The model's step follows the gradient of F itself. The usual step for images raises :math:`\mathrm{E}_Q[g_f(V)]`
instead. It is faster if the critic wins, but it minimizes another divergence. For example, the best critic of KL(P ||
Q) is the log-ratio plus 1, and under it the usual step follows the gradient of the reverse, KL(Q || P). An experiment
that compares divergences cannot use this step.

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
    """Training schedule of the model and the critic.

    Attributes:
        steps: Gradient steps of each.
        model_rate: Initial learning rate of the model. A cosine schedule lowers it to 0.
        critic_rate: Initial learning rate of the critic, with the same schedule.
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
    """Train a model and its critic.

    Args:
        divergence: Divergence that the critic estimates.
        data: Function that returns a batch of data, shape ``(n, *event)``.
        model: Function that returns a batch of draws from the model, with gradient.
        parameters: Parameters of the model.
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
    """A step of Adam that changes only the given parameters, with clipped gradients."""

    def __init__(self, parameters: Iterable[nn.Parameter], rate: float, schedule: Schedule) -> None:
        self.parameters, self.max_norm = list(parameters), schedule.max_norm
        # The first beta is small, because the usual momentum makes the two players circle.
        self.optimizer = torch.optim.Adam(self.parameters, lr=rate, betas=(0.5, 0.999))
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, schedule.steps)

    def __call__(self, loss: Tensor) -> None:
        gradients = torch.autograd.grad(loss, self.parameters)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        nn.utils.clip_grad_norm_(self.parameters, self.max_norm)
        self.optimizer.step()
        self.scheduler.step()
