r"""Local posteriors: for each datum, a density with its own parameters, fitted by gradient ascent on the ELBO.

.. math:: \lambda_n^* = \arg\max_\lambda \mathrm{E}_{q_\lambda(u)} [\log p(x_n, u) - \log q_\lambda(u)].

Here u are the latents in unconstrained coordinates. The density is a :class:`LocalNormal` or a :class:`LocalFlow`. A
``LocalNormal`` starts with the mean and the standard deviations of the guide's draws. A ``LocalFlow`` transforms the
guide's draws, :math:`u = f_n(u_0)` with :math:`u_0 \sim q(u \mid x_n)`, and starts near the identity. Its ELBO
therefore starts near the ELBO of the guide and rises from there, whatever the family of the guide.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from pyrovae import flows
from pyrovae.evaluation.unconstrained.target import Target, check_gradients

Family = Literal["normal", "flow"]


class _Local(nn.Module):
    """Base class of local posteriors, with a shift and a scale for each datum and dimension.

    Shift and scale are relative to the mean and the standard deviation of the guide's draws.
    """

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.target = target
        draws = target.draw(256)[0]
        self.loc, self.unit = draws.mean(0), draws.std(0)  # shape (N, D)
        self.shift = nn.Parameter(torch.zeros_like(self.loc))
        self.log_scale = nn.Parameter(torch.zeros_like(self.loc))

    def _place(self, standard: Tensor) -> Tensor:
        return self.loc + self.unit * (self.shift + self.log_scale.exp() * standard)


class LocalNormal(_Local):
    """Normal density with independent dimensions, with separate parameters for each datum."""

    def forward(self, num_samples: int) -> tuple[Tensor, Tensor]:
        """Draw from the local posterior of each datum, and return the draws and their log-densities.

        Returns:
            Draws u, shape ``(num_samples, N, D)``, and log-densities, shape ``(num_samples, N)``, nats.
        """
        noise = torch.randn(num_samples, *self.unit.shape, dtype=self.unit.dtype, device=self.unit.device)
        log_scale = self.unit.log() + self.log_scale
        log_q = -(noise.square() / 2 + log_scale + math.log(2 * math.pi) / 2).sum(-1)
        return self._place(noise), log_q


class LocalFlow(_Local):
    """Inverse autoregressive flow that transforms the guide's draws, with separate parameters for each datum."""

    def __init__(self, target: Target, depth: int = 2, hidden: int = 32) -> None:
        super().__init__(target)
        size, dim = self.unit.shape
        members = [flows.autoregressive(dim, depth=depth, hidden=(hidden,)).to(self.unit) for _ in range(size)]
        stacked, self.constants = stack_module_state(members)
        self.stacked = nn.ParameterDict({name.replace(".", "/"): nn.Parameter(p) for name, p in stacked.items()})
        self.skeleton = (members[0],)  # a tuple, so that its parameters are not registered in this module

    def forward(self, num_samples: int) -> tuple[Tensor, Tensor]:
        """Draw from the local posterior of each datum, and return the draws and their log-densities.

        Returns:
            Draws u, shape ``(num_samples, N, D)``, and log-densities, shape ``(num_samples, N)``, nats.
        """
        draws, log_q = self.target.draw(num_samples)
        parameters = {name.replace("/", "."): p for name, p in self.stacked.items()}
        standard, log_det = vmap(self._one, in_dims=(0, 0, 1), out_dims=1)(
            parameters, self.constants, (draws - self.loc) / self.unit
        )
        return self._place(standard), log_q - log_det - self.log_scale.sum(-1)

    def _one(self, parameters: Any, constants: Any, noise: Tensor) -> Any:
        return functional_call(_Apply(self.skeleton[0]), _prefixed(parameters) | _prefixed(constants), (noise,))


class _Apply(nn.Module):
    """Module that applies the inverse of an autoregressive flow to noise, in a single pass of the flow's network."""

    def __init__(self, flow: nn.Module) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, noise: Tensor) -> Any:
        return self.flow().inv.call_and_ladj(noise)


def _prefixed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"flow.{name}": tensor for name, tensor in tensors.items()}


def optimize(
    target: Target,
    family: Family,
    *,
    num_steps: int,
    num_particles: int,
    learning_rate: float,
) -> nn.Module:
    """Fit a local posterior to each datum of a batch by Adam, and return a module that holds all local posteriors."""
    check_gradients(target)
    local = LocalNormal(target) if family == "normal" else LocalFlow(target)
    optimizer = torch.optim.Adam(local.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for _ in range(num_steps):
        with torch.enable_grad():
            u, log_q = local(num_particles)
            loss = -(target.log_joint(u) - log_q).mean(0).sum()
            gradients = torch.autograd.grad(loss, list(local.parameters()))
        for parameter, gradient in zip(local.parameters(), gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        schedule.step()
    return local
