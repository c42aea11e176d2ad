"""The step that ``fit`` and ``SVI`` share: a gradient, optional checks for NaN and infinite values, and an update."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pyrovae.isolation import Buffers, restore_buffers, save_buffers
from pyrovae.training.gradients import Gradients
from pyrovae.training.losses import Loss
from pyrovae.training.nonfinite import NonFiniteFinder, NotFiniteError, are_finite, first_not_finite
from pyrovae.training.optimizers import Optimizer
from pyrovae.training.state import generator_states, restore_generators

NonFinite = Literal["raise", "skip"]


class Step:
    """Steps of an optimizer along a gradient.

    Args:
        gradients: The gradient of a loss.
        optimizer: Optimizer that changes the parameters.
        guard: Object that checks a step for NaN and infinite values; ``None`` disables the checks.
        names: Names of the trained module and of its loss, for messages.
    """

    def __init__(
        self, gradients: Gradients, optimizer: Optimizer, guard: "Guard | None", names: tuple[str, str]
    ) -> None:
        self.gradients, self.optimizer, self.guard, self.names = gradients, optimizer, guard, names

    def __call__(self, batches: Sequence[Any], kl_weight: float = 1.0, weights: Sequence[float] = (1.0,)) -> list[Any]:
        """Make a step and return a list of the losses of the batches, which is empty if the step was skipped.

        Args:
            batches: The batches, each of which gives a gradient.
            kl_weight: Weight of the latent sites.
            weights: Weight of each batch's gradient in the sum of the gradients.

        Raises:
            NotFiniteError: If ``guard`` finds a number that is not finite, and does not skip the step. For a loss or a
                gradient, the state is unchanged. For an updated parameter, the update is kept.
            ValueError: If no parameter gets a gradient.
        """
        self.optimizer.zero_grad()
        before = None if self.guard is None else self.guard.before()
        if len(batches) == 1:
            losses = [self.gradients(batches[0], kl_weight)]
        else:
            losses = self._accumulate(batches, kl_weight, weights)
        parameters = self.gradients.parameters
        slopes = {name: tensor.grad for name, tensor in parameters.items() if tensor.grad is not None}
        if not slopes:
            raise ValueError(
                f"no parameter of {self.names[0]} gets a gradient from {self.names[1]}. Use the parameters in model, "
                f"guide or loss. Some objectives find only parameters that the programs register with pyro.module."
            )
        if before is not None and self.guard is not None and not self.guard.accepts(losses, slopes):
            self.guard.undo(before, self.optimizer, batches, kl_weight, losses, slopes)
            return []
        self.gradients.update(lambda: self.optimizer.step(parameters))
        if self.guard is not None:
            self.guard.after(self.optimizer, parameters)
        return losses

    def _accumulate(self, batches: Sequence[Any], kl_weight: float, weights: Sequence[float]) -> list[Any]:
        """Add the gradients of several batches, and store the sum in ``.grad`` of the parameters."""
        losses: list[Any] = []
        sums: dict[str, Tensor] = {}
        for batch, weight in zip(batches, weights, strict=True):
            self.optimizer.zero_grad()
            loss = self.gradients(batch, kl_weight)
            losses.append(loss.clone() if isinstance(loss, Tensor) else loss)  # a CUDA graph overwrites its outputs
            for name, tensor in self.gradients.parameters.items():
                if tensor.grad is not None:
                    scaled = tensor.grad * weight
                    sums[name] = sums[name] + scaled if name in sums else scaled
        for name, tensor in self.gradients.parameters.items():
            tensor.grad = sums.get(name)
        return losses


class Guard:
    """Check of an optimizer step for NaN and infinite values. A failed step is skipped or raises an error.

    Args:
        loss: The loss, which runs again to find the affected site.
        module: Module whose buffers are restored after a step that fails.
        skip: If true, every step is checked, and a step whose loss or gradient is not finite is skipped. If false,
            steps are checked only while ``replaying`` is true, and a step that is not finite raises NotFiniteError.

    Attributes:
        replaying: True while steps of the run are repeated to find the first number that is not finite.
    """

    def __init__(self, loss: Loss, module: nn.Module, skip: bool) -> None:
        self.loss, self.module, self.skip, self.replaying = loss, module, skip, False

    def before(self) -> tuple[Any, Buffers] | None:
        """Return the states of generators and buffers for :meth:`undo`, or None if the next step is not checked."""
        if not (self.replaying or self.skip):
            return None
        return generator_states(), save_buffers(self.module.modules())

    def accepts(self, losses: Sequence[Any], slopes: Mapping[str, Tensor]) -> bool:
        """Return whether the losses and gradients of a step are all finite."""
        return are_finite([*map(torch.as_tensor, losses), *slopes.values()])

    def undo(
        self,
        before: tuple[Any, Buffers],
        optimizer: Optimizer,
        batches: Sequence[Any],
        kl_weight: float,
        losses: Sequence[Any],
        slopes: Mapping[str, Tensor],
    ) -> None:
        """Restore the buffers after a failed step. If failed steps are not skipped, find the cause and raise an error.

        Raises:
            NotFiniteError: If failed steps are not skipped. The message names the cause. The generators are restored
                before the search for the cause.
        """
        generators, buffers = before
        restore_buffers(buffers)
        if self.skip:
            return
        restore_generators(generators)
        reason = f"the gradient of parameter {first_not_finite(slopes)} is not finite"
        if not are_finite(map(torch.as_tensor, losses)):
            with NonFiniteFinder() as finder:
                for batch in batches:
                    self.loss(batch, kl_weight)
            optimizer.zero_grad()
            reason = finder.explain(self.loss.name, -sum(map(float, losses)))
        restore_buffers(buffers)  # again, because finding the reason may have run the programs
        raise NotFiniteError(reason)

    def after(self, optimizer: Optimizer, parameters: Mapping[str, Tensor]) -> None:
        """Check the parameters after a step, if steps are repeated to find the first number that is not finite.

        Raises:
            NotFiniteError: If a parameter is not finite.
        """
        if self.replaying and (name := first_not_finite(parameters)):
            raise NotFiniteError(f"parameter {name} is not finite after the step of {optimizer.name}")
